//! Pictures as files, and links to them that need no key.
//!
//! A file is written beside its place and renamed into it, so that a half-written picture is never served. A link is
//! a keyed hash over the job and the moment the link expires; the secret is kept in the database.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;

const UNFINISHED_EXTENSION: &str = "part";

/// The folder of pictures. Its functions block; async callers take them off their threads.
#[derive(Debug, Clone)]
pub(super) struct ResultFiles {
    directory: PathBuf,
}

impl ResultFiles {
    /// Makes the folder, and removes what a crash left half written.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        make_private(directory)?;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == UNFINISHED_EXTENSION) {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { directory: directory.to_owned() })
    }

    pub(super) fn path(&self, id: JobId, format: OutputFormat) -> PathBuf {
        self.directory.join(format!("{id}.{}", format.extension()))
    }

    /// Writes a picture that survives a crash of the machine once this has returned.
    pub(super) fn write(&self, id: JobId, format: OutputFormat, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.directory.join(format!("{id}.{UNFINISHED_EXTENSION}"));
        let written = create_private(&unfinished).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        if let Err(error) = written.and_then(|()| fs::rename(&unfinished, self.path(id, format))) {
            // Where the disk is full, the half-written file is what fills it.
            drop(fs::remove_file(&unfinished));
            return Err(error);
        }
        File::open(&self.directory)?.sync_all()
    }

    /// Removes a picture; one that is not there is fine.
    pub(super) fn remove(&self, id: JobId, format: OutputFormat) -> io::Result<()> {
        match fs::remove_file(self.path(id, format)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Makes the folder for this user alone; one that is there and open to others is closed to them.
fn make_private(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        builder.mode(0o700);
        builder.create(directory)?;
        let is_open = fs::metadata(directory)?.permissions().mode() & 0o077 != 0;
        if is_open && let Err(error) = fs::set_permissions(directory, fs::Permissions::from_mode(0o700)) {
            // Of another user, perhaps a mounted volume. Its pictures are private all the same.
            tracing::warn!(%error, folder = %directory.display(), "others on this machine may list the results");
        }
        Ok(())
    }
    #[cfg(not(unix))]
    builder.create(directory)
}

/// Makes a file for this user alone.
fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The two parameters that stand for a key on a link to one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultLink {
    /// Seconds since 1970, UTC, after which the link is refused.
    pub expires: i64,
    /// 64 hexadecimal digits.
    pub signature: String,
}

/// Makes and checks links.
#[derive(Clone)]
pub(super) struct LinkSigner {
    secret: [u8; 32],
}

impl LinkSigner {
    pub(super) fn new(secret: [u8; 32]) -> Self {
        Self { secret }
    }

    fn hash(&self, id: JobId, expires: i64) -> blake3::Hash {
        blake3::keyed_hash(&self.secret, format!("result {id} until {expires}").as_bytes())
    }

    pub(super) fn sign(&self, id: JobId, expires: OffsetDateTime) -> ResultLink {
        let expires = expires.unix_timestamp();
        ResultLink { expires, signature: self.hash(id, expires).to_hex().to_string() }
    }

    /// Whether a link was made here for this job and is still good. Compares in constant time.
    pub(super) fn accepts(&self, id: JobId, link: &ResultLink, now: OffsetDateTime) -> bool {
        let Ok(presented) = blake3::Hash::from_hex(&link.signature) else {
            return false;
        };
        presented == self.hash(id, link.expires) && now.unix_timestamp() <= link.expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_one_job_until_it_expires() {
        let signer = LinkSigner::new([7; 32]);
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(1);
        let (job, other) = (JobId::generate(), JobId::generate());
        let link = signer.sign(job, now + time::Duration::hours(1));
        assert!(signer.accepts(job, &link, now));
        assert!(!signer.accepts(other, &link, now));
        assert!(!signer.accepts(job, &link, now + time::Duration::hours(2)));
        assert!(!signer.accepts(job, &ResultLink { expires: link.expires + 1, ..link.clone() }, now));
        assert!(!LinkSigner::new([8; 32]).accepts(job, &link, now));
        assert!(!signer.accepts(job, &ResultLink { signature: "ä".repeat(32), ..link }, now));
    }

    #[cfg(unix)]
    #[test]
    fn pictures_are_this_users_alone_even_where_the_folder_was_open() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = folder.path().join("results");
        fs::create_dir(&directory).expect("writable");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("ours");
        let files = ResultFiles::open(&directory).expect("a usable folder");
        let id = JobId::generate();
        files.write(id, OutputFormat::Png, b"whole").expect("writable");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&files.path(id, OutputFormat::Png))), (0o700, 0o600));
    }

    #[test]
    fn files_appear_whole_and_leftovers_go() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("job_x.part"), b"half").expect("writable");
        let files = ResultFiles::open(folder.path()).expect("a usable folder");
        assert!(!folder.path().join("job_x.part").exists());
        let id = JobId::generate();
        files.write(id, OutputFormat::Png, b"whole").expect("writable");
        assert_eq!(fs::read(files.path(id, OutputFormat::Png)).expect("there"), b"whole");
        files.remove(id, OutputFormat::Png).expect("removable");
        files.remove(id, OutputFormat::Png).expect("not there is fine");
    }
}
