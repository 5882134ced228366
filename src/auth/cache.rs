//! The keys that argon2 has proven, so that it does not run on every request.
//!
//! Holds no key and no plain hash of one, only digests keyed with a secret that lives as long as the process. An entry is
//! valid for one version of a key's row; state, expiry and scope are never taken from here.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::auth::key::{NoRandomness, PresentedKey, PublicId};
use crate::domain::ids::KeyId;
use crate::domain::recent::RecentMap;

/// Maximum keys remembered, some 200 bytes each.
pub(super) const ENTRIES_MAX: usize = 10_000;

/// Digest of a key's value, keyed with the process's secret.
pub(super) struct KeyDigest([u8; 32]);

/// A version of a row of the key table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowVersion {
    pub(super) key_id: KeyId,
    pub(super) version: i64,
}

struct Proven {
    digest: [u8; 32],
    row: RowVersion,
}

/// Proven keys by public id. Only existing keys take up space, so wrong ones cannot evict them.
pub(super) struct KeyCache {
    secret: Zeroizing<[u8; 32]>,
    proven: Mutex<RecentMap<PublicId, Proven>>,
}

impl KeyCache {
    pub(super) fn new() -> Result<Self, NoRandomness> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut())?;
        Ok(Self { secret, proven: Mutex::new(RecentMap::new(ENTRIES_MAX)) })
    }

    pub(super) fn digest(&self, key: PresentedKey<'_>) -> KeyDigest {
        KeyDigest(*blake3::keyed_hash(&self.secret, key.value().as_bytes()).as_bytes())
    }

    /// The row version for which exactly this value was proven. Valid only while the row has that version.
    pub(super) fn proven_row(&self, public_id: PublicId, digest: &KeyDigest) -> Option<RowVersion> {
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = proven.get_mut(&public_id)?;
        bool::from(entry.digest.ct_eq(&digest.0)).then_some(entry.row)
    }

    /// Remembers that argon2 accepted this value for this row.
    pub(super) fn remember(&self, public_id: PublicId, digest: &KeyDigest, row: RowVersion) {
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        proven.insert(public_id, Proven { digest: digest.0, row });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.proven.lock().expect("not poisoned").len()
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyCache(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::key::PlainKey;

    #[test]
    fn only_the_proven_value_is_recognized() {
        let cache = KeyCache::new().expect("random bytes");
        let key = PlainKey::generate().expect("random bytes");
        let id = key.as_presented().public_id();
        let digest = cache.digest(key.as_presented());
        assert_eq!(cache.proven_row(id, &digest), None);
        let row = RowVersion { key_id: KeyId::generate(), version: 1 };
        cache.remember(id, &digest, row);
        assert_eq!(cache.proven_row(id, &digest), Some(row));
        let other = PlainKey::generate().expect("random bytes");
        assert_eq!(cache.proven_row(id, &cache.digest(other.as_presented())), None);
    }

    #[test]
    fn another_process_has_other_digests() {
        let key = PlainKey::generate().expect("random bytes");
        let [first, second] = [(); 2].map(|()| KeyCache::new().expect("random bytes").digest(key.as_presented()).0);
        assert_ne!(first, second);
    }
}
