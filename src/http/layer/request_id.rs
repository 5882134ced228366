//! Gives every request an id, and writes the bodies of errors, which carry it.

use axum::Json;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::Instrument;

use crate::http::error::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Longest id taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 64;

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

pub(in crate::http) async fn attach(request: Request, next: Next) -> Response {
    let id = taken_over(request.headers()).unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
    let span = tracing::info_span!("request", id);
    async move {
        let mut response = next.run(request).await;
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            if let Some(cause) = &problem.cause {
                tracing::error!(code = problem.code.as_str(), cause, "request failed");
            }
            write_body(&mut response, &problem, &id);
        }
        let value = HeaderValue::try_from(id).expect("an id is made of visible ASCII");
        response.headers_mut().insert(REQUEST_ID, value);
        response
    }
    .instrument(span)
    .await
}

/// The client's own id, if it is one word that can stand in a log line.
fn taken_over(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_word = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (is_word && (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())).then(|| id.to_owned())
}

fn write_body(response: &mut Response, problem: &Problem, request_id: &str) {
    let code = problem.code;
    let errors = problem.errors.iter();
    let body = ProblemBody {
        r#type: format!("urn:fluxserve:problem:{}", code.as_str()),
        title: code.title(),
        status: code.status().as_u16(),
        detail: problem.detail.as_deref(),
        code: code.as_str(),
        request_id,
        errors: errors.map(|error| FieldView { field: &error.field, reason: &error.reason }).collect(),
    };
    *response.body_mut() = Json(body).into_response().into_body();
    response.headers_mut().insert(CONTENT_TYPE, PROBLEM_JSON);
    // Set for the empty body that stood here before.
    response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
}
