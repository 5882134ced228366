//! The database as its users see it, whole and broken.

mod full_disk;

use super::*;

async fn pragma(store: &Store, query: &'static str) -> String {
    let row: (String,) = sqlx::query_as(query).fetch_one(store.pool()).await.expect("a pragma");
    row.0
}

#[tokio::test]
async fn a_new_database_is_private_and_keeps_a_write_ahead_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("data/fluxserve.db");
    let store = Store::open(&path).await.expect("opens");
    store.check_writable().await.expect("writable");
    assert_eq!(pragma(&store, "SELECT journal_mode FROM pragma_journal_mode").await, "wal");
    assert_eq!(pragma(&store, "SELECT CAST(foreign_keys AS TEXT) FROM pragma_foreign_keys").await, "1");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&folder.path().join("data/fluxserve.db-wal")), 0o600);
        assert_eq!(mode(&folder.path().join("data")), 0o700);
    }
}

#[tokio::test]
async fn a_backup_is_whole_private_and_never_over_another_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
    let sql = "INSERT INTO result_link_secret (only_row, secret) VALUES (1, zeroblob(32))";
    sqlx::query(sql).execute(store.pool()).await.expect("written");
    let copy = folder.path().join("copy.db");
    let bytes = store.backup(&copy).await.expect("copied");
    assert_eq!(std::fs::metadata(&copy).expect("there").len(), bytes);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&copy).expect("there").permissions().mode() & 0o777, 0o600);
    }
    let before = std::fs::read(&copy).expect("readable");
    assert!(matches!(store.backup(&copy).await, Err(StoreError::Create { .. })));
    assert_eq!(std::fs::read(&copy).expect("readable"), before);
    let restored = Store::open_existing(&copy).await.expect("a database");
    assert_eq!(pragma(&restored, "SELECT hex(secret) FROM result_link_secret").await, "00".repeat(32));

    store.close().await;
    let never = folder.path().join("never.db");
    assert!(matches!(store.backup(&never).await, Err(StoreError::Backup { .. })));
    assert!(!never.exists(), "nothing is left of a copy that failed");
}

#[tokio::test]
async fn opening_twice_migrates_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    Store::open(&path).await.expect("opens").close().await;
    Store::open_existing(&path).await.expect("opens again");
}

#[tokio::test]
async fn a_missing_database_is_not_made_for_readers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    let error = Store::open_existing(&path).await.expect_err("nothing is there");
    assert!(matches!(error, StoreError::Missing { .. }));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_with_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    std::fs::write(&path, "not a database, only a text that is long enough to be looked at".repeat(20))
        .expect("written");
    let error = Store::open(&path).await.expect_err("no database");
    assert!(error.to_string().contains("fluxserve.db"), "{error}");
}

#[tokio::test]
async fn a_database_that_cannot_be_written_is_noticed() {
    let store = Store::open_in_memory().await.expect("opens");
    store.check_writable().await.expect("writable");
    sqlx::query("PRAGMA query_only = ON").execute(store.pool()).await.expect("set");
    assert!(matches!(store.check_writable().await, Err(StoreError::Query(_))));
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    let store = Store::open(&path).await.expect("opens");
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', TRUE, x'00', 0)";
    sqlx::query(newer).execute(store.pool()).await.expect("inserted");
    store.close().await;
    assert!(matches!(Store::open(&path).await, Err(StoreError::Migrate(_))));
}
