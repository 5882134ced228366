//! Links to images that need no key: signed with a keyed hash over the job and the expiry.
//!
//! The secret is a file of its own, not part of the database. Replacing it invalidates all earlier links: see
//! [`rotate_link_secret`].

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::domain::ids::JobId;
use crate::store::secret_file::{Secret, read_secret, write_new_secret};

/// Replaces the secret behind links, or creates the first. A running worker uses it from the next link on.
///
/// # Errors
/// When the file cannot be written; then the old one stays.
pub fn rotate_link_secret(path: &Path) -> io::Result<()> {
    write_new(path).map(drop)
}

/// The two parameters of a link that replace a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultLink {
    /// Seconds since 1970, UTC, after which the link is refused.
    pub expires: i64,
    /// 64 hexadecimal digits.
    pub signature: String,
}

/// Signs and verifies links.
#[derive(Clone)]
pub(super) struct LinkSigner {
    path: PathBuf,
    life: time::Duration,
    known: Arc<Mutex<(Option<Version>, Secret)>>,
}

/// Identifies the file that a secret was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    modified_at: Option<SystemTime>,
    #[cfg(unix)]
    inode: u64,
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            modified_at: metadata.modified().ok(),
            #[cfg(unix)]
            inode: std::os::unix::fs::MetadataExt::ino(metadata),
        }
    }
}

impl LinkSigner {
    /// A signer for links that live at most `life`, with the secret in a file that is created if missing.
    pub(super) fn open(path: PathBuf, life: time::Duration) -> io::Result<Self> {
        let known = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => write_new(&path)?,
            read => read?,
        };
        Ok(Self { path, life, known: Arc::new(Mutex::new(known)) })
    }

    /// The current secret; costs one `stat` unless the file was replaced. While it cannot be read, the last one is
    /// used, so that a failure does not break all links.
    fn secret(&self) -> Secret {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let version = fs::metadata(&self.path).map(|metadata| Version::of(&metadata));
        match version {
            Ok(version) if known.0 == Some(version) => {}
            Ok(_) => match read(&self.path) {
                Ok(new) => *known = new,
                Err(error) => tracing::warn!(%error, "the link secret cannot be read"),
            },
            // Removing the file withdraws all links.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match write_new(&self.path) {
                Ok(new) => *known = new,
                Err(error) => tracing::warn!(%error, "the link secret is gone, and a new one cannot be written"),
            },
            Err(error) => tracing::warn!(%error, "the link secret's file cannot be examined"),
        }
        known.1.clone()
    }

    fn hash(&self, id: JobId, expires: i64) -> blake3::Hash {
        blake3::keyed_hash(&self.secret(), format!("result {id} until {expires}").as_bytes())
    }

    /// A link that is valid until its life or the image's retention ends, whichever is first.
    pub(super) fn sign(&self, id: JobId, image_ends: OffsetDateTime, now: OffsetDateTime) -> ResultLink {
        let expires = image_ends.min(now + self.life).unix_timestamp();
        ResultLink { expires, signature: self.hash(id, expires).to_hex().to_string() }
    }

    /// Whether a link was signed here for this job and is still valid. Compares in constant time.
    pub(super) fn accepts(&self, id: JobId, link: &ResultLink, now: OffsetDateTime) -> bool {
        let Ok(presented) = blake3::Hash::from_hex(&link.signature) else {
            return false;
        };
        let (now, life) = (now.unix_timestamp(), self.life.whole_seconds());
        // Rejects links signed while the clock was ahead. Twice the life: less would break valid links when the clock
        // is corrected.
        let is_of_its_time = (now..=now.saturating_add(life.saturating_mul(2))).contains(&link.expires);
        presented == self.hash(id, link.expires) && is_of_its_time
    }
}

fn read(path: &Path) -> io::Result<(Option<Version>, Secret)> {
    let file = File::open(path)?;
    let version = Version::of(&file.metadata()?);
    let secret = read_secret(&file, || {
        format!("`{}` is not a link secret: remove it to have a new one created", path.display())
    })?;
    Ok((Some(version), secret))
}

fn write_new(path: &Path) -> io::Result<(Option<Version>, Secret)> {
    let secret = write_new_secret(path)?;
    Ok((Some(Version::of(&fs::metadata(path)?)), secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: time::Duration = time::Duration::HOUR;

    #[test]
    fn a_link_opens_one_job_until_it_expires() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let signer = LinkSigner::open(folder.path().join("links.secret"), LIFE).expect("a new secret");
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::days(1);
        let (job, other) = (JobId::generate(), JobId::generate());
        let link = signer.sign(job, now + time::Duration::DAY, now);
        assert!(signer.accepts(job, &link, now));
        assert!(!signer.accepts(other, &link, now));
        assert!(!signer.accepts(job, &link, now + time::Duration::hours(2)));
        let of_a_short_life = signer.sign(job, now + time::Duration::minutes(1), now);
        assert!(!signer.accepts(job, &of_a_short_life, now + time::Duration::minutes(2)), "the image has expired");
        assert!(!signer.accepts(job, &ResultLink { expires: link.expires + 1, ..link.clone() }, now));
        let stranger = LinkSigner::open(folder.path().join("another"), LIFE).expect("a new secret");
        assert!(!stranger.accepts(job, &link, now));
        assert!(!signer.accepts(job, &ResultLink { signature: "ä".repeat(32), ..link }, now));
    }

    #[test]
    fn a_link_signed_while_the_clock_was_ahead_is_not_valid_after_the_correction() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let signer = LinkSigner::open(folder.path().join("links.secret"), LIFE).expect("a new secret");
        let (job, now) = (JobId::generate(), OffsetDateTime::UNIX_EPOCH + time::Duration::days(1000));
        let ahead = now + time::Duration::days(400);
        let link = signer.sign(job, ahead + time::Duration::DAY, ahead);
        assert!(signer.accepts(job, &link, ahead) && !signer.accepts(job, &link, now));
        assert!(signer.accepts(job, &link, ahead - time::Duration::minutes(10)), "corrected");
    }

    #[test]
    fn a_new_secret_withdraws_every_link_at_once_and_is_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("links.secret");
        let signer = LinkSigner::open(path.clone(), LIFE).expect("a new secret");
        let (job, now) = (JobId::generate(), OffsetDateTime::UNIX_EPOCH);
        let first = signer.sign(job, now, now);
        let next_life = LinkSigner::open(path.clone(), LIFE).expect("the same secret");
        assert!(next_life.accepts(job, &first, now));
        rotate_link_secret(&path).expect("writable");
        assert!(!signer.accepts(job, &first, now) && !next_life.accepts(job, &first, now));
        let second = signer.sign(job, now, now);
        assert!(next_life.accepts(job, &second, now));
        fs::remove_file(&path).expect("there");
        assert!(!signer.accepts(job, &second, now), "removing the file withdraws links");
        assert!(path.exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
        fs::write(&path, "short").expect("writable");
        assert!(LinkSigner::open(path, LIFE).is_err());
    }
}
