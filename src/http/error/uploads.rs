//! Errors of uploads as answers.

use super::{ApiError, ErrorCode, STORAGE_RETRY_AFTER_SECONDS, causes};
use crate::domain::spec::FieldError;
use crate::uploads::UploadError;

/// The field of the file.
const FILE: &str = "file";

impl From<UploadError> for ApiError {
    fn from(error: UploadError) -> Self {
        match &error {
            UploadError::NotFound => Self::new(ErrorCode::UploadNotFound),
            UploadError::TooLarge { bytes_max } => {
                Self::new(ErrorCode::BodyTooLarge).with_detail(format!("the limit is {bytes_max} bytes"))
            }
            UploadError::Rejected(_) => Self::invalid(vec![FieldError::new(FILE, error.to_string())]),
            UploadError::OwnerFull { retry_after_seconds, .. } | UploadError::Full { retry_after_seconds } => {
                Self::new(ErrorCode::TooManyUploads)
                    .with_detail(error.to_string())
                    .with_retry_after(*retry_after_seconds)
            }
            UploadError::Busy => Self::too_many_bodies(&error.to_string()),
            UploadError::Bucket(_) => Self::new(ErrorCode::StorageUnavailable)
                .with_detail(error.to_string())
                .with_retry_after(STORAGE_RETRY_AFTER_SECONDS)
                .with_cause(&causes(&error)),
            UploadError::Disk(_) | UploadError::Store(_) | UploadError::Keys(_) | UploadError::CorruptRow { .. } => {
                Self::new(ErrorCode::StorageUnavailable)
                    .with_retry_after(STORAGE_RETRY_AFTER_SECONDS)
                    .with_cause(&causes(&error))
            }
        }
    }
}
