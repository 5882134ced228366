//! Whose image is decoded next: a few at a time, one of each key, and the keys in turns.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::ids::KeyId;

/// Lets a few in at one time, in turns between those who ask.
#[derive(Debug)]
pub(super) struct Turns {
    inside_max: usize,
    /// Most of one owner that wait.
    owner_waiting_max: usize,
    /// Most of all that wait.
    waiting_max: usize,
    line: Mutex<Line>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct Line {
    /// Who is inside: nobody twice.
    inside: Vec<KeyId>,
    /// Who waits, by owner: the one who was in last stands last.
    waiting: VecDeque<(KeyId, VecDeque<u64>)>,
    next_ticket: u64,
}

/// A place inside, until dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    owner: KeyId,
}

/// A place in the line, until dropped.
struct Waiting<'a> {
    turns: &'a Turns,
    owner: KeyId,
    ticket: u64,
}

impl Turns {
    pub(super) fn new(inside_max: usize, owner_waiting_max: usize, waiting_max: usize) -> Self {
        Self { inside_max, owner_waiting_max, waiting_max, line: Mutex::default(), moved: Notify::new() }
    }

    /// Waits for the owner's turn; `None` at once when too many are waiting.
    pub(super) async fn enter(self: &Arc<Self>, owner: KeyId) -> Option<Turn> {
        let waiting = self.queue(owner)?;
        loop {
            // Before the look, so that no move is missed between it and the wait.
            let moved = self.moved.notified();
            if self.line().take(self.inside_max, owner, waiting.ticket) {
                // Whoever has looked before us and was behind us may be next now.
                self.moved.notify_waiters();
                return Some(Turn { turns: Arc::clone(self), owner });
            }
            moved.await;
        }
    }

    fn queue(&self, owner: KeyId) -> Option<Waiting<'_>> {
        let mut line = self.line();
        if line.waiting.iter().map(|(_, tickets)| tickets.len()).sum::<usize>() >= self.waiting_max {
            return None;
        }
        let ticket = line.next_ticket;
        match line.waiting.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, tickets)) if tickets.len() >= self.owner_waiting_max => return None,
            Some((_, tickets)) => tickets.push_back(ticket),
            None => line.waiting.push_back((owner, VecDeque::from([ticket]))),
        }
        line.next_ticket += 1;
        Some(Waiting { turns: self, owner, ticket })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Lets this ticket in, if it is the next.
    fn take(&mut self, inside_max: usize, owner: KeyId, ticket: u64) -> bool {
        if self.inside.len() >= inside_max {
            return false;
        }
        let Some(at) = self.waiting.iter().position(|(other, _)| !self.inside.contains(other)) else { return false };
        let (next, tickets) = &mut self.waiting[at];
        if *next != owner || tickets.front() != Some(&ticket) {
            return false;
        }
        tickets.pop_front();
        if let Some(served) = self.waiting.remove(at).filter(|(_, tickets)| !tickets.is_empty()) {
            self.waiting.push_back(served);
        }
        self.inside.push(owner);
        true
    }

    /// Takes a ticket out of the line, if it is still there.
    fn leave(&mut self, owner: KeyId, ticket: u64) {
        if let Some((_, tickets)) = self.waiting.iter_mut().find(|(other, _)| *other == owner) {
            tickets.retain(|other| *other != ticket);
        }
        self.waiting.retain(|(_, tickets)| !tickets.is_empty());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.turns.line().leave(self.owner, self.ticket);
        self.turns.moved.notify_waiters();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.line().inside.retain(|owner| *owner != self.owner);
        self.turns.moved.notify_waiters();
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

    /// Waits for a turn, says when it has come, and keeps it for a moment.
    fn work(turns: &Arc<Turns>, owner: KeyId, said: &mpsc::UnboundedSender<KeyId>) -> JoinHandle<()> {
        let (turns, said) = (Arc::clone(turns), said.clone());
        tokio::spawn(async move {
            let _turn = turns.enter(owner).await.expect("room in the line");
            said.send(owner).expect("listens");
            tokio::time::sleep(Duration::from_millis(10)).await;
        })
    }

    #[tokio::test]
    async fn who_asks_often_keeps_nobody_else_waiting() {
        let [one, two, three] = keys();
        for inside_max in [1, 2] {
            let turns = Arc::new(Turns::new(inside_max, 24, 64));
            let (said, mut heard) = mpsc::unbounded_channel();
            let mut works = Vec::new();
            for _ in 0..20 {
                works.push(work(&turns, one, &said));
            }
            tokio::task::yield_now().await;
            works.extend([work(&turns, two, &said), work(&turns, three, &said), work(&turns, two, &said)]);
            for work in works {
                work.await.expect("no panic");
            }
            drop(said);
            let mut order = Vec::new();
            while let Some(owner) = heard.recv().await {
                order.push(owner);
            }
            assert_eq!(order.len(), 23);
            let place = |owner| order.iter().position(|other| *other == owner).expect("served");
            assert!(place(two) <= 3 && place(three) <= 4, "{inside_max}: {order:?}");
            let line = turns.line();
            assert!(line.inside.is_empty() && line.waiting.is_empty(), "{line:?}");
        }
    }

    #[tokio::test]
    async fn one_owner_is_inside_once_and_the_line_is_bounded() {
        let [one, two, three] = keys();
        let turns = Arc::new(Turns::new(2, 1, 2));
        let inside = turns.enter(one).await.expect("free");
        let second = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.enter(one).await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "the other place is not for the same key");
        assert!(turns.enter(one).await.is_none(), "as many of one as may wait");
        let other = turns.enter(two).await.expect("the other place is free");
        let third = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.enter(three).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(turns.enter(two).await.is_none(), "as many as may wait");
        third.abort();
        assert!(third.await.is_err());
        assert_eq!(turns.line().waiting.len(), 1, "who gives up leaves the line");
        drop(inside);
        let second = second.await.expect("no panic").expect("its turn");
        drop((second, other));
        assert!(turns.enter(three).await.is_some());
    }
}
