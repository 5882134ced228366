//! JSON request bodies, parsed field by field, so that a refusal names all unknown and invalid fields at once.

mod fields;
mod object;

use std::time::Duration;

use axum::extract::{FromRequest, OptionalFromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use serde_json::error::Category;
use tokio::task::spawn_blocking;

use super::body::{BodyOwner, BodyReservation, SMALL_BODY_BYTES_MAX, announced_bytes, collect};
use crate::domain::ids::KeyId;
use crate::domain::spec::FieldError;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::state::HttpState;
pub(in crate::http) use fields::{Fields, FromFields, integer};
use object::{Object, count_values};

/// Additional time for a body with images: clients with slow connections also send megabytes.
pub(super) const LARGE_BODY_MORE_TIME: Duration = Duration::from_mins(1);

/// Maximum values in one body, nested ones included; valid bodies have about ten. A value takes up to a hundred times the
/// memory of its text.
const VALUES_MAX: usize = 1024;
/// Some programs start a UTF-8 text with it. It has no meaning.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A JSON object as `T`.
pub(in crate::http) struct ApiJson<T> {
    pub(in crate::http) value: T,
    /// BLAKE3 of the received bytes.
    pub(in crate::http) digest: [u8; 32],
    /// The memory reserved for the body: to be kept as long as its large values.
    pub(in crate::http) reservation: BodyReservation,
}

impl<T: FromFields> FromRequest<HttpState> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &HttpState) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType));
        }
        if is_encoded(request.headers()) {
            let detail = "Content-Encoding is not supported: send the body unencoded";
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType).with_detail(detail));
        }
        let announced = announced_bytes(request.headers());
        let is_large = announced.is_some_and(|bytes| bytes > state.settings.body_bytes_max);
        let more = if is_large { LARGE_BODY_MORE_TIME } else { Duration::ZERO };
        let owner = request.extensions().get().map_or(KeyId::NONE, |BodyOwner(owner)| *owner);
        let body = collect(request.into_body(), announced, T::body_bytes_max(state), (&state.0.bodies, owner));
        let (body, reservation) = tokio::time::timeout(state.settings.body_deadline + more, body)
            .await
            .map_err(|_| ApiError::new(ErrorCode::BodyTimeout))??;
        let bytes = body.len();
        let read = move || Ok(Self { value: read(&body)?, digest: blake3::hash(&body).into(), reservation });
        run_blocking_if_large(bytes, read).await
    }
}

/// Does the work for a large body, which takes milliseconds for each image, off the async threads.
async fn run_blocking_if_large<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= SMALL_BODY_BYTES_MAX {
        return work();
    }
    spawn_blocking(work).await.map_err(|error| ApiError::new(ErrorCode::Internal).with_cause(&error))?
}

/// An optional body.
impl<T: FromFields> OptionalFromRequest<HttpState> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &HttpState) -> Result<Option<Self>, ApiError> {
        let headers = request.headers();
        let is_empty = headers.get(CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0");
        if is_empty && !headers.contains_key(TRANSFER_ENCODING) && !headers.contains_key(CONTENT_TYPE) {
            return Ok(None);
        }
        <Self as FromRequest<HttpState>>::from_request(request, state).await.map(Some)
    }
}

/// Whether the body is announced as JSON.
pub(in crate::http) fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Whether the body has an encoding.
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    let words = headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut words = words.map(<[u8]>::trim_ascii);
    words.any(|word| !word.is_empty() && !word.eq_ignore_ascii_case(b"identity"))
}

fn read<T: FromFields>(body: &[u8]) -> Result<T, ApiError> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    if count_values(body) > VALUES_MAX {
        let detail = format!("the body holds more than {VALUES_MAX} values");
        return Err(ApiError::new(ErrorCode::InvalidRequest).with_detail(detail));
    }
    let Object { values, duplicates } = serde_json::from_slice(body).map_err(|error| {
        let detail = match error.classify() {
            Category::Data => "the body must be a JSON object".to_owned(),
            _ => format!("the body is not valid JSON at line {}, column {}", error.line(), error.column()),
        };
        ApiError::new(ErrorCode::MalformedJson).with_detail(detail)
    })?;
    let errors = duplicates.into_iter().map(|field| FieldError::new(field, "is given twice")).collect();
    Fields::new(values, errors).parse().map_err(ApiError::invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_bodies_are_read_off_the_async_threads() {
        let thread = || Ok(std::thread::current().id());
        let here = std::thread::current().id();
        assert_eq!(run_blocking_if_large(SMALL_BODY_BYTES_MAX, thread).await.expect("done"), here);
        assert_ne!(run_blocking_if_large(SMALL_BODY_BYTES_MAX + 1, thread).await.expect("done"), here);
    }
}
