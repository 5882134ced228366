//! Errors of webhooks as answers.

use super::{ApiError, ErrorCode, STORAGE_RETRY_AFTER_SECONDS, causes};
use crate::domain::spec::FieldError;
use crate::hooks::WebhookError;

/// The field of a key's URL.
const URL: &str = "url";

impl From<WebhookError> for ApiError {
    fn from(error: WebhookError) -> Self {
        match error {
            WebhookError::Off => Self::new(ErrorCode::WebhooksOff),
            WebhookError::Url(bad) => Self::invalid(vec![FieldError::new(URL, bad.to_string())]),
            WebhookError::NoUrl | WebhookError::NoSecret | WebhookError::OtherSecret => {
                Self::new(ErrorCode::WebhookNotSetUp).with_detail(error.to_string())
            }
            WebhookError::NotFound => Self::new(ErrorCode::DeliveryNotFound),
            WebhookError::Key(error) => error.into(),
            WebhookError::Job(error) => error.into(),
            WebhookError::Audit(_)
            | WebhookError::Secret(_)
            | WebhookError::Client(_)
            | WebhookError::Store(_)
            | WebhookError::CorruptRow { .. } => Self::new(ErrorCode::StorageUnavailable)
                .with_retry_after(STORAGE_RETRY_AFTER_SECONDS)
                .with_cause(&causes(&error)),
        }
    }
}
