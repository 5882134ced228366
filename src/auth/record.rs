//! Keys as the administrator sees them: requests, records and errors.

use std::fmt;
use std::str::FromStr;

use time::{Duration, OffsetDateTime, UtcOffset};

use crate::auth::KeyFailure;
use crate::auth::key::{PlainKey, PublicId};
use crate::domain::budget::Budget;
use crate::domain::clock::to_the_millisecond;
use crate::domain::ids::{KeyId, ProjectId};
use crate::domain::limits::{InvalidLimit, KeyLimits, LoraList};
use crate::domain::priority::Priority;
use crate::domain::scope::Scope;

/// Longest name of a key, in Unicode characters.
pub const NAME_CHARS_MAX: usize = 100;
/// Maximum keys in one page of a list.
pub const KEYS_PER_PAGE_MAX: u32 = 100;
/// Longest time that a key's old value works after a rotation.
pub const GRACE_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;

/// A key to be created.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Name for the administrator, not necessarily unique.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it stops working; `None` for never.
    pub expires_at: Option<OffsetDateTime>,
    /// Its limits.
    pub limits: KeyLimits,
}

/// Edit of an optional value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Keeps it.
    #[default]
    Keep,
    /// Removes it.
    Remove,
    /// Sets it.
    Set(T),
}

impl<T> Change<T> {
    /// The value that is set, if one is.
    #[must_use]
    pub fn set(self) -> Option<T> {
        if let Self::Set(value) = self { Some(value) } else { None }
    }

    /// The same of a reference.
    #[must_use]
    pub fn as_ref(&self) -> Change<&T> {
        match self {
            Self::Keep => Change::Keep,
            Self::Remove => Change::Remove,
            Self::Set(value) => Change::Set(value),
        }
    }
}

/// Changes to a key.
#[derive(Debug, Clone, Default)]
pub struct KeyEdit {
    /// New name.
    pub name: Option<String>,
    /// New scope.
    pub scope: Option<Scope>,
    /// New expiry, or none.
    pub expires_at: Change<OffsetDateTime>,
    /// New limits, or none.
    pub limits: LimitChanges,
    /// Another project, or none.
    pub project: Change<ProjectId>,
}

/// Changes to a key's limits and priority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitChanges {
    /// See [`KeyLimits::requests_per_minute`].
    pub requests_per_minute: Change<u32>,
    /// See [`KeyLimits::concurrent_jobs`].
    pub concurrent_jobs: Change<u32>,
    /// See [`KeyLimits::megapixel_steps_per_day`].
    pub megapixel_steps_per_day: Change<u32>,
    /// New priority; a key always has one, so it cannot be removed.
    pub priority: Option<Priority>,
    /// See [`KeyLimits::loras`].
    pub loras: Change<LoraList>,
    /// See [`KeyLimits::budget`].
    pub budget: Change<Budget>,
}

impl LimitChanges {
    /// The limits that are set, to be checked.
    fn set(&self) -> KeyLimits {
        KeyLimits {
            requests_per_minute: self.requests_per_minute.set(),
            concurrent_jobs: self.concurrent_jobs.set(),
            megapixel_steps_per_day: self.megapixel_steps_per_day.set(),
            priority: self.priority.unwrap_or_default(),
            // A list is checked when it is made.
            loras: None,
            budget: self.budget.set(),
            project: None,
        }
    }
}

/// Identifies a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRef {
    /// By id.
    Id(KeyId),
    /// By the prefix of its value, or of its value before the last rotation.
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
    /// Only keys created before this one.
    pub before: Option<KeyId>,
    /// Only keys in this state.
    pub state: Option<KeyState>,
    /// Maximum keys to return, up to [`KEYS_PER_PAGE_MAX`].
    pub keys_max: u32,
}

/// A page of keys, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<KeyRecord>,
    /// Where the next page begins, if there is one.
    pub next: Option<KeyId>,
}

/// A key that was just created or rotated: the only time its value is available.
#[derive(Debug)]
pub struct CreatedKey {
    /// Its id.
    pub id: KeyId,
    /// Its value, to be shown once.
    pub plain: PlainKey,
    /// Its record.
    pub record: KeyRecord,
}

/// A key without its value and hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its id.
    pub id: KeyId,
    /// The public part of its value.
    pub prefix: PublicId,
    /// The administrator's name for it.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// Whether it worked when it was read.
    pub state: KeyState,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it expires or expired.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was revoked.
    pub revoked_at: Option<OffsetDateTime>,
    /// When it was last used; up to half a minute late.
    pub last_used_at: Option<OffsetDateTime>,
    /// Its limits, and its project.
    pub limits: KeyLimits,
    /// When it was last rotated.
    pub rotated_at: Option<OffsetDateTime>,
    /// The previous value, while it still works.
    pub overlap: Option<Overlap>,
}

/// A replaced value that still works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// Its public part.
    pub prefix: PublicId,
    /// When it stops working.
    pub until: OffsetDateTime,
}

/// Whether a key works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It works.
    Active,
    /// It has expired.
    Expired,
    /// It was revoked, whether or not it has expired too.
    Revoked,
}

/// A text that is no state of a key.
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

/// Why a key was not created, found or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The name is empty, too long, or has invisible characters.
    #[error("a name must be 1 to {NAME_CHARS_MAX} characters, without control characters and invisible ones")]
    Name,
    /// The expiry is not in the future.
    #[error("the expiry must be in the future")]
    ExpiryPassed,
    /// The expiry is beyond the calendar in UTC.
    #[error("the expiry must be before the year 10000")]
    ExpiryTooLate,
    /// The grace period of the old value is too long.
    #[error("the old value can work for at most {GRACE_SECONDS_MAX} seconds more")]
    GraceTooLong,
    /// A limit is out of range.
    #[error(transparent)]
    Limit(#[from] InvalidLimit),
    /// There is no project with this id.
    #[error("there is no such project")]
    UnknownProject,
    /// There is no such key.
    #[error("there is no key with the {0}")]
    NotFound(KeyRef),
    /// The key has ended and cannot be changed.
    #[error("the key is {0}")]
    Ended(KeyState),
    /// An internal failure.
    #[error("the keys are not available")]
    Unavailable(#[from] KeyFailure),
}

impl NewKey {
    /// The same, checked, with its name and expiry normalized.
    pub(super) fn checked(self, now: OffsetDateTime) -> Result<Self, KeyError> {
        self.limits.check()?;
        let name = checked_name(&self.name)?;
        let expires_at = self.expires_at.map(|expires_at| checked_expiry(expires_at, now)).transpose()?;
        Ok(Self { name, expires_at, ..self })
    }
}

impl KeyEdit {
    /// The same, checked, with its name and expiry normalized.
    pub(super) fn checked(self, now: OffsetDateTime) -> Result<Self, KeyError> {
        self.limits.set().check()?;
        let expires_at = match self.expires_at {
            Change::Set(expires_at) => Change::Set(checked_expiry(expires_at, now)?),
            change => change,
        };
        let name = self.name.as_deref().map(checked_name).transpose()?;
        Ok(Self { name, expires_at, ..self })
    }

    /// Whether it changes nothing.
    pub(super) fn is_empty(&self) -> bool {
        let keeps_limits = self.limits == LimitChanges::default();
        let keeps_name = self.name.is_none() && self.scope.is_none() && self.expires_at == Change::Keep;
        keeps_name && keeps_limits && self.project == Change::Keep
    }
}

/// Invisible characters that change how others are shown or read: direction marks, zero-width spaces, line separators, tags.
/// Names that differ only by these look alike in lists. Excludes what letters of some scripts and emoji are composed with:
/// the joiners U+200C and U+200D, and variation selectors.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e00ff}' | '\u{e01f0}'..='\u{e0fff}')
}

fn checked_name(name: &str) -> Result<String, KeyError> {
    fit_name(name).ok_or(KeyError::Name)
}

/// A name without spaces around it; `None` if it is no fit one.
pub(super) fn fit_name(name: &str) -> Option<String> {
    let name = name.trim();
    let is_length = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    let is_fit = is_length && !name.chars().any(|character| character.is_control() || is_invisible(character));
    is_fit.then(|| name.to_owned())
}

/// The expiry in UTC, which a time at the end of the calendar may not have.
fn checked_expiry(expires_at: OffsetDateTime, now: OffsetDateTime) -> Result<OffsetDateTime, KeyError> {
    let expires_at = expires_at.checked_to_offset(UtcOffset::UTC).ok_or(KeyError::ExpiryTooLate)?;
    if expires_at <= now { Err(KeyError::ExpiryPassed) } else { Ok(to_the_millisecond(expires_at)) }
}

/// When the old value stops working; `None` for at once.
pub(super) fn checked_grace(grace_seconds: u64, now: OffsetDateTime) -> Result<Option<OffsetDateTime>, KeyError> {
    match grace_seconds {
        0 => Ok(None),
        1..=GRACE_SECONDS_MAX => Ok(Some(now + Duration::seconds(grace_seconds.cast_signed()))),
        _ => Err(KeyError::GraceTooLong),
    }
}
