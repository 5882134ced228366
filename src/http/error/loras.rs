//! Errors of LoRAs as answers.

use super::{ApiError, ErrorCode, STORAGE_RETRY_AFTER_SECONDS, causes};
use crate::domain::adapter::AdapterId;
use crate::domain::spec::FieldError;
use crate::loras::LoraError;

/// The field of the name.
const NAME: &str = "name";

/// The field of the hub's repository.
const REPOSITORY: &str = "repository";

/// The field of the file.
const FILE: &str = "file";

impl From<LoraError> for ApiError {
    fn from(error: LoraError) -> Self {
        let at = |code: ErrorCode, field: &str| {
            let reason = error.to_string();
            Self::new(code).with_detail(reason.clone()).with_errors(vec![FieldError::new(field, reason)])
        };
        match &error {
            LoraError::NotFound(_) => Self::new(ErrorCode::LoraNotFound),
            LoraError::InUse(_) => Self::new(ErrorCode::LoraInUse).with_detail(error.to_string()),
            LoraError::Name => Self::invalid(vec![FieldError::new(NAME, error.to_string())]),
            LoraError::NameTaken(_) => at(ErrorCode::LoraExists, NAME),
            LoraError::Rejected(_) => at(ErrorCode::LoraRejected, FILE),
            LoraError::NotFetched(_) => at(ErrorCode::LoraRejected, REPOSITORY),
            LoraError::TooMany => Self::invalid(vec![FieldError::new(FILE, error.to_string())]),
            LoraError::TooLarge { bytes_max } => {
                Self::new(ErrorCode::BodyTooLarge).with_detail(format!("the limit is {bytes_max} bytes"))
            }
            LoraError::Busy => Self::too_many_bodies(&error.to_string()),
            LoraError::Source { .. }
            | LoraError::Disk(_)
            | LoraError::Store(_)
            | LoraError::Audit(_)
            | LoraError::CorruptRow { .. } => Self::new(ErrorCode::StorageUnavailable)
                .with_retry_after(STORAGE_RETRY_AFTER_SECONDS)
                .with_cause(&causes(&error)),
        }
    }
}

/// A LoRA that was removed while its request was being accepted.
pub(super) fn lora_gone(id: &AdapterId) -> ApiError {
    ApiError::new(ErrorCode::LoraNotFound).with_detail(format!("the LoRA {id} has just been removed"))
}
