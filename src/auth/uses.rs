//! Request counts and last use of each key, collected in memory and written every [`WRITE_INTERVAL_SECONDS`]: a write per
//! request would make reading a key as expensive as changing it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::OnceCell;

use crate::auth::KeyFailure;
use crate::auth::store::KeyStore;
use crate::domain::clock::Clock;
use crate::domain::ids::KeyId;
use crate::domain::pace::{Moment, Pace};
use crate::domain::usage::Day;

/// Maximum pairs of key and day counted between two writes. Uses beyond that are not counted.
pub(super) const PENDING_MAX: usize = 10_000;
/// Time between two writes.
const WRITE_INTERVAL_SECONDS: u64 = 30;

/// A key's unwritten uses of one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PendingUse {
    pub(super) last_at: OffsetDateTime,
    pub(super) requests: u64,
}

/// Unwritten uses. Clones share them.
#[derive(Clone)]
pub(super) struct Uses {
    keys: KeyStore,
    clock: Arc<dyn Clock>,
    /// Starts at the last written use.
    pace: Arc<OnceCell<Pace>>,
    pending: Arc<Mutex<HashMap<(KeyId, Day), PendingUse>>>,
}

impl Uses {
    pub(super) fn new(keys: KeyStore, clock: Arc<dyn Clock>) -> Self {
        Self { keys, clock, pace: Arc::default(), pending: Arc::default() }
    }

    pub(super) fn note(&self, id: KeyId, now: OffsetDateTime) {
        self.add((id, Day::of(now)), PendingUse { last_at: now, requests: 1 });
    }

    fn add(&self, key: (KeyId, Day), more: PendingUse) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.len() < PENDING_MAX || pending.contains_key(&key) {
            let noted = pending.entry(key).or_insert(PendingUse { requests: 0, ..more });
            noted.last_at = noted.last_at.max(more.last_at);
            noted.requests += more.requests;
        }
    }

    /// Writes what is pending, and keeps it on an error. First corrects timestamps written while the
    /// clock was ahead.
    pub(super) async fn write(&self) -> Result<(), KeyFailure> {
        let Moment { now, future_begins, .. } = self.paced().await?;
        if let Some(future_begins) = future_begins {
            self.keys.pull_back(future_begins, now).await?;
        }
        let uses: Vec<_> = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.drain().collect()
        };
        if uses.is_empty() {
            return Ok(());
        }
        let outcome = self.keys.record_uses(&uses, Day::of(now)).await;
        if outcome.is_err() {
            for (key, noted) in uses {
                self.add(key, noted);
            }
        }
        outcome
    }

    /// The current time for writing and deleting.
    async fn paced(&self) -> Result<Moment, KeyFailure> {
        let (clock, uptime) = (self.clock.now(), self.clock.uptime());
        let begin =
            async || Ok::<_, KeyFailure>(Pace::new(self.keys.last_use().await?.unwrap_or(clock), clock, uptime));
        Ok(self.pace.get_or_try_init(begin).await?.look(clock, uptime))
    }

    /// Writes every [`WRITE_INTERVAL_SECONDS`] until `stop` completes, and then once more.
    pub(super) async fn write_until(&self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let interval = tokio::time::sleep(Duration::from_secs(WRITE_INTERVAL_SECONDS));
            let stopping = tokio::select! {
                () = interval => false,
                () = &mut stop => true,
            };
            if let Err(error) = self.write().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot write the use of keys");
            }
            if stopping {
                return;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pending.lock().expect("not poisoned").len()
    }
}
