//! Rows dated in the future by a clock that was ahead. They would be kept until the clock gets there.

use time::OffsetDateTime;

use super::{JobStore, milliseconds};
use crate::domain::usage::Day;
use crate::jobs::JobsError;

impl JobStore {
    /// Redates what is dated later than `future_begins` to `now`, so that its retention starts now.
    pub(in crate::jobs) async fn pull_back(
        &self,
        future_begins: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), JobsError> {
        sqlx::query(
            "UPDATE jobs SET finished_at_ms = ?1, started_at_ms = min(started_at_ms, ?1),
                             created_at_ms = min(created_at_ms, ?1)
             WHERE finished_at_ms > ?2",
        )
        .bind(milliseconds(now))
        .bind(milliseconds(future_begins))
        .execute(self.store.pool())
        .await?;
        sqlx::query("UPDATE idempotency_keys SET created_at_ms = ?1 WHERE created_at_ms > ?2")
            .bind(milliseconds(now))
            .bind(milliseconds(future_begins))
            .execute(self.store.pool())
            .await?;
        self.pull_work_back(Day::of(future_begins), Day::of(now)).await
    }

    /// Moves future usage to yesterday: it counts, but against no allowance of today or later.
    async fn pull_work_back(&self, last: Day, today: Day) -> Result<(), JobsError> {
        let mut transaction = self.store.pool().begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "INSERT INTO work_by_day (owner, day, project, model, jobs, images, pixel_steps, engine_microseconds)
             SELECT owner, ?1, project, model, SUM(jobs), SUM(images), SUM(pixel_steps), SUM(engine_microseconds)
             FROM work_by_day
             WHERE day > ?2 GROUP BY owner, project, model
             ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs,
                                       images = images + excluded.images,
                                       pixel_steps = pixel_steps + excluded.pixel_steps,
                                       engine_microseconds = engine_microseconds + excluded.engine_microseconds",
        )
        .bind(today.before(1).number())
        .bind(last.number())
        .execute(&mut *transaction)
        .await?;
        sqlx::query("DELETE FROM work_by_day WHERE day > ?").bind(last.number()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }
}
