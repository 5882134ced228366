//! Rows of the keys in use, read again only after a write to the database.
//!
//! A row is valid until the next commit by any process. So a change applies to the next request, and a request without a
//! change in between costs no query.

use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::KeyFailure;
use crate::auth::cache::ENTRIES_MAX;
use crate::auth::key::PublicId;
use crate::auth::store::{KeyRow, KeyStore};
use crate::domain::recent::RecentMap;
use crate::store::ChangeMark;

struct Read {
    /// State of the database before the row was read.
    mark: ChangeMark,
    row: Arc<KeyRow>,
}

/// Rows by the public id that was asked for. Only existing keys take up space.
pub(super) struct Rows {
    keys: KeyStore,
    read: Mutex<RecentMap<PublicId, Read>>,
}

impl Rows {
    pub(super) fn new(keys: KeyStore) -> Self {
        Self { keys, read: Mutex::new(RecentMap::new(ENTRIES_MAX)) }
    }

    /// The row whose current value, or value before the last rotation, has this public id, as of now.
    pub(super) async fn get(&self, public_id: PublicId) -> Result<Option<Arc<KeyRow>>, KeyFailure> {
        // Taken before the row: a commit in between shows as another mark later, at the cost of one more query.
        let mark = self.keys.change_mark();
        if let Some(row) = mark.and_then(|mark| self.still_good(public_id, mark)) {
            return Ok(Some(row));
        }
        let Some(row) = self.keys.by_public_id(public_id).await?.map(Arc::new) else { return Ok(None) };
        if let Some(mark) = mark {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.insert(public_id, Read { mark, row: Arc::clone(&row) });
        }
        Ok(Some(row))
    }

    fn still_good(&self, public_id: PublicId, mark: ChangeMark) -> Option<Arc<KeyRow>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.get_mut(&public_id).filter(|read| read.mark == mark).map(|read| Arc::clone(&read.row))
    }
}
