//! Management of keys: create, list, read, edit, rotate, revoke.

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::auth::KeyFailure;
use crate::auth::audit::{self, Actor, AuditAction, AuditedKey, NewEntry};
use crate::auth::hash::{Hasher, SecretTag};
use crate::auth::key::PlainKey;
use crate::auth::record::{
    Change, CreatedKey, KEYS_PER_PAGE_MAX, KeyEdit, KeyError, KeyPage, KeyQuery, KeyRecord, KeyRef, NewKey,
    checked_grace,
};
use crate::auth::store::{KeyRow, KeyStore, StoredValue};
use crate::domain::clock::{Clock, to_the_millisecond};
use crate::domain::ids::{KeyId, ProjectId};
use crate::domain::limits::{KeyLimits, ProjectTerms};
use crate::domain::usage::Day;
use crate::store::Store;

/// Creates, changes and revokes keys. Cheap to clone.
#[derive(Clone)]
pub struct KeyService {
    pub(super) keys: KeyStore,
    hasher: Hasher,
    clock: Arc<dyn Clock>,
}

impl KeyService {
    /// The keys in `store`.
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { keys: KeyStore::new(store), hasher: Hasher::for_keys(), clock }
    }

    /// Creates a key.
    ///
    /// # Errors
    /// [`KeyError::Name`], [`KeyError::ExpiryPassed`] or [`KeyError::Unavailable`].
    pub async fn create(&self, new: NewKey, by: &Actor) -> Result<CreatedKey, KeyError> {
        self.create_in(new, None, by).await
    }

    /// Creates a key that belongs to a project, if one is given.
    ///
    /// # Errors
    /// As [`KeyService::create`], and [`KeyError::UnknownProject`].
    pub async fn create_in(&self, new: NewKey, project: Option<ProjectId>, by: &Actor) -> Result<CreatedKey, KeyError> {
        let now = self.now();
        let new = new.checked(now)?;
        let terms = match project {
            None => None,
            Some(id) => Some(self.terms_of(id).await?),
        };
        let (plain, value) = self.new_value().await?;
        let detail = audit::of_new(&new, project);
        let row = KeyRow {
            id: KeyId::generate(),
            value,
            previous: None,
            name: new.name,
            scope: new.scope,
            version: 1,
            created_at: now,
            expires_at: new.expires_at,
            revoked_at: None,
            last_used_at: None,
            limits: KeyLimits { project: terms, ..new.limits },
            rotated_at: None,
        };
        self.keys.insert(&row, &self.entry(by, AuditAction::KeyCreated, &row, detail)).await?;
        Ok(CreatedKey { id: row.id, plain, record: row.into_record(now) })
    }

    /// Keys after `after`, the oldest first: at most `limit`, up to [`KEYS_PER_PAGE_MAX`].
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn list(&self, after: Option<KeyId>, limit: u32) -> Result<Vec<KeyRecord>, KeyError> {
        let now = self.now();
        let rows = self.keys.oldest_first(after, limit.min(KEYS_PER_PAGE_MAX)).await?;
        Ok(rows.into_iter().map(|row| row.into_record(now)).collect())
    }

    /// A page of keys, the newest first.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn page(&self, query: KeyQuery) -> Result<KeyPage, KeyError> {
        let now = self.now();
        let keys_max = query.keys_max.clamp(1, KEYS_PER_PAGE_MAX);
        let rows = self.keys.newest_first(KeyQuery { keys_max, ..query }, now).await?;
        let has_more = rows.len() > keys_max as usize;
        let keys: Vec<KeyRecord> = rows.into_iter().take(keys_max as usize).map(|row| row.into_record(now)).collect();
        let next = keys.last().map(|key| key.id).filter(|_| has_more);
        Ok(KeyPage { keys, next })
    }

    /// Number of keys, in any state.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn count(&self) -> Result<u64, KeyError> {
        Ok(self.keys.count().await?)
    }

    /// A key.
    ///
    /// # Errors
    /// [`KeyError::NotFound`] or [`KeyError::Unavailable`].
    pub async fn get(&self, key: impl Into<KeyRef>) -> Result<KeyRecord, KeyError> {
        let row = self.find(key.into()).await?;
        Ok(row.into_record(self.now()))
    }

    /// Changes a key that is not revoked, from the next request on. An expired one can get a later expiry.
    ///
    /// # Errors
    /// Every one but [`KeyError::GraceTooLong`].
    pub async fn edit(&self, key: impl Into<KeyRef>, edit: KeyEdit, by: &Actor) -> Result<KeyRecord, KeyError> {
        let row = self.find(key.into()).await?;
        let now = self.now();
        let edit = edit.checked(now)?;
        if edit.is_empty() {
            return Ok(row.into_record(now));
        }
        if let Change::Set(project) = edit.project {
            self.terms_of(project).await?;
        }
        let entry = self.entry(by, AuditAction::KeyEdited, &row, audit::of_edit(&edit));
        let has_changed = self.keys.edit(row.id, &edit, &entry).await?;
        let record = self.get(row.id).await?;
        if has_changed { Ok(record) } else { Err(KeyError::Ended(record.state)) }
    }

    /// Gives an active key a new value, from the next request on. The old one works for `grace_seconds` more; one that still
    /// worked after an earlier rotation ends.
    ///
    /// # Errors
    /// [`KeyError::GraceTooLong`], [`KeyError::NotFound`], [`KeyError::Ended`] or [`KeyError::Unavailable`].
    pub async fn rotate(&self, key: impl Into<KeyRef>, grace_seconds: u64, by: &Actor) -> Result<CreatedKey, KeyError> {
        let until = checked_grace(grace_seconds, self.now())?;
        let row = self.find(key.into()).await?;
        let (plain, value) = self.new_value().await?;
        let detail = audit::of_rotation(value.public_id, until);
        let entry = self.entry(by, AuditAction::KeyRotated, &row, detail);
        let has_changed = self.keys.rotate(row.id, &value, until, &entry).await?;
        let record = self.get(row.id).await?;
        if has_changed { Ok(CreatedKey { id: row.id, plain, record }) } else { Err(KeyError::Ended(record.state)) }
    }

    /// Revokes a key, from the next request on. Revoking it again is no error and changes nothing.
    ///
    /// # Errors
    /// [`KeyError::NotFound`] or [`KeyError::Unavailable`].
    pub async fn revoke(&self, key: impl Into<KeyRef>, by: &Actor) -> Result<KeyRecord, KeyError> {
        let row = self.find(key.into()).await?;
        self.keys.revoke(row.id, &self.entry(by, AuditAction::KeyRevoked, &row, json!({}))).await?;
        self.get(row.id).await
    }

    /// Accepted requests of a key per day since `since`, without days that had none; up to half a minute late.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn requests_by_day(&self, id: KeyId, since: Day) -> Result<Vec<(Day, u64)>, KeyError> {
        Ok(self.keys.requests_by_day(id, since).await?)
    }

    /// The time that keys are checked against.
    pub fn now(&self) -> OffsetDateTime {
        to_the_millisecond(self.clock.now())
    }

    async fn find(&self, key: KeyRef) -> Result<KeyRow, KeyError> {
        self.keys.find(key).await?.ok_or(KeyError::NotFound(key))
    }

    async fn terms_of(&self, id: ProjectId) -> Result<ProjectTerms, KeyError> {
        let project = self.keys.project(id).await?.ok_or(KeyError::UnknownProject)?;
        Ok(ProjectTerms { id, limits: project.limits })
    }

    async fn new_value(&self) -> Result<(PlainKey, StoredValue), KeyFailure> {
        let plain = PlainKey::generate()?;
        let hash = self.hasher.hash(plain.reveal()).await?;
        let presented = plain.as_presented();
        let value = StoredValue { public_id: presented.public_id(), hash, tag: SecretTag::of(presented) };
        Ok((plain, value))
    }

    fn entry<'a>(&self, actor: &'a Actor, action: AuditAction, row: &KeyRow, detail: Value) -> NewEntry<'a> {
        let key = AuditedKey { id: row.id, prefix: row.value.public_id };
        NewEntry { at: self.now(), actor, action, key: Some(key), detail }
    }
}

impl fmt::Debug for KeyService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyService").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
