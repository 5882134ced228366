//! What others must learn of a job, written in the transaction of the job's change: it is lost only with the change itself.

use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;
use time::OffsetDateTime;

use crate::domain::ids::{JobId, KeyId};
use crate::domain::webhook::{JobWebhook, WebhookEvent};

/// A job that is being accepted.
#[derive(Debug, Clone, Copy)]
pub struct AcceptedRow<'a> {
    /// Its id; its row is written.
    pub id: JobId,
    /// The key that submits it.
    pub owner: KeyId,
    /// What its request says of webhooks.
    pub webhook: Option<&'a JobWebhook>,
}

/// Writes what others must learn of a job. An error undoes the change of the job as well.
pub trait JobOutbox: Send + Sync {
    /// A job is being accepted.
    fn accepted<'a>(
        &'a self,
        connection: &'a mut SqliteConnection,
        job: AcceptedRow<'a>,
    ) -> BoxFuture<'a, sqlx::Result<()>>;

    /// Something has happened to the job with this id, as stored. Called again for a start that is stored again.
    fn happened<'a>(
        &'a self,
        connection: &'a mut SqliteConnection,
        row_id: &'a str,
        event: WebhookEvent,
        at: OffsetDateTime,
    ) -> BoxFuture<'a, sqlx::Result<()>>;
}

/// Nobody has to learn anything.
impl JobOutbox for () {
    fn accepted<'a>(&'a self, _: &'a mut SqliteConnection, _: AcceptedRow<'a>) -> BoxFuture<'a, sqlx::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn happened<'a>(
        &'a self,
        _: &'a mut SqliteConnection,
        _: &'a str,
        _: WebhookEvent,
        _: OffsetDateTime,
    ) -> BoxFuture<'a, sqlx::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
