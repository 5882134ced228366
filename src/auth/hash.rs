//! Stored forms of keys and of the password: argon2id as a PHC string, and for keys a short tag. The only user of argon2.
//!
//! Hashing takes some 20 ms and 19 MiB, so it runs on the blocking pool, with bounded concurrency.

use std::fmt;

use argon2::password_hash::{self, PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::auth::key::PresentedKey;
use crate::auth::lane::{Lane, LanePermit};

// The smallest parameters that OWASP's password storage guide recommends. They are meant for passwords; a key's 190 random
// bits would be safe with far less. New hashes use these; a stored hash is verified with its own.
const MEMORY_KIBIBYTES: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Keys hashed concurrently: each takes a core and [`MEMORY_KIBIBYTES`].
pub(super) const KEY_HASHES_AT_ONCE_MAX: usize = 2;
/// Keys waiting to be hashed.
pub(super) const KEY_HASHES_WAITING_MAX: usize = 1024;

/// Bytes of [`SecretTag`].
pub(super) const TAG_BYTES: usize = 3;
/// Context of the tag, so that its digests are of no use elsewhere.
const TAG_CONTEXT: &str = "fluxserve 2026 API key: short tag that turns wrong secrets away before argon2";

/// A key's value, or the password, as an argon2id PHC string.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct HashedSecret(String);

impl HashedSecret {
    /// Wraps a stored hash.
    pub(super) fn from_stored(phc: String) -> Self {
        Self(phc)
    }

    /// The form to store.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HashedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashedSecret(…)")
    }
}

/// 24 bits of a fast digest of a key's value.
///
/// Without it, a client that knows a prefix (they are no secret) could make the worker run argon2 for every wrong secret.
/// With it, a wrong secret costs the same lookup as an unknown id, and argon2 runs for 1 in 16 million of them. A thief of
/// the database learns 24 of the secret's 190 bits from it, which leaves too many to guess.
#[derive(Clone, Copy)]
pub(super) struct SecretTag([u8; TAG_BYTES]);

impl SecretTag {
    pub(super) fn of(key: PresentedKey<'_>) -> Self {
        let digest = blake3::derive_key(TAG_CONTEXT, key.value().as_bytes());
        Self([digest[0], digest[1], digest[2]])
    }

    /// Wraps a stored tag; `None` if it has another length.
    pub(super) fn from_stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The form to store.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether the tags are equal, compared in constant time.
    pub(super) fn matches(self, other: Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for SecretTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretTag(…)")
    }
}

/// A hash failed, not for a fault of the caller.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Too many hashes are waiting; try again shortly.
    #[error("too many keys or passwords are being hashed")]
    Busy,
    /// argon2 failed: no memory, no random salt, or a malformed stored hash.
    #[error("argon2 failed: {0}")]
    Argon2(password_hash::Error),
    /// The blocking pool has stopped, or the hashing panicked.
    #[error("the hashing task ended")]
    Task(#[from] tokio::task::JoinError),
}

/// Runs argon2. Clones share one bound on concurrent runs.
#[derive(Debug, Clone)]
pub(super) struct Hasher {
    lane: Lane,
}

impl Hasher {
    /// Hashes `at_once_max` concurrently, with `waiting_max` more in the queue.
    pub(super) fn new(at_once_max: usize, waiting_max: usize) -> Self {
        Self { lane: Lane::new(at_once_max, waiting_max) }
    }

    /// With the bounds for keys.
    pub(super) fn for_keys() -> Self {
        Self::new(KEY_HASHES_AT_ONCE_MAX, KEY_HASHES_WAITING_MAX)
    }

    /// Hashes a new secret with a random salt.
    pub(super) async fn hash(&self, secret: &str) -> Result<HashedSecret, HashError> {
        let turn = self.lane.enter().await.ok_or(HashError::Busy)?;
        let hashed = run(turn, secret, |value| argon2().hash_password(value).map(|hash| hash.to_string())).await?;
        hashed.map(HashedSecret).map_err(HashError::Argon2)
    }

    /// Whether `secret` is the one that was hashed. `is_settled` is called when its turn comes: if another call has proven it
    /// meanwhile, returns `true` without hashing.
    pub(super) async fn verify(
        &self,
        secret: &str,
        hashed: &HashedSecret,
        is_settled: impl FnOnce() -> bool,
    ) -> Result<bool, HashError> {
        let turn = self.lane.enter().await.ok_or(HashError::Busy)?;
        if is_settled() {
            return Ok(true);
        }
        let phc = hashed.0.clone();
        match run(turn, secret, move |value| argon2().verify_password(value, phc.as_str())).await? {
            Ok(()) => Ok(true),
            Err(password_hash::Error::PasswordInvalid) => Ok(false),
            Err(error) => Err(HashError::Argon2(error)),
        }
    }
}

/// Runs `work` on the blocking pool. The turn ends with the work, not with the caller: a client that hangs up must not free
/// the turn while its hash still runs.
async fn run<T: Send + 'static>(
    turn: LanePermit,
    secret: &str,
    work: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<T, HashError> {
    let value = Zeroizing::new(secret.to_owned());
    let task = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(value.as_bytes())
    });
    Ok(task.await?)
}

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIBIBYTES, PASSES, LANES, None).expect("the constants above are in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::key::PlainKey;

    #[tokio::test]
    async fn a_hash_is_salted_and_matches_only_its_key() {
        let hasher = Hasher::for_keys();
        let [key, other] = [(); 2].map(|()| PlainKey::generate().expect("random bytes"));
        let hashed = hasher.hash(key.reveal()).await.expect("hashes");
        assert!(hashed.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hashed.as_str());
        assert_ne!(hashed, hasher.hash(key.reveal()).await.expect("hashes"));
        assert!(hasher.verify(key.reveal(), &hashed, || false).await.expect("verifies"));
        assert!(!hasher.verify(other.reveal(), &hashed, || false).await.expect("verifies"));
    }

    #[tokio::test]
    async fn a_malformed_stored_hash_is_an_error_and_not_a_wrong_key() {
        let key = PlainKey::generate().expect("random bytes");
        let hashed = HashedSecret::from_stored("letmein".into());
        let outcome = Hasher::for_keys().verify(key.reveal(), &hashed, || false).await;
        assert!(matches!(outcome, Err(HashError::Argon2(_))));
    }

    #[test]
    fn tags_of_one_key_match_and_debug_hides_them() {
        let [key, other] = [(); 2].map(|()| PlainKey::generate().expect("random bytes"));
        let tag = SecretTag::of(key.as_presented());
        assert!(tag.matches(SecretTag::from_stored(tag.as_bytes()).expect("three bytes")));
        assert!(!tag.matches(SecretTag::of(other.as_presented())));
        assert!(SecretTag::from_stored(&[1, 2]).is_none());
        assert_eq!(format!("{tag:?}"), "SecretTag(…)");
    }
}
