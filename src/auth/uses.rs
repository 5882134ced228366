//! How often each key was used and when it last was, collected in memory and written now and then: a write for every
//! request would make reading a key as dear as changing one.

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

/// Most keys (times days, at midnight) noted between two writes. A use beyond that is not noted.
pub(super) const PENDING_MAX: usize = 10_000;
/// How often they are written.
const WRITE_INTERVAL_SECONDS: u64 = 30;

/// A key's uses of one day that are not yet written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PendingUse {
    pub(super) last_at: OffsetDateTime,
    pub(super) requests: u64,
}

/// The uses not yet written. Clones share them.
#[derive(Clone)]
pub(super) struct Uses {
    keys: KeyStore,
    clock: Arc<dyn Clock>,
    /// Begins with the last use that is written.
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

    /// Writes what is pending; keeps it for the next time on an error. What a clock that was ahead has dated in the future
    /// is brought back first.
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

    /// What forgetting goes by now.
    async fn paced(&self) -> Result<Moment, KeyFailure> {
        let (clock, uptime) = (self.clock.now(), self.clock.uptime());
        let begin =
            async || Ok::<_, KeyFailure>(Pace::new(self.keys.last_use().await?.unwrap_or(clock), clock, uptime));
        Ok(self.pace.get_or_try_init(begin).await?.look(clock, uptime))
    }

    /// Writes every [`WRITE_INTERVAL_SECONDS`] until `stop` is done, and then once more.
    pub(super) async fn write_until(&self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let interval = tokio::time::sleep(Duration::from_secs(WRITE_INTERVAL_SECONDS));
            let stopping = tokio::select! {
                () = interval => false,
                () = &mut stop => true,
            };
            if let Err(error) = self.write().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not write how keys were used");
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
