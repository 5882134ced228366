//! All statements on the table `work_by_day`.

use std::time::Duration;

use sqlx::SqliteConnection;

use super::JobStore;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, Work};
use crate::jobs::JobsError;

/// Adds to an owner's usage of a day.
pub(super) async fn add(
    connection: &mut SqliteConnection,
    owner: KeyId,
    day: Day,
    work: &Work,
) -> Result<(), JobsError> {
    sqlx::query(
        "INSERT INTO work_by_day (owner, day, images, pixel_steps, engine_microseconds) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET images = images + excluded.images,
                                   pixel_steps = pixel_steps + excluded.pixel_steps,
                                   engine_microseconds = engine_microseconds + excluded.engine_microseconds",
    )
    .bind(owner.to_string())
    .bind(day.number())
    .bind(work.images.cast_signed())
    .bind(work.pixel_steps.cast_signed())
    .bind(i64::try_from(work.engine_time.as_micros()).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(())
}

impl JobStore {
    /// An owner's usage by day since `since`; days without usage are left out.
    pub(in crate::jobs) async fn work_by_day(&self, owner: KeyId, since: Day) -> Result<Vec<(Day, Work)>, JobsError> {
        let rows: Vec<(i32, i64, i64, i64)> = sqlx::query_as(
            "SELECT day, images, pixel_steps, engine_microseconds FROM work_by_day
             WHERE owner = ? AND day >= ? ORDER BY day",
        )
        .bind(owner.to_string())
        .bind(since.number())
        .fetch_all(self.store.pool())
        .await?;
        let read = |(day, images, pixel_steps, engine_microseconds): (i32, i64, i64, i64)| {
            let work = Work {
                images: images.cast_unsigned(),
                pixel_steps: pixel_steps.cast_unsigned(),
                engine_time: Duration::from_micros(engine_microseconds.cast_unsigned()),
            };
            (Day::from_number(day), work)
        };
        Ok(rows.into_iter().map(read).collect())
    }

    /// Deletes usage before `day`.
    pub(in crate::jobs) async fn delete_work_before(&self, day: Day) -> Result<(), JobsError> {
        sqlx::query("DELETE FROM work_by_day WHERE day < ?").bind(day.number()).execute(self.store.pool()).await?;
        Ok(())
    }
}
