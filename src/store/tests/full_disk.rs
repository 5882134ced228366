//! An acknowledged write is in the file, also after a failed COMMIT.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool};

use crate::store::{Store, StoreError, pool_options};

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_millis(200))
}

/// The rows that another process sees, after checking that it can write.
async fn rows_seen_by_another(path: &Path) -> i64 {
    let mut other: SqliteConnection = options(path).connect().await.expect("another connection");
    sqlx::query("PRAGMA user_version = 3").execute(&mut other).await.expect("others can write");
    let rows = sqlx::query_scalar("SELECT count(*) FROM filled").fetch_one(&mut other).await.expect("others can read");
    other.close().await.expect("closes");
    rows
}

async fn insert(pool: &SqlitePool, bytes: i64) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query("INSERT INTO filled (content) VALUES (zeroblob(?))").bind(bytes).execute(&mut *transaction).await?;
    transaction.commit().await
}

async fn make_table(pool: &SqlitePool) {
    sqlx::query("CREATE TABLE filled (id INTEGER PRIMARY KEY, content BLOB)").execute(pool).await.expect("a table");
}

#[tokio::test]
async fn a_failed_commit_leaves_no_connection_that_loses_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fluxserve.db");
    // A single connection: the failed one is the next in use.
    let pool = pool_options(1).connect_with(options(&path)).await.expect("opens");
    make_table(&pool).await;
    // As SQLite does when a COMMIT fails: the transaction is gone, and sqlx does not know.
    let mut broken = pool.begin().await.expect("begins");
    sqlx::query("ROLLBACK").execute(&mut *broken).await.expect("rolls back");
    broken.commit().await.expect_err("there is nothing to commit");
    // Any later rollback, here of a dropped transaction.
    let mut dropped = pool.begin().await.expect("begins");
    sqlx::query("INSERT INTO filled (content) VALUES (1)").execute(&mut *dropped).await.expect("written");
    drop(dropped);
    for _ in 0..4 {
        insert(&pool, 10).await.expect("committed");
    }
    assert_eq!(rows_seen_by_another(&path).await, 4, "acknowledged writes are stored, dropped ones are not");
}

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` without root.
    fn mount(folder: &Path) -> Option<Self> {
        let path = folder.to_owned();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        println!("skipped: a full disk takes a file system of its own, which only root can mount");
        None
    }

    /// Uses up all free space.
    fn fill(&self) {
        use std::io::Write as _;
        let mut ballast = std::fs::File::create(self.ballast()).expect("a file");
        // To the last page, in smaller and smaller pieces.
        for bytes in [65_536, 4096, 1] {
            while ballast.write_all(&vec![0; bytes]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Connections may still be closing.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn after_a_full_disk_every_acknowledged_write_is_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(folder.path()) else { return };
    let path = folder.path().join("fluxserve.db");
    let store = Store::open(&path).await.expect("opens");
    make_table(store.pool()).await;
    let (mut acknowledged, mut refused) = (0, 0);
    let mut write = async |times: u32| {
        for _ in 0..times {
            // Small enough for the page cache, so that only the COMMIT writes to the disk.
            match insert(store.pool(), 20_000).await {
                Ok(()) => acknowledged += 1,
                Err(_) => refused += 1,
            }
        }
        (acknowledged, refused)
    };
    write(3).await;
    disk.fill();
    let (_, refused_when_full) = write(12).await;
    assert!(refused_when_full > 0, "the disk was full");
    disk.free();
    let (acknowledged, refused) = write(12).await;
    assert_eq!(refused, refused_when_full, "with free space all writes succeed at once");
    assert_eq!(rows_seen_by_another(&path).await, acknowledged);
    store.check_writable().await.expect("writable");
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_has_another_error_than_another_programs_database() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(folder.path()) else { return };
    let path = folder.path().join("fluxserve.db");
    std::fs::write(&path, "").expect("written");
    disk.fill();
    let error = Store::open(&path).await.expect_err("no space");
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("no space"), "{error}");
    disk.free();
    Store::open(&path).await.expect("opens with free space").close().await;
}

#[tokio::test]
async fn the_write_check_detects_a_full_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(folder.path()) else { return };
    let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
    store.truncate_log().await.expect("folded");
    disk.fill();
    store.check_writable().await.expect_err("full");
    disk.free();
    store.check_writable().await.expect("there is space again");
}
