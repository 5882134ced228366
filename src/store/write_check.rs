//! Whether the database takes writes: a write of the size that jobs have, in a transaction, found again by another
//! connection. A smaller one fits into what a full disk has left, and what only the writer sees is not written.

use sqlx::SqlitePool;
use uuid::Uuid;

use super::StoreError;

/// About what a job takes that starts from a small image.
const CONTENT_BYTES: usize = 64 * 1024;
/// Another process that checks at the same moment may write over what is looked for.
const TRIES: u32 = 3;

/// Writes and looks. `pool` has more than one connection, unless the database is in memory.
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
            // The writer is not back in the pool yet, so this is another one.
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
