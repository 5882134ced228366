//! What the administrator's side says of keys: what is asked for, what is known, and why something was not done.

use std::fmt;
use std::str::FromStr;

use time::{Duration, OffsetDateTime, UtcOffset};

use crate::auth::KeyFailure;
use crate::auth::key::{PlainKey, PublicId};
use crate::auth::store::KeyRow;
use crate::domain::clock::to_the_millisecond;
use crate::domain::ids::KeyId;
use crate::domain::limits::{InvalidLimit, KeyLimits};
use crate::domain::priority::Priority;
use crate::domain::scope::Scope;

/// Longest name of a key, in Unicode characters.
pub const NAME_CHARS_MAX: usize = 100;
/// Most keys in one page of a list.
pub const KEYS_PER_PAGE_MAX: u32 = 100;
/// Longest time for which a key's old value can go on working after a rotation.
pub const GRACE_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// For the administrator to know it by; need not be unique.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it ceases to work; `None` for never.
    pub expires_at: Option<OffsetDateTime>,
    /// What it may use up.
    pub limits: KeyLimits,
}

/// What an edit does to something that can be there or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Leaves it as it is.
    #[default]
    Keep,
    /// Takes it away.
    Remove,
    /// Puts this in its place.
    Set(T),
}

/// What is to be different about a key.
#[derive(Debug, Clone, Default)]
pub struct KeyEdit {
    /// Another name.
    pub name: Option<String>,
    /// Another scope.
    pub scope: Option<Scope>,
    /// Another end, or none.
    pub expires_at: Change<OffsetDateTime>,
    /// Other bounds, or none.
    pub limits: LimitChanges,
}

/// What is to be different about a key's bounds and its priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitChanges {
    /// See [`KeyLimits::requests_per_minute`].
    pub requests_per_minute: Change<u32>,
    /// See [`KeyLimits::concurrent_jobs`].
    pub concurrent_jobs: Change<u32>,
    /// See [`KeyLimits::megapixel_steps_per_day`].
    pub megapixel_steps_per_day: Change<u32>,
    /// Another one; a key always has some priority, so there is none to take away.
    pub priority: Option<Priority>,
}

impl LimitChanges {
    /// What is set: only of interest to see whether it may be.
    fn set(&self) -> KeyLimits {
        let set = |change| if let Change::Set(limit) = change { Some(limit) } else { None };
        KeyLimits {
            requests_per_minute: set(self.requests_per_minute),
            concurrent_jobs: set(self.concurrent_jobs),
            megapixel_steps_per_day: set(self.megapixel_steps_per_day),
            priority: self.priority.unwrap_or_default(),
        }
    }
}

/// Which key is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRef {
    /// The one with this id.
    Id(KeyId),
    /// The one with this prefix, or whose value before the last rotation had it.
    Prefix(PublicId),
}

impl From<KeyId> for KeyRef {
    fn from(id: KeyId) -> Self {
        Self::Id(id)
    }
}

impl From<PublicId> for KeyRef {
    fn from(prefix: PublicId) -> Self {
        Self::Prefix(prefix)
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "id {id}"),
            Self::Prefix(prefix) => write!(f, "prefix {prefix}"),
        }
    }
}

/// Which keys to list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyQuery {
    /// Only keys made before this one.
    pub before: Option<KeyId>,
    /// Only keys in this state.
    pub state: Option<KeyState>,
    /// Most keys to return, up to [`KEYS_PER_PAGE_MAX`].
    pub keys_max: u32,
}

/// Some keys, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<KeyRecord>,
    /// Where the next page begins, when there is one.
    pub next: Option<KeyId>,
}

/// A key that has just been made or rotated: the only time its value is at hand.
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
    /// What it may use up.
    pub limits: KeyLimits,
    /// When it last got another value.
    pub rotated_at: Option<OffsetDateTime>,
    /// The value before that, while it still works.
    pub overlap: Option<Overlap>,
}

/// A value that was replaced and still works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// The part of it that anyone may see.
    pub prefix: PublicId,
    /// When it ceases to work.
    pub until: OffsetDateTime,
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

/// A word that is no state of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown key state")]
pub struct UnknownKeyState;

impl KeyState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Active, Self::Expired, Self::Revoked];

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

impl FromStr for KeyState {
    type Err = UnknownKeyState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(UnknownKeyState)
    }
}

/// Why a key was not made, found or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The name is empty, too long, or would garble a list.
    #[error(
        "a name must be 1 to {NAME_CHARS_MAX} characters, none of them a control character or one that cannot be seen"
    )]
    Name,
    /// The expiry is not in the future.
    #[error("the expiry must be in the future")]
    ExpiryPassed,
    /// The expiry has no date in UTC.
    #[error("the expiry must be before the year 10000")]
    ExpiryTooLate,
    /// The old value would outlive its replacement for too long.
    #[error("the old value can go on working for at most {GRACE_SECONDS_MAX} seconds")]
    GraceTooLong,
    /// A bound that is none.
    #[error(transparent)]
    Limit(#[from] InvalidLimit),
    /// There is no such key.
    #[error("there is no key with the {0}")]
    NotFound(KeyRef),
    /// What has ended is not changed any more.
    #[error("the key is {0}")]
    Ended(KeyState),
    /// Something inside failed.
    #[error("the keys are not available")]
    Unavailable(#[from] KeyFailure),
}

impl KeyRow {
    /// Whether the key works.
    pub(super) fn state(&self, now: OffsetDateTime) -> KeyState {
        if self.revoked_at.is_some() {
            KeyState::Revoked
        } else if self.expires_at.is_some_and(|expiry| expiry <= now) {
            KeyState::Expired
        } else {
            KeyState::Active
        }
    }

    /// Whether the value with this public id works: the one before a rotation has an end of its own.
    pub(super) fn state_of(&self, public_id: PublicId, now: OffsetDateTime) -> KeyState {
        let previous = self.previous.as_ref().filter(|previous| previous.value.public_id == public_id);
        match self.state(now) {
            KeyState::Active if previous.is_some_and(|previous| previous.until <= now) => KeyState::Expired,
            state => state,
        }
    }

    pub(super) fn into_record(self, now: OffsetDateTime) -> KeyRecord {
        let state = self.state(now);
        let previous = self.previous.filter(|previous| state == KeyState::Active && previous.until > now);
        KeyRecord {
            id: self.id,
            prefix: self.value.public_id,
            name: self.name,
            scope: self.scope,
            state,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            last_used_at: self.last_used_at,
            limits: self.limits,
            rotated_at: self.rotated_at,
            overlap: previous.map(|previous| Overlap { prefix: previous.value.public_id, until: previous.until }),
        }
    }
}

impl NewKey {
    /// The same with a name and an end that are as they should be.
    pub(super) fn checked(self, now: OffsetDateTime) -> Result<Self, KeyError> {
        self.limits.check()?;
        let name = checked_name(&self.name)?;
        let expires_at = self.expires_at.map(|expires_at| checked_expiry(expires_at, now)).transpose()?;
        Ok(Self { name, expires_at, ..self })
    }
}

impl KeyEdit {
    /// The same with a name and an end that are as they should be.
    pub(super) fn checked(self, now: OffsetDateTime) -> Result<Self, KeyError> {
        self.limits.set().check()?;
        let expires_at = match self.expires_at {
            Change::Set(expires_at) => Change::Set(checked_expiry(expires_at, now)?),
            change => change,
        };
        let name = self.name.as_deref().map(checked_name).transpose()?;
        Ok(Self { name, expires_at, ..self })
    }

    /// Whether nothing is to be different.
    pub(super) fn is_empty(&self) -> bool {
        let keeps_limits = self.limits == LimitChanges::default();
        self.name.is_none() && self.scope.is_none() && self.expires_at == Change::Keep && keeps_limits
    }
}

/// What shows nothing and changes how the rest is shown or read: marks of direction, blanks without width, line separators,
/// tags. Two names that differ by these alone look alike in every list. Not what letters of some scripts and emoji are put
/// together with: the joiners U+200C and U+200D, and variation selectors.
fn is_unseen(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e00ff}' | '\u{e01f0}'..='\u{e0fff}')
}

fn checked_name(name: &str) -> Result<String, KeyError> {
    let name = name.trim();
    let is_length = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    let is_fit = is_length && !name.chars().any(|character| character.is_control() || is_unseen(character));
    if is_fit { Ok(name.to_owned()) } else { Err(KeyError::Name) }
}

/// An end as it is told of later: in UTC, which a moment at the end of the calendar may not have.
fn checked_expiry(expires_at: OffsetDateTime, now: OffsetDateTime) -> Result<OffsetDateTime, KeyError> {
    let expires_at = expires_at.checked_to_offset(UtcOffset::UTC).ok_or(KeyError::ExpiryTooLate)?;
    if expires_at <= now { Err(KeyError::ExpiryPassed) } else { Ok(to_the_millisecond(expires_at)) }
}

/// When the old value ceases to work; `None` for at once.
pub(super) fn checked_grace(grace_seconds: u64, now: OffsetDateTime) -> Result<Option<OffsetDateTime>, KeyError> {
    match grace_seconds {
        0 => Ok(None),
        1..=GRACE_SECONDS_MAX => Ok(Some(now + Duration::seconds(grace_seconds.cast_signed()))),
        _ => Err(KeyError::GraceTooLong),
    }
}
