//! What reports over many keys need: their requests, their names, and which of them have budgets.

use std::collections::HashMap;

use crate::auth::key::PublicId;
use crate::auth::record::{KEYS_PER_PAGE_MAX, KeyError, KeyRecord};
use crate::auth::service::KeyService;
use crate::auth::store::StoredName;
use crate::domain::ids::KeyId;
use crate::domain::usage::{Day, DayRange};

/// How people know a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyName {
    /// The administrator's name for it.
    pub name: String,
    /// The public part of its value.
    pub prefix: PublicId,
}

impl KeyService {
    /// Accepted requests of each key in the days, ordered by id: at most `limit` keys after `after`, without those that had
    /// none; up to half a minute late.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn requests_by_key(
        &self,
        days: DayRange,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<(KeyId, u64)>, KeyError> {
        let rows = self.keys.requests_by_key(days, after, limit).await?;
        // An id that this program did not write is left out: nothing else says what it is.
        Ok(rows.into_iter().filter_map(|(id, requests)| Some((id.parse::<KeyId>().ok()?, requests))).collect())
    }

    /// Accepted requests of all keys by day, without days that had none; up to half a minute late.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn all_requests_by_day(&self, days: DayRange) -> Result<Vec<(Day, u64)>, KeyError> {
        Ok(self.keys.all_requests_by_day(days).await?)
    }

    /// The names of these keys. Those that do not exist are left out.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn names(&self, ids: &[KeyId]) -> Result<HashMap<KeyId, KeyName>, KeyError> {
        let rows = self.keys.names(ids).await?;
        let read = |row: StoredName| {
            let prefix = PublicId::from_stored(&row.public_id).ok()?;
            Some((row.id.parse::<KeyId>().ok()?, KeyName { name: row.name, prefix }))
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Keys with a budget of their own that are not revoked, the oldest first: at most [`KEYS_PER_PAGE_MAX`] after `after`.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`].
    pub async fn with_budgets(&self, after: Option<KeyId>) -> Result<Vec<KeyRecord>, KeyError> {
        let now = self.now();
        let rows = self.keys.with_budgets(after, KEYS_PER_PAGE_MAX).await?;
        Ok(rows.into_iter().map(|row| row.into_record(now)).collect())
    }
}
