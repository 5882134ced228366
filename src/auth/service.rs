//! Keys from the administrator's side: make, list, look at, revoke.

use std::fmt;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::auth::KeyFailure;
use crate::auth::hash::{Hasher, SecretTag};
use crate::auth::key::{PlainKey, PublicId};
use crate::auth::store::{KeyRow, KeyStore};
use crate::domain::clock::Clock;
use crate::domain::ids::KeyId;
use crate::domain::scope::Scope;
use crate::store::Store;

/// Longest name of a key, in Unicode characters.
pub const NAME_CHARS_MAX: usize = 100;
/// Most keys in one page of a list.
pub const KEYS_PER_PAGE_MAX: u32 = 100;

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// For the administrator to know it by; need not be unique.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it ceases to work; `None` for never.
    pub expires_at: Option<OffsetDateTime>,
}

/// A key that has just been made: the only time its value is at hand.
#[derive(Debug)]
pub struct CreatedKey {
    /// Its row.
    pub id: KeyId,
    /// Its value, to be shown once.
    pub plain: PlainKey,
    /// What will be known of it from now on.
    pub record: KeyRecord,
}

/// What is known of a key. Neither its value nor the hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its row.
    pub id: KeyId,
    /// The part of its value that anyone may see.
    pub prefix: PublicId,
    /// The administrator's name for it.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// Whether it works, at the moment it was looked at.
    pub state: KeyState,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it ceases or ceased to work by itself.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was revoked.
    pub revoked_at: Option<OffsetDateTime>,
    /// When a caller last proved itself with it; up to half a minute late.
    pub last_used_at: Option<OffsetDateTime>,
}

/// Whether a key works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It does.
    Active,
    /// Its time is over.
    Expired,
    /// It was revoked, whether or not its time is over too.
    Revoked,
}

impl KeyState {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a key was not made, found or revoked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The name is empty, too long, or would garble a list.
    #[error("a name must be 1 to {NAME_CHARS_MAX} characters, none of them a control character")]
    Name,
    /// The expiry is not in the future.
    #[error("the expiry must be in the future")]
    ExpiryPassed,
    /// No key has this prefix.
    #[error("there is no key with the prefix {0}")]
    NotFound(PublicId),
    /// Something inside failed.
    #[error("the keys are not available")]
    Unavailable(#[from] KeyFailure),
}

impl KeyRow {
    pub(super) fn state(&self, now: OffsetDateTime) -> KeyState {
        if self.revoked_at.is_some() {
            KeyState::Revoked
        } else if self.expires_at.is_some_and(|expiry| expiry <= now) {
            KeyState::Expired
        } else {
            KeyState::Active
        }
    }

    fn into_record(self, now: OffsetDateTime) -> KeyRecord {
        KeyRecord {
            state: self.state(now),
            id: self.id,
            prefix: self.public_id,
            name: self.name,
            scope: self.scope,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            last_used_at: self.last_used_at,
        }
    }
}

/// Makes and revokes keys. Cheap to clone.
#[derive(Clone)]
pub struct KeyService {
    keys: KeyStore,
    hasher: Hasher,
    clock: Arc<dyn Clock>,
}

impl KeyService {
    /// The keys in `store`.
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { keys: KeyStore::new(store), hasher: Hasher::new(), clock }
    }

    /// Makes a key.
    ///
    /// # Errors
    /// [`KeyError::Name`], [`KeyError::ExpiryPassed`] or [`KeyError::Unavailable`].
    pub async fn create(&self, new: NewKey) -> Result<CreatedKey, KeyError> {
        let now = self.clock.now();
        let name = new.name.trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(KeyError::Name);
        }
        if new.expires_at.is_some_and(|expiry| expiry <= now) {
            return Err(KeyError::ExpiryPassed);
        }
        let plain = PlainKey::generate().map_err(KeyFailure::from)?;
        let presented = plain.as_presented();
        let row = KeyRow {
            id: KeyId::generate(),
            public_id: presented.public_id(),
            name,
            hash: self.hasher.hash(presented).await.map_err(KeyFailure::from)?,
            tag: SecretTag::of(presented),
            scope: new.scope,
            version: 1,
            created_at: now,
            expires_at: new.expires_at,
            revoked_at: None,
            last_used_at: None,
        };
        self.keys.insert(&row).await?;
        Ok(CreatedKey { id: row.id, plain, record: row.into_record(now) })
    }

    /// Keys in the order of their making, from the one after `after`: at most `limit` and never more than
    /// [`KEYS_PER_PAGE_MAX`].
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn list(&self, after: Option<KeyId>, limit: u32) -> Result<Vec<KeyRecord>, KeyError> {
        let now = self.clock.now();
        let rows = self.keys.page(after, limit.min(KEYS_PER_PAGE_MAX)).await?;
        Ok(rows.into_iter().map(|row| row.into_record(now)).collect())
    }

    /// How many keys there are, whatever their state.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn count(&self) -> Result<u64, KeyError> {
        Ok(self.keys.count().await?)
    }

    /// The key with this prefix.
    ///
    /// # Errors
    /// [`KeyError::NotFound`] or [`KeyError::Unavailable`].
    pub async fn get(&self, prefix: PublicId) -> Result<KeyRecord, KeyError> {
        let row = self.keys.by_public_id(prefix).await?.ok_or(KeyError::NotFound(prefix))?;
        Ok(row.into_record(self.clock.now()))
    }

    /// Revokes the key with this prefix, from the next request on. Doing it twice is no error and changes nothing.
    ///
    /// # Errors
    /// [`KeyError::NotFound`] or [`KeyError::Unavailable`].
    pub async fn revoke(&self, prefix: PublicId) -> Result<KeyRecord, KeyError> {
        self.keys.revoke(prefix, self.clock.now()).await?;
        self.get(prefix).await
    }
}

impl fmt::Debug for KeyService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyService").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use super::*;
    use crate::domain::clock::ManualClock;

    async fn service() -> (KeyService, ManualClock) {
        let clock = ManualClock::new(datetime!(2030-01-01 12:00 UTC));
        let store = Store::open_in_memory().await.expect("opens");
        (KeyService::new(store, Arc::new(clock.clone())), clock)
    }

    fn new_key(name: &str) -> NewKey {
        NewKey { name: name.into(), scope: Scope::Inference, expires_at: None }
    }

    #[tokio::test]
    async fn what_is_made_is_what_is_listed() {
        let (service, clock) = service().await;
        assert_eq!(service.count().await.expect("counted"), 0);
        let expires_at = Some(clock.now() + Duration::hours(1));
        let first = service.create(NewKey { expires_at, ..new_key(" one ") }).await.expect("made").record;
        let second = service.create(new_key("two")).await.expect("made").record;
        assert_eq!((first.name.as_str(), first.state, first.expires_at), ("one", KeyState::Active, expires_at));
        assert_eq!(service.list(None, 10).await.expect("listed"), [first.clone(), second.clone()]);
        assert_eq!(service.list(None, 1).await.expect("listed"), std::slice::from_ref(&first));
        assert_eq!(service.list(Some(first.id), 10).await.expect("listed"), std::slice::from_ref(&second));
        assert_eq!(service.get(second.prefix).await.expect("there"), second);
        clock.advance(Duration::hours(1));
        assert_eq!(service.get(first.prefix).await.expect("there").state, KeyState::Expired);
        assert_eq!(service.count().await.expect("counted"), 2);
    }

    #[tokio::test]
    async fn names_and_expiries_are_checked() {
        let (service, clock) = service().await;
        for name in ["", "  ", "two\nlines", "\u{1b}[2J", &"x".repeat(NAME_CHARS_MAX + 1)] {
            assert!(matches!(service.create(new_key(name)).await, Err(KeyError::Name)), "{name:?}");
        }
        service.create(new_key(&"ü".repeat(NAME_CHARS_MAX))).await.expect("characters are counted, not bytes");
        for expiry in [clock.now(), clock.now() - Duration::days(1)] {
            let outcome = service.create(NewKey { expires_at: Some(expiry), ..new_key("late") }).await;
            assert!(matches!(outcome, Err(KeyError::ExpiryPassed)));
        }
    }

    #[tokio::test]
    async fn revoking_twice_is_revoking_once() {
        let (service, clock) = service().await;
        let key = service.create(new_key("short-lived")).await.expect("made").record;
        let revoked = service.revoke(key.prefix).await.expect("revoked");
        assert_eq!((revoked.state, revoked.revoked_at), (KeyState::Revoked, Some(clock.now())));
        clock.advance(Duration::hours(1));
        assert_eq!(service.revoke(key.prefix).await.expect("again"), revoked);
        let nobody = "rgpu_00000000".parse().expect("a prefix");
        assert!(matches!(service.revoke(nobody).await, Err(KeyError::NotFound(prefix)) if prefix == nobody));
    }
}
