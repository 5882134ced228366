//! The OpenAPI 3.1 document, made from the tables of routes and errors. A row of the first includes its [`Operation`],
//! so every route has one. What follows from a route's path, body and access is added here.

mod operation;
pub(super) mod schema;

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterIn, PathItem, PathsBuilder};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

pub(super) use operation::{Operation, Tag};

use super::dialect::Dialect;
use super::error::ErrorCode;
use super::hosts::HEALTH_PATHS;
use super::route::{Access, Route, is_of_sdapi};
use super::session_cookie::PLAIN_NAME;
use super::state::HttpState;
use schema::text;

const API_KEY: &str = "apiKey";
const BEARER: &str = "bearer";
const BASIC: &str = "basic";
const SESSION: &str = "session";

const ABOUT: &str = "\
Image generation with FLUX models and built-in API keys.

Errors are `application/problem+json` (RFC 9457). They have OpenAI's format on the routes that its clients use, that of \
AUTOMATIC1111's API below `/sdapi/`, and are one line of text on the route that kubectl uses. Their `code` is stable. \
Unknown fields and parameters are refused. Every response has an `x-request-id`; a request may set it.";

/// The complete document.
pub(super) fn document(rows: impl IntoIterator<Item = (Route, Operation)>) -> OpenApi {
    let mut paths = PathsBuilder::new();
    let of_errors = Dialect::ALL.map(Dialect::schema).map(|(name, schema)| (name.to_owned(), schema));
    let mut schemas = BTreeMap::from(of_errors);
    for (route, operation) in rows {
        schemas.extend(operation.schemas.clone());
        paths = paths.path(route.documented_path(), PathItem::new(method_of(route), describe(route, operation)));
    }
    let components = schemas
        .into_iter()
        .fold(ComponentsBuilder::new(), |components, (name, schema)| components.schema(name, schema));
    let info = InfoBuilder::new()
        .title("fluxserve")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()));
    let tags = Tag::ALL.map(|tag| TagBuilder::new().name(tag.name()).description(Some(tag.description())).build());
    OpenApiBuilder::new()
        .info(info.build())
        .tags(Some(tags))
        .paths(paths.build())
        .components(Some(with_security(components).build()))
        .build()
}

/// The document as a file.
pub(super) fn json(document: &OpenApi) -> String {
    document.to_pretty_json().expect("the document's keys are strings")
}

pub(super) async fn serve(State(state): State<HttpState>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], state.0.document.clone())
}

pub(super) fn serve_operation() -> Operation {
    Operation::new(Tag::Health, "get_openapi", "This document").answers_text(
        axum::http::StatusCode::OK,
        "application/json",
        "OpenAPI 3.1.",
    )
}

fn with_security(components: ComponentsBuilder) -> ComponentsBuilder {
    let key = "An API key whose scope allows the route. Also accepted as `Authorization: Bearer`.";
    let session = "Set by `POST /v1/session`. Its name starts with `__Host-` over https.";
    let bearer =
        Http::builder().scheme(HttpAuthScheme::Bearer).description(Some("An API key as a bearer token.")).build();
    let basic = "An API key as the password of any user, or as the user without a password.";
    let basic = Http::builder().scheme(HttpAuthScheme::Basic).description(Some(basic)).build();
    components
        .security_scheme(BASIC, SecurityScheme::Http(basic))
        .security_scheme(
            API_KEY,
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description("x-api-key", key))),
        )
        .security_scheme(BEARER, SecurityScheme::Http(bearer))
        .security_scheme(
            SESSION,
            SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::with_description(PLAIN_NAME, session))),
        )
}

fn method_of(route: Route) -> HttpMethod {
    match route.method {
        "GET" => HttpMethod::Get,
        "POST" => HttpMethod::Post,
        "PATCH" => HttpMethod::Patch,
        "DELETE" => HttpMethod::Delete,
        other => unreachable!("no route has the method {other}"),
    }
}

fn describe(route: Route, operation: Operation) -> OperationBuilder {
    let codes = codes_of(route, &operation);
    let mut described = OperationBuilder::new()
        .operation_id(Some(operation.id))
        .tag(operation.tag.name())
        .summary(Some(operation.summary))
        .description(operation.description)
        .request_body(operation.body);
    for name in names_in(route.path) {
        let (schema, says) = path_parameter(name);
        described = described.parameter(operation::parameter(ParameterIn::Path, name, schema, says));
    }
    for parameter in operation.parameters {
        described = described.parameter(parameter);
    }
    for requirement in requirements(route) {
        described = described.security(requirement);
    }
    for (status, response) in operation.answers {
        described = described.response(status.to_string(), response.build());
    }
    for (status, codes) in codes {
        described = described.response(status.to_string(), operation::refusal(&codes, Dialect::of(route.path)));
    }
    described
}

/// All errors of a route by status, in the order of their table.
fn codes_of(route: Route, operation: &Operation) -> BTreeMap<u16, Vec<ErrorCode>> {
    use ErrorCode::{
        AuthUnavailable, DeadlineExceeded, DeliveryNotFound, ForeignOrigin, Internal, InvalidHost, JobNotFound,
        KeyNotFound, LoraNotFound, MisdirectedRequest, ModelNotFound, NamespaceNotFound, NotFound, ProjectNotFound,
        RateLimited, ScopeForbidden, SessionRequired, TooManyConnections, TooManyFailures, Unauthorized,
        UploadNotFound,
    };
    let mut all = vec![Internal, DeadlineExceeded];
    if !HEALTH_PATHS.contains(&route.path) {
        all.extend([InvalidHost, MisdirectedRequest, TooManyConnections]);
    }
    all.extend(&operation.refusals);
    match route.access {
        Access::Anyone | Access::Page => {}
        Access::Inference | Access::InferenceOrLink | Access::Kubernetes => {
            all.extend([Unauthorized, TooManyFailures, RateLimited, ScopeForbidden, AuthUnavailable]);
        }
        Access::Metrics => all.push(NotFound),
        Access::SignIn => all.extend([NotFound, ForeignOrigin, AuthUnavailable]),
        Access::Session => all.extend([NotFound, ForeignOrigin, SessionRequired, AuthUnavailable]),
    }
    for name in names_in(route.path) {
        all.extend(match name {
            "delivery_id" => Some(DeliveryNotFound),
            "job_id" => Some(JobNotFound),
            "key_id" => Some(KeyNotFound),
            "lora_id" => Some(LoraNotFound),
            "namespace_id" => Some(NamespaceNotFound),
            "project_id" => Some(ProjectNotFound),
            "model" => Some(ModelNotFound),
            "upload_id" => Some(UploadNotFound),
            _ => None,
        });
    }
    let mut by_status: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in ErrorCode::ALL.iter().filter(|code| all.contains(code)) {
        by_status.entry(code.status().as_u16()).or_default().push(*code);
    }
    by_status
}

fn names_in(path: &'static str) -> impl Iterator<Item = &'static str> {
    let names = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| name.trim_start_matches('*'))
}

fn path_parameter(name: &str) -> (utoipa::openapi::ObjectBuilder, &'static str) {
    match name {
        "delivery_id" => (text(), "The delivery's id: `webhook-id` in what is delivered."),
        "job_id" => (text(), "The job's id from the response that accepted it."),
        "key_id" => (text(), "The key's id, not its value."),
        "lora_id" => (text(), "The LoRA's id, or its name."),
        "namespace_id" => (text(), "The namespace's id on this worker, not its name in the cluster."),
        "project_id" => (text(), "The project's id, not its name."),
        "file" => (text(), "The file's name."),
        "model" => (text(), "The model's id. Its slash need not be encoded."),
        "upload_id" => (text(), "The upload's id from the response that kept it."),
        other => unreachable!("unknown path parameter {other}"),
    }
}

fn requirements(route: Route) -> Vec<SecurityRequirement> {
    let one = |name| SecurityRequirement::new(name, [] as [&str; 0]);
    match route.access {
        Access::Anyone | Access::Metrics | Access::SignIn | Access::Page => Vec::new(),
        Access::Inference if is_of_sdapi(route.path) => vec![one(API_KEY), one(BEARER), one(BASIC)],
        Access::Inference | Access::Kubernetes => vec![one(API_KEY), one(BEARER)],
        // The empty alternative stands for a signed link.
        Access::InferenceOrLink => vec![one(API_KEY), one(BEARER), SecurityRequirement::default()],
        Access::Session => vec![one(SESSION)],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};
    use utoipa::PartialSchema;
    use utoipa::openapi::RefOr;
    use utoipa::openapi::schema::Schema;

    use super::*;
    use crate::http::admin::wire::key::{CreateKey, EditKey, RotateKey};
    use crate::http::admin::wire::kubernetes::NamespaceBody;
    use crate::http::admin::wire::lora::FetchLora;
    use crate::http::admin::wire::project::{CreateProject, EditProject};
    use crate::http::admin::wire::session::SignIn;
    use crate::http::admin::wire::webhook::{EditWebhook, MakeSecret};
    use crate::http::api::exec_credential::ExecInfo;
    use crate::http::api::inference::SubmitImage;
    use crate::http::api::openai::edit_request::{EditForm, EditJson};
    use crate::http::api::openai::request::GenerateImages;
    use crate::http::api::openai::variations::VaryImages;
    use crate::http::api::sdapi::options::SetOptions;
    use crate::http::api::sdapi::request::{ImageToImage, TextToImage};
    use crate::http::extract::json::{Fields, FromFields};

    fn described<T: PartialSchema>() -> BTreeSet<String> {
        let schema = serde_json::to_value(T::schema()).expect("a schema is JSON");
        let properties = schema["properties"].as_object().expect("an object with fields");
        properties.keys().cloned().collect()
    }

    #[track_caller]
    fn check<T: FromFields + PartialSchema>() {
        assert_eq!(described::<T>(), Fields::read_by::<T>());
    }

    #[test]
    fn bodies_are_documented_as_they_are_parsed() {
        check::<SubmitImage>();
        check::<GenerateImages>();
        check::<EditForm>();
        check::<EditJson>();
        check::<VaryImages>();
        check::<TextToImage>();
        check::<ImageToImage>();
        check::<SetOptions>();
        check::<SignIn>();
        check::<CreateKey>();
        check::<EditKey>();
        check::<RotateKey>();
        check::<CreateProject>();
        check::<EditProject>();
        check::<NamespaceBody>();
        check::<FetchLora>();
        check::<EditWebhook>();
        check::<MakeSecret>();
        check::<ExecInfo>();
    }

    #[test]
    fn a_priority_is_an_enum_and_null_only_in_an_edit() {
        let words_of = |schema: RefOr<Schema>| {
            let schema = serde_json::to_value(schema).expect("a schema is JSON");
            schema["properties"]["limits"]["properties"]["priority"]["enum"].clone()
        };
        assert_eq!(words_of(CreateKey::schema()), json!(["low", "normal", "high"]));
        assert_eq!(words_of(EditKey::schema()), json!(["low", "normal", "high", null]));
        let document: Value = serde_json::from_str(&crate::http::openapi_json()).expect("JSON");
        let shown = &document["components"]["schemas"]["Limits"];
        assert_eq!(shown["properties"]["priority"]["enum"], json!(["low", "normal", "high"]));
        let required = shown["required"].as_array().expect("a list");
        assert!(required.contains(&json!("priority")), "always present: {required:?}");
    }

    #[test]
    fn every_route_and_every_error_is_documented() {
        let document: Value = serde_json::from_str(&crate::http::openapi_json()).expect("JSON");
        assert_eq!(document["openapi"], "3.1.0");
        let mut codes = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for route in crate::http::routes() {
            let operation = &document["paths"][route.documented_path()][route.method.to_lowercase()];
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{route:?} is not documented"));
            assert!(ids.insert(id.to_owned()), "{id} twice");
            let responses = operation["responses"].as_object().expect("answers");
            assert!(responses.keys().any(|status| status.starts_with('2')), "{id} never succeeds");
            for response in responses.values() {
                for content in response["content"].as_object().into_iter().flat_map(|content| content.values()) {
                    let words = content["schema"]["allOf"][1]["properties"]["code"]["enum"].as_array();
                    let words = words.into_iter().flatten();
                    codes.extend(words.map(|word| word.as_str().expect("a word").to_owned()));
                }
            }
        }
        // No route answers this; it is the answer for a wrong method.
        codes.insert(ErrorCode::MethodNotAllowed.as_str().to_owned());
        let all: BTreeSet<String> = ErrorCode::ALL.iter().map(|code| code.as_str().to_owned()).collect();
        assert_eq!(codes, all);
    }

    #[test]
    fn every_reference_resolves() {
        let document: Value = serde_json::from_str(&crate::http::openapi_json()).expect("JSON");
        let mut left = vec![&document];
        while let Some(value) = left.pop() {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        let pointer = reference.strip_prefix('#').expect("within the document");
                        assert!(document.pointer(pointer).is_some(), "{reference} does not resolve");
                    }
                    left.extend(fields.values());
                }
                Value::Array(items) => left.extend(items),
                _ => {}
            }
        }
    }
}
