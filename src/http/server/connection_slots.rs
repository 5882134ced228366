//! Slots for connections. If all are taken, a new connection evicts the one that has been idle the longest. If none is
//! idle, a few spare slots remain for health checks: a busy worker must not appear dead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::activity::{Activity, KeepAliveLimits};

/// Spare connections beyond the limit, for health checks only.
pub(super) const SPARE_SLOTS: usize = 8;
/// A connection that has been idle for less is not evicted: a request may be in transfer.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// How long a new connection waits for a slot before it tries again to evict another.
const WAIT: Duration = Duration::from_millis(100);

/// All slots and their connections.
#[derive(Clone)]
pub(super) struct ConnectionSlots(Arc<Inner>);

struct Inner {
    usual: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    limits: KeepAliveLimits,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next_number: u64,
    activities: HashMap<u64, Activity>,
}

/// A connection's slot, until it is dropped.
pub(super) struct ConnectionSlot {
    slots: ConnectionSlots,
    number: u64,
    pub(super) activity: Activity,
    /// Whether it is for health checks only.
    pub(super) is_spare: bool,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionSlots {
    pub(super) fn new(connections_max: usize, limits: KeepAliveLimits) -> Self {
        Self(Arc::new(Inner {
            usual: Arc::new(Semaphore::new(connections_max)),
            spare: Arc::new(Semaphore::new(SPARE_SLOTS)),
            limits,
            taken: Mutex::default(),
        }))
    }

    /// Waits for a slot for a new connection.
    pub(super) async fn take(&self) -> ConnectionSlot {
        loop {
            if let Ok(permit) = Arc::clone(&self.0.usual).try_acquire_owned() {
                return self.slot(permit, false);
            }
            if !self.evict_longest_idle()
                && let Ok(permit) = Arc::clone(&self.0.spare).try_acquire_owned()
            {
                return self.slot(permit, true);
            }
            if let Ok(Ok(permit)) = tokio::time::timeout(WAIT, Arc::clone(&self.0.usual).acquire_owned()).await {
                return self.slot(permit, false);
            }
        }
    }

    fn slot(&self, permit: OwnedSemaphorePermit, is_spare: bool) -> ConnectionSlot {
        let limits = if is_spare { KeepAliveLimits { requests_max: 1, ..self.0.limits } } else { self.0.limits };
        let activity = Activity::new(limits);
        let mut taken = self.taken();
        let number = taken.next_number;
        taken.next_number += 1;
        taken.activities.insert(number, activity.clone());
        ConnectionSlot { slots: self.clone(), number, activity, is_spare, _permit: permit }
    }

    /// Whether a connection was evicted.
    fn evict_longest_idle(&self) -> bool {
        let taken = self.taken();
        let idle = taken.activities.values().filter_map(|activity| Some((activity.idle_since()?, activity)));
        let Some((since, activity)) = idle.min_by_key(|(since, _)| *since) else { return false };
        if Instant::now().duration_since(since) < IDLE_MIN {
            return false;
        }
        activity.evict();
        true
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.taken().activities.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: KeepAliveLimits = KeepAliveLimits { requests_max: 10, age_max: Duration::from_mins(1) };

    async fn is_evicted(slot: &ConnectionSlot) -> bool {
        tokio::time::timeout(Duration::from_millis(50), slot.activity.evicted()).await.is_ok()
    }

    #[tokio::test]
    async fn the_longest_idle_connection_is_evicted_and_a_busy_one_is_not() {
        let slots = ConnectionSlots::new(2, LIMITS);
        let busy = slots.take().await;
        let exchange = busy.activity.begin();
        let idle = slots.take().await;
        tokio::time::sleep(IDLE_MIN).await;
        let new = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take().await }
        });
        assert!(is_evicted(&idle).await && !is_evicted(&busy).await);
        drop(idle);
        let new = new.await.expect("no panic");
        assert!(!new.is_spare);
        // Both are busy or new.
        let spare = slots.take().await;
        assert!(spare.is_spare && !is_evicted(&new).await);
        drop((exchange, new));
        assert!(!slots.take().await.is_spare);
    }

    #[tokio::test]
    async fn a_connection_with_a_new_request_is_not_evicted() {
        let activity = Activity::new(LIMITS);
        activity.evict();
        let exchange = activity.begin();
        assert!(tokio::time::timeout(Duration::from_millis(50), activity.evicted()).await.is_err());
        assert!(activity.idle_since().is_none());
        drop(exchange);
        assert!(activity.idle_since().is_some(), "it can be evicted later");
    }
}
