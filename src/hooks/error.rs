//! Why something could not be done with webhooks.

use std::io;

use super::target::BadUrl;
use crate::auth::{KeyError, KeyFailure};
use crate::jobs::JobsError;
use crate::store::StoreError;

/// Why something could not be done with webhooks.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The operator has switched webhooks off.
    #[error("webhooks are off on this worker")]
    Off,
    /// The URL is refused.
    #[error("{0}")]
    Url(BadUrl),
    /// Events without a URL to send them to.
    #[error("needs a URL: the request's `webhook_url`, or the key's default")]
    NoUrl,
    /// The key has no secret, so nothing can be signed.
    #[error("the key has no webhook secret: the administrator makes one on the key's page")]
    NoSecret,
    /// The file that secrets follow from is not the one that the key's secret was made with.
    #[error("the key's webhook secret was made with another `webhooks.secret`: give the key a new one")]
    OtherSecret,
    /// There is no such delivery, or it is another key's.
    #[error("there is no such delivery")]
    NotFound,
    /// The key, or what was asked for it.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The audit log failed.
    #[error(transparent)]
    Audit(#[from] KeyFailure),
    /// A job cannot be read now.
    #[error(transparent)]
    Job(#[from] JobsError),
    /// The file of the secret failed, or the source of random bytes.
    #[error("the secret of webhooks cannot be read or made: {0}")]
    Secret(#[from] io::Error),
    /// Requests cannot be sent.
    #[error("requests to receivers cannot be sent: {0}")]
    Client(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row holds what this program does not write.
    #[error("the row of delivery {id} cannot be read: column {column}")]
    CorruptRow {
        /// The row's id as stored.
        id: String,
        /// The invalid column.
        column: &'static str,
    },
}
