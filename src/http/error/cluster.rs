//! Errors of the cluster and its namespaces as answers. The cluster's own messages go to the log and to the
//! administrator's cluster status, not to clients.

use super::{ApiError, ErrorCode, causes};
use crate::domain::spec::FieldError;
use crate::http::quota::Quota;
use crate::kubernetes::{CREDENTIALS_PER_MINUTE, KubernetesError};

/// An unreachable cluster seldom recovers at once.
const RETRY_AFTER_SECONDS: u64 = 5;

impl From<KubernetesError> for ApiError {
    fn from(error: KubernetesError) -> Self {
        match &error {
            KubernetesError::NotConfigured => Self::new(ErrorCode::KubernetesNotConfigured),
            KubernetesError::NamespaceNotFound => Self::new(ErrorCode::NamespaceNotFound),
            KubernetesError::NameTaken => Self::new(ErrorCode::NamespaceExists),
            KubernetesError::TooManyNamespaces | KubernetesError::Reserved(_) => {
                Self::invalid(vec![FieldError::new("name", error.to_string())])
            }
            KubernetesError::Pending(name) => {
                Self::new(ErrorCode::NamespacePending).with_detail(format!("ask the administrator to open `{name}`"))
            }
            KubernetesError::RateLimited { retry_after_seconds } => {
                let limit = CREDENTIALS_PER_MINUTE;
                let quota = Quota { name: "credentials", limit, window_seconds: Some(60), left: 0 };
                Self::new(ErrorCode::RateLimited)
                    .with_detail(format!(
                        "the limit is {limit} tokens per minute and key; retry in {retry_after_seconds} s"
                    ))
                    .with_quota(quota, *retry_after_seconds)
            }
            KubernetesError::RightEnded => Self::new(ErrorCode::Unauthorized),
            KubernetesError::Cluster(_) => {
                unavailable(&error).with_detail("the console and the worker's log show the reason")
            }
            KubernetesError::Rights(_) | KubernetesError::Store(_) | KubernetesError::CorruptRow { .. } => {
                unavailable(&error)
            }
        }
    }
}

fn unavailable(error: &KubernetesError) -> ApiError {
    ApiError::new(ErrorCode::KubernetesUnavailable).with_retry_after(RETRY_AFTER_SECONDS).with_cause(&causes(error))
}
