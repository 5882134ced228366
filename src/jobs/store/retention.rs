//! Queries on ended jobs and their images, for deletion.

use std::collections::HashSet;

use sqlx::FromRow;
use time::OffsetDateTime;

use super::{JobStore, milliseconds};
use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;
use crate::jobs::JobsError;

/// An ended job, with what its deletion needs.
pub(in crate::jobs) struct EndedJob {
    /// The row's id as stored: unreadable rows have to be deleted, too.
    pub(in crate::jobs) row_id: String,
    /// Names its image's file. `None` when the row is unreadable.
    pub(in crate::jobs) file: Option<(JobId, OutputFormat)>,
    pub(in crate::jobs) result_bytes: u64,
    finished_at_ms: i64,
}

/// Position in the list of ended jobs, oldest first.
pub(in crate::jobs) struct EndedCursor {
    finished_at_ms: i64,
    row_id: String,
}

impl EndedCursor {
    /// Before the first.
    pub(in crate::jobs) const START: Self = Self { finished_at_ms: i64::MIN, row_id: String::new() };
}

impl EndedJob {
    /// Its position.
    pub(in crate::jobs) fn cursor(&self) -> EndedCursor {
        EndedCursor { finished_at_ms: self.finished_at_ms, row_id: self.row_id.clone() }
    }
}

#[derive(FromRow)]
struct EndedRow {
    id: String,
    output_format: String,
    result_bytes: Option<i64>,
    finished_at_ms: i64,
}

impl EndedRow {
    fn read(self) -> EndedJob {
        EndedJob {
            file: self.id.parse().ok().zip(self.output_format.parse().ok()),
            row_id: self.id,
            result_bytes: self.result_bytes.unwrap_or(0).cast_unsigned(),
            finished_at_ms: self.finished_at_ms,
        }
    }
}

impl JobStore {
    /// When the last job ended.
    pub(in crate::jobs) async fn last_end(&self) -> Result<Option<OffsetDateTime>, JobsError> {
        let last: Option<i64> =
            sqlx::query_scalar("SELECT MAX(finished_at_ms) FROM jobs WHERE finished_at_ms IS NOT NULL")
                .fetch_one(self.store.pool())
                .await?;
        let moment = |at: i64| OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000).ok();
        Ok(last.and_then(moment))
    }

    /// Total size of all stored images.
    pub(in crate::jobs) async fn result_bytes(&self) -> Result<u64, JobsError> {
        let bytes: i64 = sqlx::query_scalar("SELECT COALESCE(SUM(result_bytes), 0) FROM jobs WHERE result_bytes > 0")
            .fetch_one(self.store.pool())
            .await?;
        Ok(bytes.cast_unsigned())
    }

    /// Jobs that ended before `cutoff`, the oldest first.
    pub(in crate::jobs) async fn ended_before(
        &self,
        cutoff: OffsetDateTime,
        after: &EndedCursor,
        jobs_max: u32,
    ) -> Result<Vec<EndedJob>, JobsError> {
        let rows: Vec<EndedRow> = sqlx::query_as(
            "SELECT id, output_format, result_bytes, finished_at_ms FROM jobs
             WHERE finished_at_ms < ? AND (finished_at_ms, id) > (?, ?) ORDER BY finished_at_ms, id LIMIT ?",
        )
        .bind(milliseconds(cutoff))
        .bind(after.finished_at_ms)
        .bind(&after.row_id)
        .bind(jobs_max)
        .fetch_all(self.store.pool())
        .await?;
        Ok(rows.into_iter().map(EndedRow::read).collect())
    }

    /// Jobs that still have their images, the oldest first.
    pub(in crate::jobs) async fn with_images(
        &self,
        after: &EndedCursor,
        jobs_max: u32,
    ) -> Result<Vec<EndedJob>, JobsError> {
        let rows: Vec<EndedRow> = sqlx::query_as(
            "SELECT id, output_format, result_bytes, finished_at_ms FROM jobs
             WHERE result_bytes > 0 AND (finished_at_ms, id) > (?, ?) ORDER BY finished_at_ms, id LIMIT ?",
        )
        .bind(after.finished_at_ms)
        .bind(&after.row_id)
        .bind(jobs_max)
        .fetch_all(self.store.pool())
        .await?;
        Ok(rows.into_iter().map(EndedRow::read).collect())
    }

    /// Ended jobs older than the `kept` newest ones of their owner.
    pub(in crate::jobs) async fn beyond_share(
        &self,
        kept: u32,
        after: &EndedCursor,
        jobs_max: u32,
    ) -> Result<Vec<EndedJob>, JobsError> {
        let rows: Vec<EndedRow> = sqlx::query_as(
            "SELECT id, output_format, result_bytes, finished_at_ms FROM (
                 SELECT id, output_format, result_bytes, finished_at_ms,
                        row_number() OVER (PARTITION BY owner ORDER BY id DESC) AS place
                 FROM jobs WHERE finished_at_ms IS NOT NULL)
             WHERE place > ? AND (finished_at_ms, id) > (?, ?) ORDER BY finished_at_ms, id LIMIT ?",
        )
        .bind(kept)
        .bind(after.finished_at_ms)
        .bind(&after.row_id)
        .bind(jobs_max)
        .fetch_all(self.store.pool())
        .await?;
        Ok(rows.into_iter().map(EndedRow::read).collect())
    }

    /// The images of these jobs.
    pub(in crate::jobs) async fn images_of(&self, ids: &[JobId]) -> Result<HashSet<(JobId, OutputFormat)>, JobsError> {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT id, output_format FROM jobs
             WHERE status = 'succeeded' AND result_bytes > 0 AND id IN (SELECT value FROM json_each(?))",
        )
        .bind(serde_json::to_string(&ids).expect("words are plain data"))
        .fetch_all(self.store.pool())
        .await?;
        Ok(rows.iter().filter_map(|(id, format)| id.parse().ok().zip(format.parse().ok())).collect())
    }

    /// Notes that the image's file is gone; the job stays.
    pub(in crate::jobs) async fn note_image_gone(&self, row_id: &str) -> Result<(), JobsError> {
        sqlx::query("UPDATE jobs SET result_bytes = 0 WHERE id = ? AND result_bytes IS NOT NULL")
            .bind(row_id)
            .execute(self.store.pool())
            .await?;
        Ok(())
    }

    pub(in crate::jobs) async fn delete(&self, row_id: &str) -> Result<(), JobsError> {
        sqlx::query("DELETE FROM jobs WHERE id = ?").bind(row_id).execute(self.store.pool()).await?;
        Ok(())
    }
}
