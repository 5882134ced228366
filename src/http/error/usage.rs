//! Errors of projects and of reports of usage as answers.

use super::{ApiError, ErrorCode, STORAGE_RETRY_AFTER_SECONDS, causes};
use crate::auth::ProjectError;
use crate::domain::limits::InvalidLimit;
use crate::domain::spec::FieldError;
use crate::usage::UsageError;

/// The field of a project's name.
const NAME: &str = "name";

impl From<ProjectError> for ApiError {
    fn from(error: ProjectError) -> Self {
        match error {
            ProjectError::Name | ProjectError::TooMany => Self::invalid(vec![FieldError::new(NAME, error.to_string())]),
            ProjectError::NameTaken(_) => {
                let reason = error.to_string();
                let errors = vec![FieldError::new(NAME, reason.clone())];
                Self::new(ErrorCode::ProjectExists).with_detail(reason).with_errors(errors)
            }
            ProjectError::Limit(invalid) => invalid_limit(invalid),
            ProjectError::NotFound => Self::new(ErrorCode::ProjectNotFound),
            ProjectError::InUse { .. } => Self::new(ErrorCode::ProjectInUse).with_detail(error.to_string()),
            ProjectError::Unavailable(failure) => failure.into(),
        }
    }
}

impl From<UsageError> for ApiError {
    fn from(error: UsageError) -> Self {
        match error {
            UsageError::Jobs(error) => error.into(),
            UsageError::Keys(error) => error.into(),
            UsageError::Projects(error) => error.into(),
            UsageError::Audit(failure) => failure.into(),
            UsageError::Alerts(_) => Self::new(ErrorCode::StorageUnavailable)
                .with_retry_after(STORAGE_RETRY_AFTER_SECONDS)
                .with_cause(&causes(&error)),
        }
    }
}

/// A limit of a key or a project that is out of range.
pub(super) fn invalid_limit(InvalidLimit { limit, max }: InvalidLimit) -> ApiError {
    let reason = format!("must be a whole number from 1 to {max}");
    ApiError::invalid(vec![FieldError::new(format!("limits.{limit}"), reason)])
}
