//! The places that connections take. When all are taken, the connection that has served nobody for the longest time makes
//! way for a newcomer. Where all serve somebody a few more are taken in, for those who ask whether the worker lives: it
//! must not be taken for dead because it has much to do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::activity::{Activity, Life};

/// Connections beyond all others, for questions of health alone.
pub(super) const SPARE_PLACES: usize = 8;
/// A connection that is younger, or has served somebody since, does not make way: a request may be on its way.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// How long a newcomer waits for a place before it is looked again who could make way.
const WAIT: Duration = Duration::from_millis(100);

/// All places, and the connections that have them.
#[derive(Clone)]
pub(super) struct Places(Arc<Inner>);

struct Inner {
    usual: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    life: Life,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next_number: u64,
    activities: HashMap<u64, Activity>,
}

/// A connection's place, until it is dropped.
pub(super) struct Place {
    places: Places,
    number: u64,
    pub(super) activity: Activity,
    /// Whether it is for questions of health alone.
    pub(super) is_spare: bool,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(connections_max: usize, life: Life) -> Self {
        Self(Arc::new(Inner {
            usual: Arc::new(Semaphore::new(connections_max)),
            spare: Arc::new(Semaphore::new(SPARE_PLACES)),
            life,
            taken: Mutex::default(),
        }))
    }

    /// A place for a newcomer, as soon as there is one.
    pub(super) async fn take(&self) -> Place {
        loop {
            if let Ok(permit) = Arc::clone(&self.0.usual).try_acquire_owned() {
                return self.place(permit, false);
            }
            if !self.send_longest_idle_away()
                && let Ok(permit) = Arc::clone(&self.0.spare).try_acquire_owned()
            {
                return self.place(permit, true);
            }
            if let Ok(Ok(permit)) = tokio::time::timeout(WAIT, Arc::clone(&self.0.usual).acquire_owned()).await {
                return self.place(permit, false);
            }
        }
    }

    fn place(&self, permit: OwnedSemaphorePermit, is_spare: bool) -> Place {
        let life = if is_spare { Life { requests_max: 1, ..self.0.life } } else { self.0.life };
        let activity = Activity::new(life);
        let mut taken = self.taken();
        let number = taken.next_number;
        taken.next_number += 1;
        taken.activities.insert(number, activity.clone());
        Place { places: self.clone(), number, activity, is_spare, _permit: permit }
    }

    /// Whether somebody makes way.
    fn send_longest_idle_away(&self) -> bool {
        let taken = self.taken();
        let idle = taken.activities.values().filter_map(|activity| Some((activity.idle_since()?, activity)));
        let Some((since, activity)) = idle.min_by_key(|(since, _)| *since) else { return false };
        if Instant::now().duration_since(since) < IDLE_MIN {
            return false;
        }
        activity.send_away();
        true
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().activities.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { requests_max: 10, age_max: Duration::from_mins(1) };

    async fn is_sent_away(place: &Place) -> bool {
        tokio::time::timeout(Duration::from_millis(50), place.activity.sent_away()).await.is_ok()
    }

    #[tokio::test]
    async fn who_has_been_idle_for_longest_makes_way_and_who_serves_does_not() {
        let places = Places::new(2, LIFE);
        let busy = places.take().await;
        let exchange = busy.activity.begin();
        let idle = places.take().await;
        tokio::time::sleep(IDLE_MIN).await;
        let newcomer = tokio::spawn({
            let places = places.clone();
            async move { places.take().await }
        });
        assert!(is_sent_away(&idle).await && !is_sent_away(&busy).await);
        drop(idle);
        let newcomer = newcomer.await.expect("no panic");
        assert!(!newcomer.is_spare);
        // Both serve, or have just come.
        let spare = places.take().await;
        assert!(spare.is_spare && !is_sent_away(&newcomer).await);
        drop((exchange, newcomer));
        assert!(!places.take().await.is_spare);
    }

    #[tokio::test]
    async fn who_gets_a_request_before_it_hears_of_it_stays() {
        let activity = Activity::new(LIFE);
        activity.send_away();
        let exchange = activity.begin();
        assert!(tokio::time::timeout(Duration::from_millis(50), activity.sent_away()).await.is_err());
        assert!(activity.idle_since().is_none());
        drop(exchange);
        assert!(activity.idle_since().is_some(), "the next time it can be asked again");
    }
}
