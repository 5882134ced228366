//! Check that the database takes writes: a write of a job's size in a transaction, read by another connection. A smaller one
//! may fit on a full disk, and a write that only the writer sees is not stored.

use sqlx::SqlitePool;
use uuid::Uuid;

use super::error::StoreError;

/// About the size of a job with a small input image.
const CONTENT_BYTES: usize = 64 * 1024;
/// Attempts: another process's concurrent check may overwrite the content.
const TRIES: u32 = 3;

/// Runs the check. `pool` has more than one connection, unless the database is in memory.
pub(super) async fn check(pool: &SqlitePool) -> Result<(), StoreError> {
    for _ in 0..TRIES {
        let content = Uuid::new_v4().as_bytes().repeat(CONTENT_BYTES / size_of::<Uuid>());
        let mut writer = pool.acquire().await?;
        let mut transaction = sqlx::Connection::begin(&mut *writer).await?;
        let statement = "INSERT INTO write_checks (only_row, content) VALUES (1, ?) \
                         ON CONFLICT DO UPDATE SET content = excluded.content";
        sqlx::query(statement).bind(&content).execute(&mut *transaction).await?;
        transaction.commit().await?;
        let select = sqlx::query_scalar("SELECT content FROM write_checks");
        let seen: Vec<u8> = if pool.options().get_max_connections() > 1 {
            // The writer is not back in the pool yet, so this is another connection.
            let mut reader = pool.acquire().await?;
            select.fetch_one(&mut *reader).await?
        } else {
            select.fetch_one(&mut *writer).await?
        };
        if seen == content {
            return Ok(());
        }
    }
    Err(StoreError::NotSeen)
}
