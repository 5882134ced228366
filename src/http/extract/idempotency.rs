//! `Idempotency-Key`: lets a client retry a request without creating a second job.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;

use crate::domain::spec::FieldError;
use crate::http::error::ApiError;
use crate::http::state::HttpState;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const WORD_BYTES_MAX: usize = 255;

/// The client's key, if it sent one.
pub(in crate::http) struct IdempotencyKey(pub(in crate::http) Option<String>);

impl FromRequestParts<HttpState> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Self, ApiError> {
        let refusal = |reason: String| ApiError::invalid(vec![FieldError::new("Idempotency-Key", reason)]);
        word(&parts.headers).map(Self).map_err(refusal)
    }
}

fn word(headers: &HeaderMap) -> Result<Option<String>, String> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("is given twice".into());
    }
    let bytes = value.as_bytes();
    let is_word = (1..=WORD_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    let word = value.to_str().ok().filter(|_| is_word).map(str::to_owned);
    word.map(Some).ok_or_else(|| format!("must be from 1 to {WORD_BYTES_MAX} visible ASCII characters"))
}
