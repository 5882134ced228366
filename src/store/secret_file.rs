//! Files with a secret of random bytes that only this user can read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::private_file::open_private;

/// Length of a secret, in bytes.
pub const SECRET_BYTES: usize = 32;

/// A secret.
pub type Secret = Zeroizing<[u8; SECRET_BYTES]>;

/// Reads a secret. `what_is_wrong` describes a file of another length.
///
/// # Errors
/// When the file cannot be read or has another length.
pub fn read_secret(file: &File, what_is_wrong: impl FnOnce() -> String) -> io::Result<Secret> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + 1));
    file.take(SECRET_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let secret = <[u8; SECRET_BYTES]>::try_from(&bytes[..]);
    Ok(Zeroizing::new(secret.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, what_is_wrong()))?))
}

/// Writes a new secret in place of what is there, atomically, and returns it.
///
/// # Errors
/// When there are no random bytes, or the file cannot be written; then what was there stays.
pub fn write_new_secret(path: &Path) -> io::Result<Secret> {
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(&mut *secret).map_err(io::Error::other)?;
    let unfinished = path.with_extension(format!("part-{}", std::process::id()));
    let written = open_private(OpenOptions::new().write(true).create(true).truncate(true), &unfinished);
    let written = written.and_then(|mut file| {
        file.write_all(&*secret)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&unfinished, path)) {
        drop(fs::remove_file(&unfinished));
        return Err(error);
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(secret)
}
