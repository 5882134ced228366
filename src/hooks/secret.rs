//! Secrets that sign. None is stored: a key's secret follows from random bytes in its row and from a file of the data folder, by
//! a keyed hash. A copy of the database signs nothing, and neither does the file alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::domain::ids::KeyId;
use crate::store::private_file::open_private;

/// What every secret begins with, as Standard Webhooks has it.
const PREFIX: &str = "whsec_";
const MASTER_BYTES: usize = 32;

/// Random bytes that a key's secret follows from.
pub(super) type Salt = [u8; 16];

/// The first bytes of a secret's digest, by which another file is noticed.
pub(super) type Tag = [u8; 3];

/// The secret that all keys' secrets follow from.
pub(super) struct MasterSecret(Zeroizing<[u8; MASTER_BYTES]>);

/// A key's secret.
pub(super) struct KeySecret(Zeroizing<[u8; blake3::OUT_LEN]>);

/// A key's secret as text, to be shown once. It cannot be cloned, printed or serialized by accident.
pub struct PlainSecret(Zeroizing<String>);

impl PlainSecret {
    /// The text: `whsec_` and base64.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for PlainSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PlainSecret(…)")
    }
}

impl MasterSecret {
    /// The secret in a file, which is created if missing. Blocks.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_new(path)?;
                read(path)
            }
            read => read,
        }
    }

    /// The secret of a key with these random bytes.
    pub(super) fn derive(&self, key: KeyId, salt: &Salt) -> KeySecret {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(format!("webhooks of {key}: ").as_bytes());
        hasher.update(salt);
        KeySecret(Zeroizing::new(*hasher.finalize().as_bytes()))
    }
}

impl KeySecret {
    /// The key of the signatures.
    pub(super) fn bytes(&self) -> &[u8] {
        &*self.0
    }

    pub(super) fn tag(&self) -> Tag {
        let digest = blake3::hash(self.bytes());
        let [first, second, third, ..] = *digest.as_bytes();
        [first, second, third]
    }

    pub(super) fn to_plain(&self) -> PlainSecret {
        let encoded = Zeroizing::new(STANDARD.encode(self.bytes()));
        PlainSecret(Zeroizing::new(format!("{PREFIX}{}", encoded.as_str())))
    }
}

/// New random bytes.
pub(super) fn new_salt() -> io::Result<Salt> {
    let mut salt = Salt::default();
    getrandom::fill(&mut salt).map_err(io::Error::other)?;
    Ok(salt)
}

fn read(path: &Path) -> io::Result<MasterSecret> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MASTER_BYTES + 1));
    File::open(path)?.take(MASTER_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let secret = <[u8; MASTER_BYTES]>::try_from(&bytes[..]).map_err(|_| {
        let reason = format!(
            "`{}` is not a secret for webhooks: restore it, or remove it and give each key a new webhook secret",
            path.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, reason)
    })?;
    Ok(MasterSecret(Zeroizing::new(secret)))
}

/// Writes a new secret for this user only, atomically.
fn write_new(path: &Path) -> io::Result<()> {
    let mut secret = Zeroizing::new([0; MASTER_BYTES]);
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_follows_from_the_file_the_key_and_the_salt() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("webhooks.secret");
        let master = MasterSecret::open(&path).expect("a new secret");
        let again = MasterSecret::open(&path).expect("the same secret");
        let (key, salt) = (KeyId::generate(), new_salt().expect("random bytes"));
        let text =
            |master: &MasterSecret, key: KeyId, salt: &Salt| master.derive(key, salt).to_plain().reveal().to_owned();
        let secret = text(&master, key, &salt);
        assert_eq!(text(&again, key, &salt), secret);
        assert_ne!(text(&master, KeyId::generate(), &salt), secret);
        assert_ne!(text(&master, key, &new_salt().expect("random bytes")), secret);
        let other = MasterSecret::open(&folder.path().join("other")).expect("a new secret");
        assert_ne!(text(&other, key, &salt), secret);
        assert_ne!(other.derive(key, &salt).tag(), master.derive(key, &salt).tag());
        let encoded = secret.strip_prefix(PREFIX).expect("the prefix");
        assert_eq!(STANDARD.decode(encoded).expect("base64"), master.derive(key, &salt).bytes());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2, "nothing is left beside them");
    }

    #[test]
    fn another_file_is_no_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("webhooks.secret");
        for bytes in [&b""[..], b"short", &[7; MASTER_BYTES + 1]] {
            fs::write(&path, bytes).expect("written");
            let error = MasterSecret::open(&path).err().expect("refused").to_string();
            assert!(error.contains("webhooks.secret"), "{error}");
        }
    }
}
