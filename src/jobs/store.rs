//! The table of jobs. The only place of `jobs` that speaks SQL.

mod future;
mod input_images;
mod inserts;
mod retention;
mod rows;
mod statistics;
mod work;

use std::sync::Arc;
use std::time::Instant;

use inserts::Inserts;
pub(super) use retention::{EndedCursor, EndedJob};
use rows::JobRow;
use time::OffsetDateTime;

use super::{Job, JobError, JobRequest, JobTerms, JobsError, ListQuery, RepeatKey, Visibility};
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::job::JobStatus;
use crate::domain::usage::{Day, Work};
use crate::store::Store;

/// The table of jobs.
#[derive(Clone)]
pub(super) struct JobStore {
    store: Store,
    inserts: Arc<Inserts>,
}

/// A job as it is first written.
pub(super) struct NewJob<'a> {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    pub(super) request: &'a JobRequest,
    pub(super) output_format: OutputFormat,
    pub(super) terms: JobTerms,
    pub(super) created_at: OffsetDateTime,
    /// The word it was asked for under, and since when words stand for what they were written with.
    pub(super) repeat_key: Option<(&'a RepeatKey, OffsetDateTime)>,
    /// What it starts from, PNG.
    pub(super) input_image: Option<&'a [u8]>,
}

/// A job that had not ended when the process did.
pub(super) struct OpenJob {
    pub(super) job: Job,
    pub(super) attempts: i64,
}

/// A row that says nothing this program understands: damaged, or written by another version.
pub(super) struct UnreadableJob {
    /// As it stands in the table, whatever it is.
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

/// A job's end, and what is written down with it.
pub(super) struct JobEnd {
    pub(super) ending: Ending,
    pub(super) at: OffsetDateTime,
    /// When the engine began it, should that not have been written down yet.
    pub(super) began_at: Option<OffsetDateTime>,
    /// What was drawn for its owner.
    pub(super) drawn: Option<(KeyId, Work)>,
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
        Self { store, inserts: Arc::default() }
    }

    /// Whether the process has done with the database.
    pub(super) fn is_closed(&self) -> bool {
        self.store.pool().is_closed()
    }

    pub(super) async fn check_writable(&self) -> Result<(), JobsError> {
        if self.inserts.fail(Instant::now()) {
            return Err(JobsError::storage("the last new jobs could not be written down"));
        }
        self.store.check_writable().await.map_err(JobsError::storage)
    }

    /// Takes what is forgotten out of the write-ahead log, too. Not now, where somebody is reading: the next time, then.
    pub(super) async fn truncate_log(&self) -> Result<(), JobsError> {
        self.store.truncate_log().await.map(drop).map_err(JobsError::storage)
    }

    /// Writes a new job, what it starts from, and the word it was asked for under. `false`: the word stands for a job already, and nothing
    /// was written.
    pub(super) async fn insert(&self, job: NewJob<'_>) -> Result<bool, JobsError> {
        let outcome = self.try_insert(job).await;
        self.inserts.note(outcome.is_ok(), Instant::now());
        outcome
    }

    async fn try_insert(&self, job: NewJob<'_>) -> Result<bool, JobsError> {
        let request = serde_json::to_string(job.request).expect("a request is plain data");
        // Begins with a write, so that two of them never wait for each other.
        let mut transaction = self.store.pool().begin().await?;
        sqlx::query(
            "INSERT INTO jobs (id, owner, status, request, output_format, created_at_ms, priority, owner_priority,
                               deadline_at_ms)
             VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
        )
        .bind(job.id.to_string())
        .bind(job.owner.to_string())
        .bind(request)
        .bind(job.output_format.as_str())
        .bind(milliseconds(job.created_at))
        .bind(job.terms.priority.as_str())
        .bind(job.terms.owner_priority.as_str())
        .bind(job.terms.deadline_at.map(milliseconds))
        .execute(&mut *transaction)
        .await?;
        if let Some(image) = job.input_image {
            input_images::insert(&mut transaction, job.id, image).await?;
        }
        if let Some((key, since)) = job.repeat_key {
            // One that has had its time gives way.
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
        transaction.commit().await?;
        Ok(true)
    }

    /// The digest and the job that an owner's word has stood for since `cutoff`.
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

    /// Forgets words written before `cutoff`.
    pub(super) async fn delete_repeat_keys(&self, cutoff: OffsetDateTime) -> Result<(), JobsError> {
        sqlx::query("DELETE FROM idempotency_keys WHERE created_at_ms < ?")
            .bind(milliseconds(cutoff))
            .execute(self.store.pool())
            .await?;
        Ok(())
    }

    /// A job by its id, whoever owns it.
    pub(super) async fn get(&self, id: JobId) -> Result<Job, JobsError> {
        let row: Option<JobRow> = sqlx::query_as("SELECT * FROM jobs WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(self.store.pool())
            .await?;
        let read = row.ok_or(JobsError::NotFound)?.read();
        read.map(|open| open.job).map_err(|unreadable| unreadable.error)
    }

    /// The jobs within reach, newest first. Rows that cannot be read are left out: one of them must not hide the others.
    pub(super) async fn list(&self, reach: Visibility, query: ListQuery) -> Result<ListedJobs, JobsError> {
        let owner = if let Visibility::Of(owner) = reach { Some(owner) } else { None };
        let mut rows: Vec<JobRow> = sqlx::query_as(list_statement(reach, query.status))
            .bind(owner.map(|owner| owner.to_string()))
            .bind(query.before.map(|id| id.to_string()))
            .bind(query.status.map(JobStatus::as_str))
            // One more than asked for tells whether there is a next page.
            .bind(query.jobs_max + 1)
            .fetch_all(self.store.pool())
            .await?;
        let has_more = rows.len() > query.jobs_max as usize;
        rows.truncate(query.jobs_max as usize);
        let next = rows.iter().rev().find_map(|row| row.id.parse().ok()).filter(|_| has_more);
        let read = |row: JobRow| match row.read() {
            Ok(open) => Some(open.job),
            Err(UnreadableJob { row_id, error }) => {
                tracing::warn!(row_id, ?error, "a job cannot be read and is left out of a list");
                None
            }
        };
        Ok(ListedJobs { jobs: rows.into_iter().filter_map(read).collect(), next })
    }

    /// Puts the jobs that the last life had begun back to the waiting ones; their attempts stay counted.
    pub(super) async fn set_all_queued(&self) -> Result<(), JobsError> {
        sqlx::query("UPDATE jobs SET status = 'queued' WHERE status = 'running'").execute(self.store.pool()).await?;
        Ok(())
    }

    /// Puts the jobs that this life has begun and not ended back to the waiting ones, as if it had not begun them;
    /// returns how many.
    pub(super) async fn undo_attempts(&self) -> Result<u64, JobsError> {
        let undone =
            sqlx::query("UPDATE jobs SET status = 'queued', attempts = max(attempts - 1, 0) WHERE status = 'running'");
        Ok(undone.execute(self.store.pool()).await?.rows_affected())
    }

    /// Jobs that have not ended, oldest first.
    pub(super) async fn open_jobs(&self) -> Result<Vec<Result<OpenJob, UnreadableJob>>, JobsError> {
        let rows: Vec<JobRow> = sqlx::query_as("SELECT * FROM jobs WHERE status IN ('queued', 'running') ORDER BY id")
            .fetch_all(self.store.pool())
            .await?;
        Ok(rows.into_iter().map(JobRow::read).collect())
    }

    /// The engine began a job.
    pub(super) async fn set_running(&self, id: JobId, now: OffsetDateTime) -> Result<(), JobsError> {
        sqlx::query(
            "UPDATE jobs SET status = 'running', attempts = attempts + 1,
                    started_at_ms = COALESCE(started_at_ms, ?)
             WHERE id = ? AND status IN ('queued', 'running')",
        )
        .bind(milliseconds(now))
        .bind(id.to_string())
        .execute(self.store.pool())
        .await?;
        Ok(())
    }

    /// A job ended; what it started from goes. A job that has ended before stays as it is, and so does what was drawn for
    /// its owner.
    pub(super) async fn set_final(&self, row_id: &str, end: &JobEnd) -> Result<(), JobsError> {
        let JobEnd { ending, at: now, began_at, drawn } = end;
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
        .bind(began_at.map(milliseconds))
        .bind(row_id)
        .execute(&mut *transaction)
        .await?;
        if let Some((owner, work)) = drawn.filter(|(_, work)| ended.rows_affected() > 0 && *work != Work::default()) {
            work::add(&mut transaction, owner, Day::of(*now), &work).await?;
        }
        input_images::delete(&mut transaction, row_id).await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// A statement for each kind of list, so that each has an index. Beside an owner the status finds less than the owner does.
/// Of an owner (1) or of everyone, before a job (2), in a status (3) or in any, so many (4).
fn list_statement(reach: Visibility, status: Option<JobStatus>) -> &'static str {
    match (reach, status) {
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

    /// What SQLite looks at for a list.
    async fn plan(store: &Store, reach: Visibility, status: Option<JobStatus>) -> String {
        let statement = format!("EXPLAIN QUERY PLAN {}", list_statement(reach, status));
        let rows: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(AssertSqlSafe(statement)).fetch_all(store.pool()).await.expect("a plan");
        let steps: Vec<String> = rows.into_iter().map(|(_, _, _, step)| step).collect();
        steps.join("; ")
    }

    #[tokio::test]
    async fn every_list_has_an_index_and_none_is_sorted() {
        let store = Store::open_in_memory().await.expect("a database");
        let one = Visibility::Of(KeyId::generate());
        for (reach, status, index) in [
            (one, None, "INDEX jobs_by_owner (owner=? AND id<?)"),
            (one, Some(JobStatus::Running), "INDEX jobs_by_owner (owner=? AND id<?)"),
            (Visibility::All, Some(JobStatus::Running), "INDEX jobs_by_status (status=? AND id<?)"),
            (Visibility::All, Some(JobStatus::Canceled), "INDEX jobs_by_status (status=? AND id<?)"),
            (Visibility::All, None, "(id<?)"),
        ] {
            let plan = plan(&store, reach, status).await;
            assert!(
                plan.starts_with("SEARCH jobs USING INDEX") && plan.ends_with(index),
                "{reach:?} {status:?}: {plan}"
            );
        }
    }
}
