//! All statements on the table `job_start_images`.

use sqlx::SqliteConnection;

use super::JobStore;
use crate::domain::ids::JobId;
use crate::jobs::JobsError;

/// Stores a job's input image.
pub(super) async fn insert(connection: &mut SqliteConnection, id: JobId, image: &[u8]) -> Result<(), JobsError> {
    sqlx::query("INSERT INTO job_start_images (job_id, picture) VALUES (?, ?)")
        .bind(id.to_string())
        .bind(image)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes a job's input image, if there is one.
pub(super) async fn delete(connection: &mut SqliteConnection, row_id: &str) -> Result<(), JobsError> {
    sqlx::query("DELETE FROM job_start_images WHERE job_id = ?").bind(row_id).execute(connection).await?;
    Ok(())
}

impl JobStore {
    /// The input image of an unfinished job, PNG.
    pub(in crate::jobs) async fn input_image(&self, id: JobId) -> Result<Option<Vec<u8>>, JobsError> {
        let image = sqlx::query_scalar("SELECT picture FROM job_start_images WHERE job_id = ?")
            .bind(id.to_string())
            .fetch_optional(self.store.pool())
            .await?;
        Ok(image)
    }
}
