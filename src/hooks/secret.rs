//! Secrets that sign. None is stored: a key's secret follows from random bytes in its row and from a file of the data folder, by
//! a keyed hash. A copy of the database signs nothing, and neither does the file alone. The operator's own is in the
//! configuration.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::domain::ids::KeyId;
use crate::store::secret_file::{Secret, read_secret, write_new_secret};

/// What every secret begins with, as Standard Webhooks has it.
const PREFIX: &str = "whsec_";
/// Length of a secret that somebody else has made, in bytes: the lengths that Standard Webhooks allows.
pub(super) const GIVEN_BYTES: RangeInclusive<usize> = 24..=64;

/// Random bytes that a key's secret follows from.
pub(super) type Salt = [u8; 16];

/// The first bytes of a secret's digest, by which another file is noticed.
pub(super) type Tag = [u8; 3];

/// The secret that all keys' secrets follow from.
pub(super) struct MasterSecret(Secret);

/// A secret that signs: a key's, or the operator's.
pub(super) struct SigningSecret(Zeroizing<Vec<u8>>);

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
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return write_new_secret(path).map(Self),
            opened => opened?,
        };
        let what_is_wrong = || {
            let path = path.display();
            format!(
                "`{path}` is not a secret for webhooks: restore it, or remove it and give each key a new webhook secret"
            )
        };
        read_secret(&file, what_is_wrong).map(Self)
    }

    /// The secret of a key with these random bytes.
    pub(super) fn derive(&self, key: KeyId, salt: &Salt) -> SigningSecret {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(format!("webhooks of {key}: ").as_bytes());
        hasher.update(salt);
        SigningSecret(Zeroizing::new(hasher.finalize().as_bytes().to_vec()))
    }
}

impl SigningSecret {
    /// The secret in a text of `whsec_` and base64, if it has that form and a usable length.
    pub(super) fn given(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text.strip_prefix(PREFIX)?).ok()?);
        GIVEN_BYTES.contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The key of the signatures.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::secret_file::SECRET_BYTES;

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
        assert_eq!(SigningSecret::given(&secret).expect("of the form").bytes(), master.derive(key, &salt).bytes());
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
        for bytes in [&b""[..], b"short", &[7; SECRET_BYTES + 1]] {
            fs::write(&path, bytes).expect("written");
            let error = MasterSecret::open(&path).err().expect("refused").to_string();
            assert!(error.contains("webhooks.secret"), "{error}");
        }
    }
}
