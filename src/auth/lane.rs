//! A queue with a bound in front of a place with a bound.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lets a few in at one time, in the order in which they came, and turns away who would wait too far back.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    inside: Arc<Semaphore>,
    /// Places in the queue and inside together.
    places: Arc<Semaphore>,
}

/// A place in the lane, given back when dropped.
#[derive(Debug)]
pub(super) struct LanePermit {
    _inside: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Lane {
    pub(super) fn new(inside_max: usize, waiting_max: usize) -> Self {
        Self {
            inside: Arc::new(Semaphore::new(inside_max)),
            places: Arc::new(Semaphore::new(inside_max + waiting_max)),
        }
    }

    /// Waits for a turn; `None` at once when too many are waiting.
    pub(super) async fn enter(&self) -> Option<LanePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let inside = Arc::clone(&self.inside).acquire_owned().await.expect("this semaphore is never closed");
        Some(LanePermit { _inside: inside, _place: place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_lane_turns_away_and_a_left_place_is_free_again() {
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
    async fn who_gives_up_waiting_leaves_no_trace() {
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
