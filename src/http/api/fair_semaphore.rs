//! A semaphore that is fair between keys: a few permits, at most one for each key, given to the keys in turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::ids::KeyId;

/// A semaphore that is fair between owners.
#[derive(Debug)]
pub(super) struct FairSemaphore {
    permits_max: usize,
    /// Maximum waiters of one owner.
    owner_waiting_max: usize,
    /// Maximum waiters in total.
    waiting_max: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The owners of permits, each at most once.
    holders: Vec<KeyId>,
    /// Waiters by owner: the owner served last is at the end.
    waiting: VecDeque<(KeyId, VecDeque<u64>)>,
    next_ticket: u64,
}

/// A permit, until dropped.
#[derive(Debug)]
pub(super) struct FairPermit {
    semaphore: Arc<FairSemaphore>,
    owner: KeyId,
}

/// A waiter, until dropped.
struct Waiter<'a> {
    semaphore: &'a FairSemaphore,
    owner: KeyId,
    ticket: u64,
}

impl FairSemaphore {
    pub(super) fn new(permits_max: usize, owner_waiting_max: usize, waiting_max: usize) -> Self {
        Self { permits_max, owner_waiting_max, waiting_max, state: Mutex::default(), changed: Notify::new() }
    }

    /// Waits for a permit; `None` at once if too many are waiting.
    pub(super) async fn acquire(self: &Arc<Self>, owner: KeyId) -> Option<FairPermit> {
        let waiter = self.enqueue(owner)?;
        loop {
            // Before the check, so that no change is missed between it and the wait.
            let changed = self.changed.notified();
            if self.state().take(self.permits_max, owner, waiter.ticket) {
                // A waiter behind this one that checked before may be next now.
                self.changed.notify_waiters();
                return Some(FairPermit { semaphore: Arc::clone(self), owner });
            }
            changed.await;
        }
    }

    fn enqueue(&self, owner: KeyId) -> Option<Waiter<'_>> {
        let mut state = self.state();
        if state.waiting.iter().map(|(_, tickets)| tickets.len()).sum::<usize>() >= self.waiting_max {
            return None;
        }
        let ticket = state.next_ticket;
        match state.waiting.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, tickets)) if tickets.len() >= self.owner_waiting_max => return None,
            Some((_, tickets)) => tickets.push_back(ticket),
            None => state.waiting.push_back((owner, VecDeque::from([ticket]))),
        }
        state.next_ticket += 1;
        Some(Waiter { semaphore: self, owner, ticket })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives this ticket a permit if it is next.
    fn take(&mut self, permits_max: usize, owner: KeyId, ticket: u64) -> bool {
        if self.holders.len() >= permits_max {
            return false;
        }
        let Some(at) = self.waiting.iter().position(|(other, _)| !self.holders.contains(other)) else { return false };
        let (next, tickets) = &mut self.waiting[at];
        if *next != owner || tickets.front() != Some(&ticket) {
            return false;
        }
        tickets.pop_front();
        if let Some(served) = self.waiting.remove(at).filter(|(_, tickets)| !tickets.is_empty()) {
            self.waiting.push_back(served);
        }
        self.holders.push(owner);
        true
    }

    /// Removes a ticket if it still waits.
    fn leave(&mut self, owner: KeyId, ticket: u64) {
        if let Some((_, tickets)) = self.waiting.iter_mut().find(|(other, _)| *other == owner) {
            tickets.retain(|other| *other != ticket);
        }
        self.waiting.retain(|(_, tickets)| !tickets.is_empty());
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.semaphore.state().leave(self.owner, self.ticket);
        self.semaphore.changed.notify_waiters();
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        self.semaphore.state().holders.retain(|owner| *owner != self.owner);
        self.semaphore.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;

    fn keys() -> [KeyId; 3] {
        [1, 2, 3].map(|n| format!("018f3c1e-9d5b-7a2c-8e4f-00000000000{n}").parse().expect("an id"))
    }

    /// Acquires a permit, reports it, and keeps it for a moment.
    fn work(semaphore: &Arc<FairSemaphore>, owner: KeyId, reported: &mpsc::UnboundedSender<KeyId>) -> JoinHandle<()> {
        let (semaphore, reported) = (Arc::clone(semaphore), reported.clone());
        tokio::spawn(async move {
            let _permit = semaphore.acquire(owner).await.expect("room to wait");
            reported.send(owner).expect("a receiver");
            tokio::time::sleep(Duration::from_millis(10)).await;
        })
    }

    #[tokio::test]
    async fn frequent_requests_of_one_key_do_not_delay_others() {
        let [one, two, three] = keys();
        for permits_max in [1, 2] {
            let semaphore = Arc::new(FairSemaphore::new(permits_max, 24, 64));
            let (reported, mut received) = mpsc::unbounded_channel();
            let mut works = Vec::new();
            for _ in 0..20 {
                works.push(work(&semaphore, one, &reported));
            }
            tokio::task::yield_now().await;
            works.extend([
                work(&semaphore, two, &reported),
                work(&semaphore, three, &reported),
                work(&semaphore, two, &reported),
            ]);
            for work in works {
                work.await.expect("no panic");
            }
            drop(reported);
            let mut order = Vec::new();
            while let Some(owner) = received.recv().await {
                order.push(owner);
            }
            assert_eq!(order.len(), 23);
            let position = |owner| order.iter().position(|other| *other == owner).expect("served");
            assert!(position(two) <= 3 && position(three) <= 4, "{permits_max}: {order:?}");
            let state = semaphore.state();
            assert!(state.holders.is_empty() && state.waiting.is_empty(), "{state:?}");
        }
    }

    #[tokio::test]
    async fn an_owner_has_one_permit_and_the_waiters_are_bounded() {
        let [one, two, three] = keys();
        let semaphore = Arc::new(FairSemaphore::new(2, 1, 2));
        let first = semaphore.acquire(one).await.expect("free");
        let second = tokio::spawn({
            let semaphore = Arc::clone(&semaphore);
            async move { semaphore.acquire(one).await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "the other permit is not for the same key");
        assert!(semaphore.acquire(one).await.is_none(), "the owner's limit of waiters");
        let other = semaphore.acquire(two).await.expect("the other permit is free");
        let third = tokio::spawn({
            let semaphore = Arc::clone(&semaphore);
            async move { semaphore.acquire(three).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(semaphore.acquire(two).await.is_none(), "the limit of waiters");
        third.abort();
        assert!(third.await.is_err());
        assert_eq!(semaphore.state().waiting.len(), 1, "an aborted waiter is removed");
        drop(first);
        let second = second.await.expect("no panic").expect("a permit");
        drop((second, other));
        assert!(semaphore.acquire(three).await.is_some());
    }
}
