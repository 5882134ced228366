//! Parses rows of the table of jobs.

use sqlx::FromRow;
use time::OffsetDateTime;

use super::{OpenJob, UnreadableJob};
use crate::jobs::{Job, JobError, JobTerms, JobsError};

#[derive(FromRow)]
pub(super) struct JobRow {
    pub(super) id: String,
    owner: String,
    status: String,
    request: String,
    output_format: String,
    priority: String,
    owner_priority: String,
    deadline_at_ms: Option<i64>,
    project: String,
    attempts: i64,
    cancel_requested_at_ms: Option<i64>,
    error_code: Option<String>,
    error_reason: Option<String>,
    created_at_ms: i64,
    started_at_ms: Option<i64>,
    finished_at_ms: Option<i64>,
}

impl JobRow {
    pub(super) fn read(self) -> Result<OpenJob, UnreadableJob> {
        let row_id = self.id.clone();
        self.read_columns().map_err(|error| UnreadableJob { row_id, error })
    }

    fn read_columns(self) -> Result<OpenJob, JobsError> {
        let request = serde_json::from_str(&self.request)
            .map_err(|_| JobsError::storage(format!("the request of {} cannot be read", self.id)))?;
        let error = self.error_code.map(|code| JobError { code, reason: self.error_reason.unwrap_or_default() });
        let job = Job {
            id: word(&self.id, "id")?,
            owner: word(&self.owner, "owner")?,
            status: word(&self.status, "status")?,
            request,
            output_format: word(&self.output_format, "output_format")?,
            terms: JobTerms {
                priority: word(&self.priority, "priority")?,
                owner_priority: word(&self.owner_priority, "owner_priority")?,
                deadline_at: self.deadline_at_ms.map(moment).transpose()?,
            },
            error,
            created_at: moment(self.created_at_ms)?,
            started_at: self.started_at_ms.map(moment).transpose()?,
            finished_at: self.finished_at_ms.map(moment).transpose()?,
        };
        let (attempts, is_canceled) = (self.attempts, self.cancel_requested_at_ms.is_some());
        Ok(OpenJob { job, attempts, is_canceled, project: self.project.parse().ok() })
    }
}

pub(super) fn word<T: std::str::FromStr>(text: &str, column: &str) -> Result<T, JobsError> {
    text.parse().map_err(|_| JobsError::storage(format!("the column {column} of a job cannot be read")))
}

fn moment(milliseconds: i64) -> Result<OffsetDateTime, JobsError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000)
        .map_err(|_| JobsError::storage("a time of a job cannot be read"))
}
