//! Errors of the cluster, from those of the client library.

use kube::client::AuthError;

/// Why a request to the cluster failed. For the administrator and the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// It does not answer.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// The worker's credentials cannot be read.
    #[error("the worker's own credentials cannot be read: {0}")]
    NoCredentials(String),
    /// It does not know the worker.
    #[error("the API server refuses the worker's own credentials: make new ones with `fluxserve kubernetes connect`")]
    NotAuthenticated,
    /// The worker lacks a right.
    #[error("the worker lacks a right in the cluster: {0}")]
    Forbidden(String),
    /// A named object does not exist.
    #[error("the cluster lacks something: {reason}")]
    Missing {
        /// Its kind, in the plural: `serviceaccounts`.
        kind: String,
        /// What the API server says.
        reason: String,
    },
    /// An object of that name exists already.
    #[error("it exists already")]
    Exists,
    /// Any other failure.
    #[error("the API server says: {0}")]
    Refused(String),
}

impl From<kube::Error> for ClusterError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                401 => Self::NotAuthenticated,
                403 => Self::Forbidden(status.message),
                404 => Self::Missing {
                    kind: status.details.map(|details| details.kind).unwrap_or_default(),
                    reason: status.message,
                },
                409 if status.is_already_exists() => Self::Exists,
                code => Self::Refused(format!("{code} {}", status.message)),
            },
            kube::Error::Auth(AuthError::ReadTokenFile(source, path)) => {
                Self::NoCredentials(format!("{}: {source}", path.display()))
            }
            // The output of a credential plugin may be a credential.
            kube::Error::Auth(_) => Self::NoCredentials("see the user in the kubeconfig".to_owned()),
            kube::Error::Service(cause) => Self::Unreachable(with_sources(&*cause)),
            other => Self::Unreachable(with_sources(&other)),
        }
    }
}

/// An error and its sources on one line, without sources that the text already contains.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text.replace('\n', " ")
}
