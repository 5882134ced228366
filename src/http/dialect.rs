//! Dialects of errors: RFC 9457, those of OpenAI and of AUTOMATIC1111 on the routes that their clients use, or one line for a
//! terminal on the route of kubectl's plugin. Only the body differs; status and headers are the same.

use axum::Json;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::schema::{ObjectBuilder, Schema};
use utoipa::openapi::{ArrayBuilder, RefOr};

use super::base_url;
use super::error::{ErrorCode, Problem};
use super::openapi::schema::{ObjectSchema, integer, one_of, or_null, text};
use super::route::is_of_sdapi;

const PROBLEM_JSON: &str = "application/problem+json";
const JSON: &str = "application/json";
/// Tells OpenAI's clients whether to retry. Without it they retry twice.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Paths that OpenAI's clients use, whether this worker has them or not.
const OPENAI_PATHS: [&str; 5] =
    ["/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];
const OPENAI_PREFIXES: [&str; 3] = ["/v1/models/", "/v1/images/", "/v1/audio/"];

/// The format of error bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// RFC 9457.
    Problem,
    /// OpenAI's API.
    OpenAi,
    /// AUTOMATIC1111's API.
    Sdapi,
    /// One line for the user of a terminal.
    Terminal,
}

/// The body of an error, RFC 9457.
#[derive(Serialize)]
struct ProblemBody<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    code: &'static str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldView<'a>>,
}

#[derive(Serialize)]
struct FieldView<'a> {
    field: &'a str,
    reason: &'a str,
}

/// The body of an error for OpenAI's clients. All four fields are always present.
#[derive(Serialize)]
struct OpenAiBody<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: String,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

/// An error in a stream for OpenAI's clients, which raise what is in `error`.
#[derive(Serialize)]
pub(super) struct OpenAiErrorEvent<'a> {
    r#type: &'static str,
    error: OpenAiError<'a>,
}

/// The body of an error for clients of AUTOMATIC1111's API. All four fields are always present.
#[derive(Serialize)]
struct SdapiBody {
    /// The code.
    error: &'static str,
    detail: String,
    body: &'static str,
    errors: String,
}

/// The body of an error for a terminal, on one line.
#[derive(Serialize)]
struct TerminalBody<'a> {
    error: String,
    code: &'static str,
    request_id: &'a str,
}

impl Dialect {
    pub(super) const ALL: [Self; 4] = [Self::Problem, Self::OpenAi, Self::Sdapi, Self::Terminal];

    /// The dialect of a path. Depends on the path, not on the route, so that OpenAI's clients also understand that
    /// there is no `/v1/images/upscale`, or that their base URL is wrong.
    pub(super) fn of(path: &str) -> Self {
        if let Some(intended) = base_url::intended_path(path) {
            return Self::of(&intended);
        }
        let is_of_openai =
            OPENAI_PATHS.contains(&path) || OPENAI_PREFIXES.iter().any(|prefix| path.starts_with(prefix));
        if is_of_openai {
            Self::OpenAi
        } else if is_of_sdapi(path) {
            Self::Sdapi
        } else if path.starts_with("/v1/kubernetes/namespaces/") && path.ends_with("/exec-credential") {
            Self::Terminal
        } else {
            Self::Problem
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Problem => PROBLEM_JSON,
            Self::OpenAi | Self::Sdapi | Self::Terminal => JSON,
        }
    }

    /// Writes the body for `problem` into its answer.
    pub(super) fn write(self, response: &mut Response, problem: &Problem, request_id: &str) {
        let written = match self {
            Self::Problem => Json(problem_body(problem, request_id)).into_response(),
            Self::OpenAi => Json(openai_body(problem)).into_response(),
            Self::Sdapi => Json(sdapi_body(problem)).into_response(),
            Self::Terminal => Json(terminal_body(problem, request_id)).into_response(),
        };
        *response.body_mut() = written.into_body();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.media_type()));
        // It was set for the empty body before.
        headers.remove(CONTENT_LENGTH);
        if self == Self::OpenAi
            && let (Some(quota), Some(seconds)) = (&problem.quota, problem.retry_after_seconds)
        {
            quota.write_for_openai(headers, seconds);
        }
        // The job was canceled or ran out of time: the client must not retry automatically.
        if self == Self::OpenAi && matches!(problem.code, ErrorCode::JobCanceled | ErrorCode::DeadlineExceeded) {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
    }

    /// The name and schema of such a body in the OpenAPI document.
    pub(super) fn schema(self) -> (&'static str, RefOr<Schema>) {
        match self {
            Self::Problem => ("Problem", problem_schema()),
            Self::OpenAi => ("OpenAiError", openai_schema()),
            Self::Sdapi => ("SdapiError", sdapi_schema()),
            Self::Terminal => ("TerminalError", terminal_schema()),
        }
    }

    /// A schema that restricts the code of such a body to these words.
    pub(super) fn code_schema(self, words: impl IntoIterator<Item = &'static str>) -> ObjectBuilder {
        let code = one_of(words);
        match self {
            Self::Problem | Self::Terminal => ObjectBuilder::new().property("code", code),
            Self::OpenAi => ObjectBuilder::new().property("error", ObjectBuilder::new().property("code", code)),
            Self::Sdapi => ObjectBuilder::new().property("error", code),
        }
    }
}

fn problem_body<'a>(problem: &'a Problem, request_id: &'a str) -> ProblemBody<'a> {
    let code = problem.code;
    let errors = problem.errors.iter();
    ProblemBody {
        r#type: format!("urn:fluxserve:problem:{}", code.as_str()),
        title: code.title(),
        status: code.status().as_u16(),
        detail: problem.detail.as_deref(),
        code: code.as_str(),
        request_id,
        errors: errors.map(|error| FieldView { field: &error.field, reason: &error.reason }).collect(),
    }
}

fn openai_body(problem: &Problem) -> OpenAiBody<'_> {
    OpenAiBody { error: openai_error(problem) }
}

/// The data of an event with an error, for OpenAI's clients.
pub(super) fn openai_event(problem: &Problem) -> OpenAiErrorEvent<'_> {
    OpenAiErrorEvent { r#type: "error", error: openai_error(problem) }
}

fn openai_error(problem: &Problem) -> OpenAiError<'_> {
    let message = sentence(problem);
    let param = problem.errors.first().map(|error| error.field.as_str());
    OpenAiError { message, r#type: problem.code.openai_type(), param, code: problem.code.as_str() }
}

fn sdapi_body(problem: &Problem) -> SdapiBody {
    let said = sentence(problem);
    SdapiBody { error: problem.code.as_str(), detail: said.clone(), body: "", errors: said }
}

fn terminal_body<'a>(problem: &Problem, request_id: &'a str) -> TerminalBody<'a> {
    TerminalBody { error: sentence(problem), code: problem.code.as_str(), request_id }
}

/// Everything about an error on one line.
fn sentence(problem: &Problem) -> String {
    let broken: Vec<String> =
        problem.errors.iter().map(|error| format!("`{}` {}", error.field, error.reason)).collect();
    match &problem.detail {
        _ if !broken.is_empty() => broken.join("; "),
        Some(detail) => format!("{}: {detail}", problem.code.title()),
        None => problem.code.title().to_owned(),
    }
}

fn problem_schema() -> RefOr<Schema> {
    let field = ObjectSchema::new("A violated rule.")
        .required("field", text().description(Some("The field, parameter or header.")))
        .required("reason", text().description(Some("What is wrong with it.")));
    ObjectSchema::new("An error in the format of RFC 9457.")
        .required("type", text().description(Some("Identifies the kind of error; not a link.")))
        .required("title", text().description(Some("The kind of error as text.")))
        .required("status", integer(400).description(Some("The status code of the response.")))
        .required("code", code_schema())
        .required("request_id", text().description(Some("The request's id in the worker's log.")))
        .optional("detail", text().description(Some("Details of this occurrence.")))
        .optional("errors", ArrayBuilder::new().items(RefOr::from(field)))
        .into()
}

fn openai_schema() -> RefOr<Schema> {
    let types = ErrorCode::ALL.iter().map(|code| code.openai_type());
    let mut types: Vec<&str> = types.collect();
    types.sort_unstable();
    types.dedup();
    let error = ObjectSchema::new("What is wrong.")
        .required("message", text().description(Some("The error as text.")))
        .required("type", one_of(types).description(Some("The kind of error in OpenAI's terms.")))
        .required("param", or_null(text()).description(Some("The first invalid field.")))
        .required("code", code_schema());
    ObjectSchema::new("An error in OpenAI's format.").required("error", error).into()
}

fn sdapi_schema() -> RefOr<Schema> {
    ObjectSchema::new("An error in the format of AUTOMATIC1111's API.")
        .required("error", code_schema())
        .required("detail", text().description(Some("The error as text.")))
        .required("body", text().description(Some("Always empty.")))
        .required("errors", text().description(Some("The same text.")))
        .into()
}

fn terminal_schema() -> RefOr<Schema> {
    ObjectSchema::new("An error for display in a terminal.")
        .required("error", text().description(Some("What is wrong.")))
        .required("code", code_schema())
        .required("request_id", text().description(Some("The request's id in the worker's log.")))
        .into()
}

fn code_schema() -> ObjectBuilder {
    let codes = ErrorCode::ALL.iter().map(|code| code.as_str());
    one_of(codes).description(Some("A stable code."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_openai_paths_get_openai_errors() {
        let images = ["/v1/images/generations", "/v1/images/edits", "/v1/images/upscale"];
        for path in images.into_iter().chain(["/v1/models", "/v1/models/a/b"]) {
            assert_eq!(Dialect::of(path), Dialect::OpenAi, "{path}");
        }
        let kubectl = "/v1/kubernetes/namespaces/018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f/exec-credential";
        assert_eq!(Dialect::of(kubectl), Dialect::Terminal);
        for path in ["//v1/images/generations", "/models", "/images/generations", "/v1//models", "/v1/v1/models/a/b"] {
            assert_eq!(Dialect::of(path), Dialect::OpenAi, "{path}");
        }
        for path in ["/sdapi/v1/txt2img", "//sdapi/v1/txt2img", "/sdapi/v1/nothing"] {
            assert_eq!(Dialect::of(path), Dialect::Sdapi, "{path}");
        }
        for path in [
            "/sdapi",
            "//v1/inference/image",
            "//",
            "/v1/kubernetes/namespaces/x/kubeconfig",
            "/v1/inference/models",
            "/v1/inference/image",
            "/v1/modelsx",
            "/v1/images",
            "/",
            "/healthz",
        ] {
            assert_eq!(Dialect::of(path), Dialect::Problem, "{path}");
        }
    }
}
