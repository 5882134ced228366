//! The database as its users see it, sound and broken.

mod full_disk;

use std::time::Instant;

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
async fn a_backup_is_complete_private_and_replaces_no_file() {
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
async fn a_missing_database_is_not_created_for_readers() {
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
async fn a_database_that_cannot_be_written_is_detected() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    let store = Store::open(&path).await.expect("opens");
    store.check_writable().await.expect("writable");
    // Space for a page or two, but not for a job: as on an almost full disk.
    let pages = "SELECT page_count + 2 FROM pragma_page_count";
    let pages: i64 = sqlx::query_scalar(pages).fetch_one(store.pool()).await.expect("counted");
    sqlx::query("DELETE FROM write_checks").execute(store.pool()).await.expect("deleted");
    sqlx::query("VACUUM").execute(store.pool()).await.expect("packed");
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut connection = store.pool().acquire().await.expect("a connection");
        let pages = format!("PRAGMA max_page_count = {}", pages - 16);
        sqlx::query(sqlx::AssertSqlSafe(pages)).execute(&mut *connection).await.expect("set");
        held.push(connection);
    }
    // A write of one page still goes through.
    sqlx::query("PRAGMA user_version = 1").execute(&mut *held[0]).await.expect("written");
    drop(held);
    assert!(matches!(store.check_writable().await, Err(StoreError::Query(_))));
}

#[tokio::test]
async fn failing_commits_are_detected_and_leave_the_database_sound() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
    store.check_writable().await.expect("writable");
    // Every statement succeeds, and a deferred constraint fails at the end of the transaction.
    let outage =
        "CREATE TABLE outages (parent INTEGER REFERENCES write_checks (only_row) DEFERRABLE INITIALLY DEFERRED);
                  CREATE TRIGGER outage AFTER UPDATE ON write_checks BEGIN INSERT INTO outages VALUES (2); END";
    sqlx::raw_sql(outage).execute(store.pool()).await.expect("made");
    for _ in 0..4 {
        let failure = store.check_writable().await.expect_err("nothing is written");
        assert!(
            matches!(&failure, StoreError::Query(error) if error.to_string().contains("FOREIGN KEY")),
            "{failure:?}"
        );
    }
    sqlx::query("DROP TRIGGER outage").execute(store.pool()).await.expect("no connection holds the database");
    store.check_writable().await.expect("writable again");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM outages").fetch_one(store.pool()).await.expect("counted");
    assert_eq!(rows, 0, "nothing uncommitted is stored");
}

#[tokio::test]
async fn a_write_that_only_the_writer_sees_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut connection = store.pool().acquire().await.expect("a connection");
        // What it writes stays with it.
        let shadow = "CREATE TEMP TABLE write_checks (only_row INTEGER PRIMARY KEY, content BLOB NOT NULL)";
        sqlx::query(shadow).execute(&mut *connection).await.expect("made");
        sqlx::query("INSERT INTO write_checks VALUES (1, x'00')").execute(&mut *connection).await.expect("written");
        held.push(connection);
    }
    drop(held);
    assert!(matches!(store.check_writable().await, Err(StoreError::NotSeen)));
}

#[tokio::test]
async fn deleted_data_is_gone_from_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    let store = Store::open(&path).await.expect("opens");
    let secret = "a prompt that must not stay readable after ".repeat(500);
    sqlx::query("INSERT INTO write_checks (only_row, content) VALUES (1, CAST(? AS BLOB))")
        .bind(&secret)
        .execute(store.pool())
        .await
        .expect("written");
    let is_readable = || {
        ["fluxserve.db", "fluxserve.db-wal"].iter().any(|name| {
            let bytes = std::fs::read(folder.path().join(name)).expect("readable");
            bytes.windows(40).any(|window| window == &secret.as_bytes()[..40])
        })
    };
    assert!(is_readable());
    assert!(store.truncate_log().await.expect("folded"), "into the file");
    sqlx::query("DELETE FROM write_checks").execute(store.pool()).await.expect("deleted");
    assert!(store.truncate_log().await.expect("folded"));
    assert!(!is_readable());
    assert_eq!(std::fs::metadata(folder.path().join("fluxserve.db-wal")).expect("there").len(), 0);
    let limit = "SELECT CAST(journal_size_limit AS TEXT) FROM pragma_journal_size_limit";
    assert_eq!(pragma(&store, limit).await, LOG_BYTES_KEPT_MAX.to_string());
}

#[tokio::test]
async fn a_log_with_a_reader_is_not_truncated() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    let store = Store::open(&path).await.expect("opens");
    let mut reading = store.pool().begin().await.expect("begins");
    sqlx::query("SELECT count(*) FROM jobs").fetch_one(&mut *reading).await.expect("read");
    store.check_writable().await.expect("writes");
    let asked_at = Instant::now();
    assert!(!store.truncate_log().await.expect("no failure"));
    // Nobody can write meanwhile, so it gives up long before a writer would.
    assert!(asked_at.elapsed() < Duration::from_secs(BUSY_TIMEOUT_SECONDS) / 2, "{:?}", asked_at.elapsed());
    for _ in 0..CONNECTIONS_MAX {
        let waits = pragma(&store, "SELECT CAST(timeout AS TEXT) FROM pragma_busy_timeout").await;
        assert_eq!(waits, (BUSY_TIMEOUT_SECONDS * 1000).to_string(), "as long as before");
    }
    reading.rollback().await.expect("ends");
    assert!(store.truncate_log().await.expect("folded"));
}

#[tokio::test]
async fn concurrent_first_starts_all_find_their_tables() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    let starts: Vec<_> = (0..6)
        .map(|_| {
            tokio::spawn({
                let path = path.clone();
                async move { Store::open(&path).await }
            })
        })
        .collect();
    for start in starts {
        let store = start.await.expect("no panic").expect("opens");
        store.check_writable().await.expect("writable");
    }
}

#[tokio::test]
async fn an_empty_file_is_no_database_for_readers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    std::fs::write(&path, "").expect("written");
    assert!(matches!(Store::open_existing(&path).await, Err(StoreError::Blank { .. })));
    // A worker that was killed early leaves the same file, and has to start again.
    Store::open(&path).await.expect("creates its tables").close().await;
    Store::open_existing(&path).await.expect("a database");
}

#[tokio::test]
async fn each_reason_for_an_unusable_database_has_its_own_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    let store = Store::open(&path).await.expect("opens");
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', TRUE, x'00', 0)";
    sqlx::query(newer).execute(store.pool()).await.expect("inserted");
    store.close().await;
    let error = Store::open(&path).await.expect_err("of a newer program");
    assert!(
        matches!(error, StoreError::OtherProgram { .. }) && error.to_string().contains("another version"),
        "{error}"
    );

    let damaged = folder.path().join("damaged.db");
    Store::open(&damaged).await.expect("opens").close().await;
    let mut bytes = std::fs::read(&damaged).expect("readable");
    // The root of the schema: page 1, behind the file's header.
    bytes[100..400].fill(0xff);
    std::fs::write(&damaged, bytes).expect("written");
    let error = Store::open(&damaged).await.expect_err("damaged");
    assert!(matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("damaged"), "{error}");

    let locked = folder.path().join("locked.db");
    let holder = migration::MigrationLock::take(&locked).await.expect("free");
    let waiting = tokio::time::timeout(Duration::from_millis(200), Store::open(&locked)).await;
    assert!(waiting.is_err(), "waits for the other one");
    drop(holder);
    Store::open(&locked).await.expect("opens");
}
