//! A bounded queue in front of bounded concurrency.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Admits a few callers at a time, in order of arrival, and rejects those beyond the queue's bound.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    inside: Arc<Semaphore>,
    /// Slots in the queue and inside together.
    slots: Arc<Semaphore>,
}

/// A slot in the lane, released when dropped.
#[derive(Debug)]
pub(super) struct LanePermit {
    _inside: OwnedSemaphorePermit,
    _slot: OwnedSemaphorePermit,
}

impl Lane {
    pub(super) fn new(inside_max: usize, waiting_max: usize) -> Self {
        Self { inside: Arc::new(Semaphore::new(inside_max)), slots: Arc::new(Semaphore::new(inside_max + waiting_max)) }
    }

    /// Waits to be admitted. Returns `None` at once if too many are waiting.
    pub(super) async fn enter(&self) -> Option<LanePermit> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let inside = Arc::clone(&self.inside).acquire_owned().await.expect("this semaphore is never closed");
        Some(LanePermit { _inside: inside, _slot: slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_lane_rejects_and_a_released_slot_is_free_again() {
        let lane = Lane::new(1, 1);
        let inside = lane.enter().await.expect("free");
        let waiting = tokio::spawn({
            let lane = lane.clone();
            async move { lane.enter().await }
        });
        tokio::task::yield_now().await;
        assert!(lane.enter().await.is_none());
        drop(inside);
        let inside = waiting.await.expect("no panic").expect("had waited");
        drop(inside);
        assert!(lane.enter().await.is_some());
    }

    #[tokio::test]
    async fn a_canceled_wait_frees_its_slot() {
        let lane = Lane::new(1, 1);
        let inside = lane.enter().await.expect("free");
        let waiting = tokio::spawn({
            let lane = lane.clone();
            async move { lane.enter().await.is_some() }
        });
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.is_err());
        drop(inside);
        assert!(lane.enter().await.is_some());
    }
}
