//! Atomic copies of the database: a copy gets its name when it is complete, so a file under that name is a complete
//! database, even after a crash of the machine.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sqlx::SqlitePool;

use super::error::StoreError;
use super::private_file::open_private;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// First bytes of every database file (sqlite.org/fileformat2.html, "The Database Header").
const MAGIC: &[u8] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 32;

/// Copies the database into the new file `path` and returns the copy's size in bytes.
pub(super) async fn write(pool: &SqlitePool, path: &Path) -> Result<u64, StoreError> {
    let failed = |source: Failure| StoreError::Backup { path: path.to_owned(), source };
    let refused = |source| StoreError::Create { path: path.to_owned(), source };
    // SQLite reads a name that begins with `file:` as a URI; an absolute path is always a path.
    let path = std::path::absolute(path).map_err(refused)?;
    // Also refuses a dangling link.
    if fs::symlink_metadata(&path).is_ok() {
        return Err(refused(io::ErrorKind::AlreadyExists.into()));
    }
    let part = Part::make(&path).map_err(|(path, source)| StoreError::Create { path, source })?;
    let name = part.path.to_str().ok_or_else(|| failed("the path is not valid UTF-8".into()))?;
    // SQLite fills an empty file and keeps its permissions.
    sqlx::query("VACUUM INTO ?").bind(name).execute(pool).await.map_err(|error| failed(error.into()))?;
    // Catches a shortened copy, and an empty one because SQLite wrote elsewhere.
    let bytes = complete_bytes(&part.file).map_err(|error| failed(error.into()))?;
    part.file.sync_all().map_err(|error| failed(error.into()))?;
    give_name(&part.path, &path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => refused(error),
        _ => failed(error.into()),
    })?;
    sync_folder_of(&path).map_err(|error| failed(error.into()))?;
    Ok(bytes)
}

/// An incomplete copy, removed when dropped. The leftover of a killed process is replaced.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn make(path: &Path) -> Result<Self, (PathBuf, io::Error)> {
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        let file = remove_stale(&part)
            .and_then(|()| open_private(OpenOptions::new().read(true).write(true).create_new(true), &part))
            .and_then(|file| match file.try_lock() {
                // A file system without locks does not detect two backups to the same name.
                Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
                Err(TryLockError::WouldBlock) => Err(being_filled()),
            });
        match file {
            Ok(file) => Ok(Self { path: part, file }),
            Err(error) => Err((part, error)),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It has its final name by now, or the copy failed. If it stays, the next backup to that name replaces it.
        drop(fs::remove_file(&self.path));
    }
}

fn remove_stale(part: &Path) -> io::Result<()> {
    match fs::symlink_metadata(part) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if metadata.is_file() => {
            if matches!(File::open(part)?.try_lock(), Err(TryLockError::WouldBlock)) {
                return Err(being_filled());
            }
        }
        _ => {}
    }
    fs::remove_file(part)
}

fn being_filled() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "another backup is being written to it")
}

/// The size of a complete file, checked against its header.
fn complete_bytes(mut file: &File) -> io::Result<u64> {
    let mut header = [0; HEADER_BYTES];
    let short = |cause: &str| io::Error::new(io::ErrorKind::UnexpectedEof, format!("the copy is incomplete: {cause}"));
    file.read_exact(&mut header).map_err(|_| short("it is empty"))?;
    let page_bytes = match u64::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => 65_536,
        bytes => bytes,
    };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    let bytes = file.metadata()?.len();
    if !header.starts_with(MAGIC) || pages == 0 || pages * page_bytes != bytes {
        return Err(short(&format!("{bytes} bytes instead of {pages} pages of {page_bytes} bytes")));
    }
    Ok(bytes)
}

/// Gives the copy its name without replacing another file.
fn give_name(part: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(part, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // Without hard links, a file created between the two calls is lost.
        Err(_) if fs::symlink_metadata(path).is_err() => fs::rename(part, path),
        outcome => outcome,
    }
}

/// Syncs the folder, which stores the name.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    if cfg!(unix)
        && let Some(folder) = path.parent()
    {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    async fn opened(folder: &Path) -> Store {
        Store::open(&folder.join("fluxserve.db")).await.expect("opens")
    }

    #[tokio::test]
    async fn an_interrupted_copy_has_no_name_and_does_not_block_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let (copy, part) = (folder.path().join("copy.db"), folder.path().join("copy.db.part"));
        // Interrupted after more and more of its steps, as by a kill.
        for polls in 1..20 {
            let store = opened(folder.path()).await;
            let mut is_done = false;
            {
                let mut copying = std::pin::pin!(store.backup(&copy));
                for _ in 0..polls {
                    is_done = tokio::time::timeout(std::time::Duration::from_millis(1), &mut copying).await.is_ok();
                    if is_done {
                        break;
                    }
                    let is_named = copy.exists();
                    assert!(
                        !is_named || complete_bytes(&File::open(&copy).expect("there")).is_ok(),
                        "named before it is complete"
                    );
                }
            }
            // A killed process stops copying; here SQLite's thread would continue beside the next copy.
            store.close().await;
            if is_done {
                break;
            }
        }
        drop(fs::remove_file(&copy));
        let store = opened(folder.path()).await;
        fs::write(&part, "the leftover of a killed process").expect("written");
        let bytes = store.backup(&copy).await.expect("copied");
        assert_eq!(fs::metadata(&copy).expect("there").len(), bytes);
        assert!(!part.exists());
        Store::open_existing(&copy).await.expect("a database");
    }

    #[tokio::test]
    async fn two_copies_to_one_name_do_not_mix() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = opened(folder.path()).await;
        let copy = folder.path().join("copy.db");
        let other = Part::make(&copy).expect("made");
        assert!(matches!(store.backup(&copy).await, Err(StoreError::Create { .. })));
        assert!(other.path.exists() && !copy.exists());
        drop(other);
        store.backup(&copy).await.expect("copied");
    }

    #[tokio::test]
    async fn a_name_that_looks_like_a_uri_is_a_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = opened(folder.path()).await;
        // Relative, as typed by a user, and below the test's own folder.
        let here = std::env::current_dir().expect("a folder");
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let below = folder.path().strip_prefix("/").expect("absolute").to_owned();
        let typed = Path::new("file:.").join("..").join(up).join(below).join("copy.db?mode=memory");
        assert!(store.backup(&typed).await.is_err(), "there is no folder `file:.`");
        let copy = folder.path().join("file:copy.db?mode=memory");
        let bytes = store.backup(&copy).await.expect("copied");
        assert!(bytes > 0 && fs::metadata(&copy).expect("there").len() == bytes);
        let names = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(names, 5, "database, log, index, lock and copy: nothing under another name");
    }

    #[test]
    fn an_empty_or_shortened_copy_is_detected() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("copy.db");
        fs::write(&path, "").expect("written");
        complete_bytes(&File::open(&path).expect("there")).expect_err("empty");
        let mut content = vec![0; 8192];
        content[..16].copy_from_slice(MAGIC);
        content[16..18].copy_from_slice(&4096_u16.to_be_bytes());
        content[28..32].copy_from_slice(&2_u32.to_be_bytes());
        fs::write(&path, &content).expect("written");
        assert_eq!(complete_bytes(&File::open(&path).expect("there")).expect("complete"), 8192);
        fs::write(&path, &content[..4096]).expect("written");
        complete_bytes(&File::open(&path).expect("there")).expect_err("short");
    }
}
