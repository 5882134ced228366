//! All statements on the table `job_loras`: the LoRAs of unfinished jobs, which cannot be removed.

use std::collections::BTreeSet;

use sqlx::SqliteConnection;

use crate::domain::ids::JobId;
use crate::jobs::{JobsError, LoraText, RequestedLora};

/// Stores which LoRAs a job uses. Fails when one has been removed.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    job: JobId,
    loras: &[RequestedLora],
) -> Result<(), JobsError> {
    // One may be there several times.
    let ids: BTreeSet<_> = loras.iter().map(|RequestedLora { id: LoraText(id), .. }| id).collect();
    for id in ids {
        sqlx::query("INSERT INTO job_loras (job_id, lora_id) VALUES (?, ?)")
            .bind(job.to_string())
            .bind(id.as_str())
            .execute(&mut *connection)
            .await
            .map_err(|error| match &error {
                sqlx::Error::Database(cause) if cause.is_foreign_key_violation() => JobsError::LoraGone(id.clone()),
                _ => error.into(),
            })?;
    }
    Ok(())
}

/// Lets go the LoRAs of a job that ends.
pub(super) async fn delete(connection: &mut SqliteConnection, row_id: &str) -> Result<(), JobsError> {
    sqlx::query("DELETE FROM job_loras WHERE job_id = ?").bind(row_id).execute(connection).await?;
    Ok(())
}
