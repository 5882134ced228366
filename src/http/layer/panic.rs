//! A panic in a handler is a mistake of ours: logged, and answered like any other.

use std::any::Any;

use axum::response::{IntoResponse, Response};

use crate::http::error::{ApiError, ErrorCode};

#[expect(clippy::needless_pass_by_value, reason = "the signature is the layer's")]
pub(in crate::http) fn answer(panic: Box<dyn Any + Send + 'static>) -> Response {
    let words = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    ApiError::new(ErrorCode::Internal).with_cause(&format_args!("a handler panicked: {words}")).into_response()
}
