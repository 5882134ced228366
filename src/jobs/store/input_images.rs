//! All statements on the table `job_images`: the images of unfinished jobs.

use sqlx::SqliteConnection;

use super::JobStore;
use crate::domain::ids::JobId;
use crate::jobs::JobsError;

/// Stores a job's images, in their order.
pub(super) async fn insert(connection: &mut SqliteConnection, id: JobId, images: &[Vec<u8>]) -> Result<(), JobsError> {
    for (position, image) in (0_i64..).zip(images) {
        sqlx::query("INSERT INTO job_images (job_id, position, image) VALUES (?, ?, ?)")
            .bind(id.to_string())
            .bind(position)
            .bind(image.as_slice())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Deletes a job's images, if there are any.
pub(super) async fn delete(connection: &mut SqliteConnection, row_id: &str) -> Result<(), JobsError> {
    sqlx::query("DELETE FROM job_images WHERE job_id = ?").bind(row_id).execute(connection).await?;
    Ok(())
}

impl JobStore {
    /// The images of an unfinished job, PNG, in their order.
    pub(in crate::jobs) async fn input_images(&self, id: JobId) -> Result<Vec<Vec<u8>>, JobsError> {
        let images = sqlx::query_scalar("SELECT image FROM job_images WHERE job_id = ? ORDER BY position")
            .bind(id.to_string())
            .fetch_all(self.store.pool())
            .await?;
        Ok(images)
    }
}
