//! Gives every request an id, and writes the bodies of errors, which include it.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::http::dialect::Dialect;
use crate::http::error::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id accepted from a client.
const REQUEST_ID_BYTES_MAX: usize = 64;

pub(in crate::http) async fn attach(request: Request, next: Next) -> Response {
    let id = accepted_id(request.headers()).unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
    let span = tracing::info_span!("request", id);
    let dialect = Dialect::of(request.uri().path());
    async move {
        let mut response = next.run(request).await;
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            if let Some(cause) = &problem.cause {
                tracing::error!(code = problem.code.as_str(), cause, "request failed");
            }
            dialect.write(&mut response, &problem, &id);
        }
        let value = HeaderValue::try_from(id).expect("an id is made of visible ASCII");
        response.headers_mut().insert(REQUEST_ID, value);
        response
    }
    .instrument(span)
    .await
}

/// The client's own id, if it is safe in a log line.
fn accepted_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_word = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (is_word && (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())).then(|| id.to_owned())
}
