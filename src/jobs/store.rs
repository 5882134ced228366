//! The tables of jobs. The only part of `jobs` with SQL.

mod future;
mod input_images;
mod inserts;
mod loras;
mod outbox;
mod retention;
mod rows;
mod statistics;
mod work;

use std::sync::Arc;
use std::time::Instant;

use inserts::Inserts;
pub use outbox::{AcceptedRow, JobOutbox};
pub(super) use retention::{EndedCursor, EndedJob};
use rows::JobRow;
use time::OffsetDateTime;

use super::{Job, JobError, JobRequest, JobTerms, JobsError, ListQuery, RepeatKey, Visibility};
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId, ProjectId};
use crate::domain::job::JobStatus;
use crate::domain::usage::{Day, Work};
use crate::domain::webhook::{JobWebhook, WebhookEvent};
use crate::store::Store;

/// Access to the tables of jobs.
#[derive(Clone)]
pub(super) struct JobStore {
    store: Store,
    inserts: Arc<Inserts>,
    outbox: Arc<dyn JobOutbox>,
}

/// A new job's row.
pub(super) struct NewJob<'a> {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    pub(super) request: &'a JobRequest,
    pub(super) output_format: OutputFormat,
    pub(super) terms: JobTerms,
    pub(super) created_at: OffsetDateTime,
    /// Its idempotency key, and the moment before which stored ones have expired.
    pub(super) repeat_key: Option<(&'a RepeatKey, OffsetDateTime)>,
    /// Its images, PNG, in the order of the request.
    pub(super) input_images: &'a [Vec<u8>],
    /// The project that its owner belongs to.
    pub(super) project: Option<ProjectId>,
    /// What its request says of webhooks.
    pub(super) webhook: Option<&'a JobWebhook>,
}

/// An unfinished job of an earlier process.
pub(super) struct OpenJob {
    pub(super) job: Job,
    pub(super) attempts: i64,
    /// Its cancellation was asked for.
    pub(super) is_canceled: bool,
    pub(super) project: Option<ProjectId>,
}

/// A row that this program cannot read: damaged, or from another version.
pub(super) struct UnreadableJob {
    /// The row's id as stored.
    pub(super) row_id: String,
    pub(super) error: JobsError,
}

/// Some jobs, newest first, and where the next page begins.
pub(super) struct ListedJobs {
    pub(super) jobs: Vec<Job>,
    pub(super) next: Option<JobId>,
}

/// How a job ended.
pub(super) enum Ending {
    /// With an image of this size.
    Succeeded {
        result_bytes: usize,
    },
    Failed(JobError),
    Canceled,
}

/// A job's end, and what is stored with it.
pub(super) struct JobEnd {
    pub(super) ending: Ending,
    pub(super) at: OffsetDateTime,
    /// When an engine started it, in case that is not stored yet.
    pub(super) started_at: Option<OffsetDateTime>,
    /// The usage charged to its owner.
    pub(super) work: Work,
}

impl Ending {
    pub(super) fn status(&self) -> JobStatus {
        match self {
            Self::Succeeded { .. } => JobStatus::Succeeded,
            Self::Failed(_) => JobStatus::Failed,
            Self::Canceled => JobStatus::Canceled,
        }
    }

    fn error(&self) -> Option<&JobError> {
        if let Self::Failed(error) = self { Some(error) } else { None }
    }

    fn result_bytes(&self) -> Option<i64> {
        if let Self::Succeeded { result_bytes } = self {
            Some(i64::try_from(*result_bytes).unwrap_or(i64::MAX))
        } else {
            None
        }
    }
}

impl JobStore {
    pub(super) fn new(store: Store) -> Self {
        Self { store, inserts: Arc::default(), outbox: Arc::new(()) }
    }

    /// The same, which tells `outbox` of each change of a job.
    pub(super) fn with_outbox(self, outbox: Arc<dyn JobOutbox>) -> Self {
        Self { outbox, ..self }
    }

    /// Whether the database is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.store.pool().is_closed()
    }

    pub(super) async fn check_writable(&self) -> Result<(), JobsError> {
        if self.inserts.fail(Instant::now()) {
            return Err(JobsError::storage("the last new jobs could not be stored"));
        }
        self.store.check_writable().await.map_err(JobsError::storage)
    }

    /// Removes deleted data from the write-ahead log. Returns `false` if a reader prevents that now.
    pub(super) async fn truncate_log(&self) -> Result<bool, JobsError> {
        self.store.truncate_log().await.map_err(JobsError::storage)
    }

    /// Stores a new job with its images and idempotency key. `false`: the idempotency key already has a job, and
    /// nothing was stored.
    pub(super) async fn insert(&self, job: NewJob<'_>) -> Result<bool, JobsError> {
        let outcome = self.try_insert(job).await;
        // A LoRA that is gone is no failure of the disk.
        let has_written = outcome.is_ok() || matches!(outcome, Err(JobsError::LoraGone(_)));
        self.inserts.note(has_written, Instant::now());
        outcome
    }

    async fn try_insert(&self, job: NewJob<'_>) -> Result<bool, JobsError> {
        let request = serde_json::to_string(job.request).expect("a request is plain data");
        // Begins with a write, so that two transactions never deadlock.
        let mut transaction = self.store.pool().begin().await?;
        sqlx::query(
            "INSERT INTO jobs (id, owner, status, request, output_format, created_at_ms, priority, owner_priority,
                               deadline_at_ms, project)
             VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(job.id.to_string())
        .bind(job.owner.to_string())
        .bind(request)
        .bind(job.output_format.as_str())
        .bind(milliseconds(job.created_at))
        .bind(job.terms.priority.as_str())
        .bind(job.terms.owner_priority.as_str())
        .bind(job.terms.deadline_at.map(milliseconds))
        .bind(job.project.map_or_else(String::new, |project| project.to_string()))
        .execute(&mut *transaction)
        .await?;
        loras::insert(&mut transaction, job.id, &job.request.loras).await?;
        input_images::insert(&mut transaction, job.id, job.input_images).await?;
        if let Some((key, since)) = job.repeat_key {
            // An expired one is replaced.
            let written = sqlx::query(
                "INSERT INTO idempotency_keys (owner, word, body_digest, job_id, created_at_ms) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET body_digest = excluded.body_digest, job_id = excluded.job_id,
                                           created_at_ms = excluded.created_at_ms
                 WHERE created_at_ms < ?",
            )
            .bind(job.owner.to_string())
            .bind(&key.word)
            .bind(&key.body_digest[..])
            .bind(job.id.to_string())
            .bind(milliseconds(job.created_at))
            .bind(milliseconds(since))
            .execute(&mut *transaction)
            .await?;
            if written.rows_affected() == 0 {
                transaction.rollback().await?;
                return Ok(false);
            }
        }
        let accepted = AcceptedRow { id: job.id, owner: job.owner, webhook: job.webhook };
        self.outbox.accepted(&mut transaction, accepted).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// The digest and job of an owner's idempotency key, if stored since `cutoff`.
    pub(super) async fn repeated(
        &self,
        owner: KeyId,
        word: &str,
        cutoff: OffsetDateTime,
    ) -> Result<Option<(Vec<u8>, JobId)>, JobsError> {
        let row: Option<(Vec<u8>, String)> = sqlx::query_as(
            "SELECT body_digest, job_id FROM idempotency_keys WHERE owner = ? AND word = ? AND created_at_ms >= ?",
        )
        .bind(owner.to_string())
        .bind(word)
        .bind(milliseconds(cutoff))
        .fetch_optional(self.store.pool())
        .await?;
        row.map(|(digest, id)| Ok((digest, rows::word(&id, "job_id")?))).transpose()
    }

    /// Deletes idempotency keys stored before `cutoff`.
    pub(super) async fn delete_repeat_keys(&self, cutoff: OffsetDateTime) -> Result<(), JobsError> {
        sqlx::query("DELETE FROM idempotency_keys WHERE created_at_ms < ?")
            .bind(milliseconds(cutoff))
            .execute(self.store.pool())
            .await?;
        Ok(())
    }

    /// A job by its id, of any owner.
    pub(super) async fn get(&self, id: JobId) -> Result<Job, JobsError> {
        let row: Option<JobRow> = sqlx::query_as("SELECT * FROM jobs WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(self.store.pool())
            .await?;
        let read = row.ok_or(JobsError::NotFound)?.read();
        read.map(|open| open.job).map_err(|unreadable| unreadable.error)
    }

    /// The visible jobs, newest first. Unreadable rows are left out: one must not hide the others.
    pub(super) async fn list(&self, visibility: Visibility, query: ListQuery) -> Result<ListedJobs, JobsError> {
        let owner = if let Visibility::Of(owner) = visibility { Some(owner) } else { None };
        let mut rows: Vec<JobRow> = sqlx::query_as(list_statement(visibility, query.status))
            .bind(owner.map(|owner| owner.to_string()))
            .bind(query.before.map(|id| id.to_string()))
            .bind(query.status.map(JobStatus::as_str))
            // One more than requested tells whether there is a next page.
            .bind(query.jobs_max + 1)
            .fetch_all(self.store.pool())
            .await?;
        let has_more = rows.len() > query.jobs_max as usize;
        rows.truncate(query.jobs_max as usize);
        let next = rows.iter().rev().find_map(|row| row.id.parse().ok()).filter(|_| has_more);
        let read = |row: JobRow| match row.read() {
            Ok(open) => Some(open.job),
            Err(UnreadableJob { row_id, error }) => {
                tracing::warn!(row_id, ?error, "a job's row cannot be read and is left out of a list");
                None
            }
        };
        Ok(ListedJobs { jobs: rows.into_iter().filter_map(read).collect(), next })
    }

    /// Marks the jobs that the last process had started as queued; their attempts stay counted.
    pub(super) async fn set_all_queued(&self) -> Result<(), JobsError> {
        sqlx::query("UPDATE jobs SET status = 'queued' WHERE status = 'running'").execute(self.store.pool()).await?;
        Ok(())
    }

    /// Marks this process's running jobs as queued, and takes the attempt back; returns how many.
    pub(super) async fn undo_attempts(&self) -> Result<u64, JobsError> {
        let undone =
            sqlx::query("UPDATE jobs SET status = 'queued', attempts = max(attempts - 1, 0) WHERE status = 'running'");
        Ok(undone.execute(self.store.pool()).await?.rows_affected())
    }

    /// Notes that the cancellation of a job was asked for, if it has not ended.
    pub(super) async fn note_cancel(&self, id: JobId, now: OffsetDateTime) -> Result<(), JobsError> {
        sqlx::query("UPDATE jobs SET cancel_requested_at_ms = ? WHERE id = ? AND finished_at_ms IS NULL")
            .bind(milliseconds(now))
            .bind(id.to_string())
            .execute(self.store.pool())
            .await?;
        Ok(())
    }

    /// Jobs that have not ended, oldest first.
    pub(super) async fn open_jobs(&self) -> Result<Vec<Result<OpenJob, UnreadableJob>>, JobsError> {
        let rows: Vec<JobRow> = sqlx::query_as("SELECT * FROM jobs WHERE status IN ('queued', 'running') ORDER BY id")
            .fetch_all(self.store.pool())
            .await?;
        Ok(rows.into_iter().map(JobRow::read).collect())
    }

    /// Stores that an engine started a job.
    pub(super) async fn set_running(&self, id: JobId, now: OffsetDateTime) -> Result<(), JobsError> {
        let row_id = id.to_string();
        let mut transaction = self.store.pool().begin().await?;
        let started = sqlx::query(
            "UPDATE jobs SET status = 'running', attempts = attempts + 1,
                    started_at_ms = COALESCE(started_at_ms, ?)
             WHERE id = ? AND status IN ('queued', 'running')",
        )
        .bind(milliseconds(now))
        .bind(&row_id)
        .execute(&mut *transaction)
        .await?;
        if started.rows_affected() > 0 {
            self.outbox.happened(&mut transaction, &row_id, WebhookEvent::Started, now).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Stores a job's end, deletes its images and lets its LoRAs go. A job that has already ended stays unchanged, and so
    /// does its owner's usage.
    pub(super) async fn set_final(&self, row_id: &str, end: &JobEnd) -> Result<(), JobsError> {
        let JobEnd { ending, at: now, started_at, work } = end;
        let error = ending.error();
        let mut transaction = self.store.pool().begin().await?;
        let ended = sqlx::query(
            "UPDATE jobs SET status = ?, error_code = ?, error_reason = ?, result_bytes = ?, finished_at_ms = ?,
                    started_at_ms = COALESCE(started_at_ms, ?)
             WHERE id = ? AND status IN ('queued', 'running')",
        )
        .bind(ending.status().as_str())
        .bind(error.map(|error| error.code.as_str()))
        .bind(error.map(|error| error.reason.as_str()))
        .bind(ending.result_bytes())
        .bind(milliseconds(*now))
        .bind(started_at.map(milliseconds))
        .bind(row_id)
        .execute(&mut *transaction)
        .await?;
        if ended.rows_affected() > 0 {
            work::charge(&mut transaction, row_id, Day::of(*now), work).await?;
        }
        input_images::delete(&mut transaction, row_id).await?;
        loras::delete(&mut transaction, row_id).await?;
        if let Some(event) = WebhookEvent::of_end(ending.status()).filter(|_| ended.rows_affected() > 0) {
            self.outbox.happened(&mut transaction, row_id, event, *now).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// A statement per kind of list, so that each can use an index. With an owner given, the owner's index is the better
/// one. Parameters: owner (1) or none, before a job (2), in a state (3) or any, at most (4) rows.
fn list_statement(visibility: Visibility, status: Option<JobStatus>) -> &'static str {
    match (visibility, status) {
        (Visibility::Of(_), _) => {
            "SELECT * FROM jobs
             WHERE owner = ?1 AND id < COALESCE(?2, '~') AND (?3 IS NULL OR status = ?3)
             ORDER BY id DESC LIMIT ?4"
        }
        (Visibility::All, Some(_)) => {
            "SELECT * FROM jobs WHERE ?1 IS NULL AND id < COALESCE(?2, '~') AND status = ?3
             ORDER BY id DESC LIMIT ?4"
        }
        (Visibility::All, None) => {
            "SELECT * FROM jobs WHERE ?1 IS NULL AND id < COALESCE(?2, '~') AND ?3 IS NULL
             ORDER BY id DESC LIMIT ?4"
        }
    }
}

impl From<sqlx::Error> for JobsError {
    fn from(error: sqlx::Error) -> Self {
        Self::storage(error)
    }
}

fn milliseconds(moment: OffsetDateTime) -> i64 {
    (moment.unix_timestamp_nanos() / 1_000_000) as i64
}

#[cfg(test)]
mod tests {
    use sqlx::AssertSqlSafe;

    use super::*;

    /// SQLite's query plan of a list.
    async fn plan(store: &Store, visibility: Visibility, status: Option<JobStatus>) -> String {
        let statement = format!("EXPLAIN QUERY PLAN {}", list_statement(visibility, status));
        let rows: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(AssertSqlSafe(statement)).fetch_all(store.pool()).await.expect("a plan");
        let steps: Vec<String> = rows.into_iter().map(|(_, _, _, step)| step).collect();
        steps.join("; ")
    }

    #[tokio::test]
    async fn every_list_uses_an_index_and_none_is_sorted() {
        let store = Store::open_in_memory().await.expect("a database");
        let one = Visibility::Of(KeyId::generate());
        for (visibility, status, index) in [
            (one, None, "INDEX jobs_by_owner (owner=? AND id<?)"),
            (one, Some(JobStatus::Running), "INDEX jobs_by_owner (owner=? AND id<?)"),
            (Visibility::All, Some(JobStatus::Running), "INDEX jobs_by_status (status=? AND id<?)"),
            (Visibility::All, Some(JobStatus::Canceled), "INDEX jobs_by_status (status=? AND id<?)"),
            (Visibility::All, None, "(id<?)"),
        ] {
            let plan = plan(&store, visibility, status).await;
            assert!(
                plan.starts_with("SEARCH jobs USING INDEX") && plan.ends_with(index),
                "{visibility:?} {status:?}: {plan}"
            );
        }
    }
}
