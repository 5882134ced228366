//! Checksums as the hub lists them: SHA-256 for large files, and git's blob hash for all others.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A file's checksum, in lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Checksum {
    /// Of the content.
    Sha256(String),
    /// SHA-1 of git's header, which holds the length, and the content.
    GitBlob(String),
}

impl Checksum {
    /// Parses a checksum, as the cache names its files; the length tells which kind. `None` for other names.
    pub fn of_name(name: &str) -> Option<Self> {
        let is_hex = name.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        match name.len() {
            64 if is_hex => Some(Self::Sha256(name.to_owned())),
            40 if is_hex => Some(Self::GitBlob(name.to_owned())),
            _ => None,
        }
    }

    /// The digits.
    pub fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => digits,
        }
    }

    /// Name of the kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git checksum",
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.digits())
    }
}

/// Incremental computation of a checksum.
pub(super) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    /// Starts a checksum of the same kind as `like`, of a file of `bytes` bytes.
    pub(super) fn new(like: &Checksum, bytes: u64) -> Self {
        match like {
            Checksum::Sha256(_) => Self::Sha256(Sha256::new()),
            Checksum::GitBlob(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {bytes}\0"));
                Self::GitBlob(hasher)
            }
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Checksum {
        match self {
            Self::Sha256(hasher) => Checksum::Sha256(hex(&hasher.finalize())),
            Self::GitBlob(hasher) => Checksum::GitBlob(hex(&hasher.finalize())),
        }
    }

    /// Adds a file's content from its current position on.
    pub(super) fn read(&mut self, file: &mut File) -> io::Result<u64> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut read = 0;
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(read),
                count => {
                    self.update(&chunk[..count]);
                    read += count as u64;
                }
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("a string takes all");
        digits
    })
}

/// Computes a file's checksum, of the same kind as `like`. Blocks while it reads.
///
/// # Errors
/// When it cannot be read.
pub fn checksum_of(path: &Path, like: &Checksum) -> io::Result<Checksum> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(like, file.metadata()?.len());
    hasher.read(&mut file)?;
    Ok(hasher.finish())
}

/// Computes a file's SHA-256. Blocks while it reads.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hasher, mut chunk) = (File::open(path)?, Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finalize().into()),
            count => hasher.update(&chunk[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_equal_those_of_other_tools() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hello");
        std::fs::write(&path, "hello\n").expect("written");
        // `git hash-object` and `sha256sum` of the same file.
        let git = Checksum::of_name("ce013625030ba8dba906f756967f9e9ca394464a").expect("a name");
        let sha = Checksum::of_name("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        let sha = sha.expect("a name");
        assert_eq!(checksum_of(&path, &git).expect("read"), git);
        assert_eq!(checksum_of(&path, &sha).expect("read"), sha);
        assert_eq!(hex(&sha256_of(&path).expect("read")), sha.digits());
        for name in ["", "CE013625030BA8DBA906F756967F9E9CA394464A", "ce01.incomplete", "hello"] {
            assert_eq!(Checksum::of_name(name), None, "{name}");
        }
    }
}
