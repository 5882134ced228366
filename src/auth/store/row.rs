//! A row of the table `api_keys`, read and checked.

use time::OffsetDateTime;

use crate::auth::KeyFailure;
use crate::auth::cache::RowVersion;
use crate::auth::hash::{HashedSecret, SecretTag};
use crate::auth::key::PublicId;
use crate::auth::record::{KeyRecord, KeyState, Overlap};
use crate::domain::budget::Budget;
use crate::domain::ids::KeyId;
use crate::domain::limits::{GroupLimits, KeyLimits, LoraList, ProjectTerms};
use crate::domain::money::Money;
use crate::domain::scope::Scope;
use crate::store::from_milliseconds;

/// A row, read and checked.
#[derive(Debug)]
pub(in crate::auth) struct KeyRow {
    pub(in crate::auth) id: KeyId,
    pub(in crate::auth) value: StoredValue,
    pub(in crate::auth) previous: Option<PreviousValue>,
    pub(in crate::auth) name: String,
    pub(in crate::auth) scope: Scope,
    pub(in crate::auth) version: i64,
    pub(in crate::auth) created_at: OffsetDateTime,
    pub(in crate::auth) expires_at: Option<OffsetDateTime>,
    pub(in crate::auth) revoked_at: Option<OffsetDateTime>,
    pub(in crate::auth) last_used_at: Option<OffsetDateTime>,
    pub(in crate::auth) limits: KeyLimits,
    pub(in crate::auth) rotated_at: Option<OffsetDateTime>,
}

/// The stored form of a key's value.
#[derive(Debug)]
pub(in crate::auth) struct StoredValue {
    pub(in crate::auth) public_id: PublicId,
    pub(in crate::auth) hash: HashedSecret,
    pub(in crate::auth) tag: SecretTag,
}

/// The stored form of the value that the last rotation replaced.
#[derive(Debug)]
pub(in crate::auth) struct PreviousValue {
    pub(in crate::auth) value: StoredValue,
    /// When it stops working.
    pub(in crate::auth) until: OffsetDateTime,
}

impl KeyRow {
    pub(in crate::auth) fn row_version(&self) -> RowVersion {
        RowVersion { key_id: self.id, version: self.version }
    }

    /// The current or the previous value, whichever has this public id.
    pub(in crate::auth) fn value_of(&self, public_id: PublicId) -> &StoredValue {
        let previous = self.previous.as_ref().filter(|previous| previous.value.public_id == public_id);
        previous.map_or(&self.value, |previous| &previous.value)
    }

    /// Active, expired or revoked.
    pub(in crate::auth) fn state(&self, now: OffsetDateTime) -> KeyState {
        if self.revoked_at.is_some() {
            KeyState::Revoked
        } else if self.expires_at.is_some_and(|expiry| expiry <= now) {
            KeyState::Expired
        } else {
            KeyState::Active
        }
    }

    /// State of one value: a replaced value has its own expiry.
    pub(in crate::auth) fn state_of(&self, public_id: PublicId, now: OffsetDateTime) -> KeyState {
        let previous = self.previous.as_ref().filter(|previous| previous.value.public_id == public_id);
        match self.state(now) {
            KeyState::Active if previous.is_some_and(|previous| previous.until <= now) => KeyState::Expired,
            state => state,
        }
    }

    pub(in crate::auth) fn into_record(self, now: OffsetDateTime) -> KeyRecord {
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

/// The columns as stored.
#[derive(sqlx::FromRow)]
pub(super) struct StoredRow {
    id: String,
    public_id: String,
    name: String,
    secret_hash: String,
    secret_tag: Vec<u8>,
    scope: String,
    version: i64,
    created_at_ms: i64,
    expires_at_ms: Option<i64>,
    revoked_at_ms: Option<i64>,
    last_used_at_ms: Option<i64>,
    rotated_at_ms: Option<i64>,
    previous_public_id: Option<String>,
    previous_secret_hash: Option<String>,
    previous_secret_tag: Option<Vec<u8>>,
    previous_until_ms: Option<i64>,
    requests_per_minute: Option<u32>,
    concurrent_jobs: Option<u32>,
    megapixel_steps_per_day: Option<u32>,
    priority: String,
    /// A JSON array.
    loras: Option<String>,
    budget_megapixel_steps: Option<i64>,
    budget_money_micros: Option<i64>,
    project_id: Option<String>,
    group_requests_per_minute: Option<u32>,
    group_concurrent_jobs: Option<u32>,
    group_megapixel_steps_per_day: Option<u32>,
    group_budget_megapixel_steps: Option<i64>,
    group_budget_money_micros: Option<i64>,
}

/// A budget from its two columns.
pub(super) fn read_budget(megapixel_steps: Option<i64>, money_micros: Option<i64>) -> Option<Budget> {
    let of_money = || money_micros.map(|micros| Budget::Money(Money::of_micros(micros.unsigned_abs())));
    megapixel_steps.map(|steps| Budget::MegapixelSteps(steps.unsigned_abs())).or_else(of_money)
}

/// The two columns of a budget.
pub(super) fn budget_columns(budget: Option<Budget>) -> (Option<i64>, Option<i64>) {
    let stored = |number: u64| Some(i64::try_from(number).unwrap_or(i64::MAX));
    match budget {
        None => (None, None),
        Some(Budget::MegapixelSteps(steps)) => (stored(steps), None),
        Some(Budget::Money(money)) => (None, stored(money.micros())),
    }
}

impl TryFrom<StoredRow> for KeyRow {
    type Error = KeyFailure;

    /// A row that cannot be read never counts as a valid key.
    fn try_from(stored: StoredRow) -> Result<Self, Self::Error> {
        let id = stored.id;
        let corrupt = |column: &'static str| KeyFailure::CorruptRow { key_id: id.clone(), column };
        let moment = |column, milliseconds| from_milliseconds(milliseconds).ok_or_else(|| corrupt(column));
        let value = |public_id: &str, hash: String, tag: &[u8]| {
            Ok::<_, KeyFailure>(StoredValue {
                public_id: PublicId::from_stored(public_id).map_err(|_| corrupt("public_id"))?,
                hash: HashedSecret::from_stored(hash),
                tag: SecretTag::from_stored(tag).ok_or_else(|| corrupt("secret_tag"))?,
            })
        };
        let previous = match (
            stored.previous_public_id,
            stored.previous_secret_hash,
            stored.previous_secret_tag,
            stored.previous_until_ms,
        ) {
            (None, None, None, None) => None,
            (Some(public_id), Some(hash), Some(tag), Some(until)) => {
                let until = moment("previous_until_ms", until)?;
                Some(PreviousValue { value: value(&public_id, hash, &tag)?, until })
            }
            _ => return Err(corrupt("previous_public_id")),
        };
        let scope = serde_json::from_str(&stored.scope).map_err(|_| corrupt("scope"))?;
        let project = match &stored.project_id {
            None => None,
            Some(project) => {
                let id = project.parse().map_err(|_| corrupt("project_id"))?;
                let budget = read_budget(stored.group_budget_megapixel_steps, stored.group_budget_money_micros);
                let limits = GroupLimits {
                    requests_per_minute: stored.group_requests_per_minute,
                    concurrent_jobs: stored.group_concurrent_jobs,
                    megapixel_steps_per_day: stored.group_megapixel_steps_per_day,
                    budget,
                };
                Some(ProjectTerms { id, limits })
            }
        };
        Ok(Self {
            value: value(&stored.public_id, stored.secret_hash, &stored.secret_tag)?,
            previous,
            name: stored.name,
            scope: Scope::from_json(&scope).map_err(|_| corrupt("scope"))?,
            version: stored.version,
            created_at: moment("created_at_ms", stored.created_at_ms)?,
            expires_at: stored.expires_at_ms.map(|value| moment("expires_at_ms", value)).transpose()?,
            revoked_at: stored.revoked_at_ms.map(|value| moment("revoked_at_ms", value)).transpose()?,
            last_used_at: stored.last_used_at_ms.map(|value| moment("last_used_at_ms", value)).transpose()?,
            limits: KeyLimits {
                requests_per_minute: stored.requests_per_minute,
                concurrent_jobs: stored.concurrent_jobs,
                megapixel_steps_per_day: stored.megapixel_steps_per_day,
                priority: stored.priority.parse().map_err(|_| corrupt("priority"))?,
                loras: stored.loras.map(|list| read_loras(&list).ok_or_else(|| corrupt("loras"))).transpose()?,
                budget: read_budget(stored.budget_megapixel_steps, stored.budget_money_micros),
                project,
            },
            rotated_at: stored.rotated_at_ms.map(|value| moment("rotated_at_ms", value)).transpose()?,
            id: id.parse().map_err(|_| corrupt("id"))?,
        })
    }
}

fn read_loras(list: &str) -> Option<LoraList> {
    LoraList::new(serde_json::from_str::<Vec<String>>(list).ok()?).ok()
}
