//! The attempts that are being made now: how many in all, to one host, and for one key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::ids::KeyId;

/// Most attempts at one time.
pub(super) const FLIGHTS_MAX: usize = 32;
/// Most of them to one host: a slow one must leave room for others.
const PER_HOST_MAX: usize = 4;
/// Most of them for one key, which may name many hosts.
const PER_KEY_MAX: usize = 8;

/// The attempts that are being made now. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// By the delivery's number.
    flights: Mutex<HashMap<i64, (KeyId, String)>>,
    ended: Notify,
}

/// An attempt that is being made, until it is dropped.
#[must_use = "a dropped flight has ended"]
pub(super) struct Flight {
    flights: Flights,
    number: i64,
}

/// What must not be started now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Busy {
    pub(super) numbers: Vec<i64>,
    pub(super) hosts: Vec<String>,
    pub(super) keys: Vec<KeyId>,
    /// How many more may be started.
    pub(super) room: usize,
}

impl Flights {
    /// What is being delivered, and who has as many attempts as it may.
    pub(super) fn busy(&self) -> Busy {
        let flights = self.lock();
        let (mut by_host, mut by_key) = (HashMap::<&str, usize>::new(), HashMap::<KeyId, usize>::new());
        for (key, host) in flights.values() {
            *by_host.entry(host).or_default() += 1;
            *by_key.entry(*key).or_default() += 1;
        }
        Busy {
            numbers: flights.keys().copied().collect(),
            hosts: by_host
                .into_iter()
                .filter(|(_, count)| *count >= PER_HOST_MAX)
                .map(|(host, _)| host.to_owned())
                .collect(),
            keys: by_key.into_iter().filter(|(_, count)| *count >= PER_KEY_MAX).map(|(key, _)| key).collect(),
            room: FLIGHTS_MAX.saturating_sub(flights.len()),
        }
    }

    /// Begins an attempt, if its host and its key have room.
    pub(super) fn begin(&self, number: i64, key: KeyId, host: &str) -> Option<Flight> {
        let mut flights = self.lock();
        let to_host = flights.values().filter(|(_, other)| other == host).count();
        let for_key = flights.values().filter(|(other, _)| *other == key).count();
        let has_room = flights.len() < FLIGHTS_MAX && to_host < PER_HOST_MAX && for_key < PER_KEY_MAX;
        if !has_room || flights.contains_key(&number) {
            return None;
        }
        flights.insert(number, (key, host.to_owned()));
        Some(Flight { flights: self.clone(), number })
    }

    /// Waits until an attempt has ended; returns at once if one has since the last call.
    pub(super) async fn ended(&self) {
        self.0.ended.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i64, (KeyId, String)>> {
        self.0.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.number);
        self.flights.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_and_one_key_leave_room_for_others() {
        let (flights, key, other) = (Flights::default(), KeyId::generate(), KeyId::generate());
        let mut held = Vec::new();
        for number in 0..PER_HOST_MAX as i64 {
            held.push(flights.begin(number, key, "slow.example").expect("room"));
        }
        assert!(flights.begin(100, other, "slow.example").is_none(), "the host has as many as it may");
        assert!(flights.begin(0, key, "a.example").is_none(), "it is being delivered");
        assert_eq!(flights.busy().hosts, ["slow.example"]);
        for number in PER_HOST_MAX..PER_KEY_MAX {
            held.push(flights.begin(number as i64, key, &format!("{number}.example")).expect("room"));
        }
        assert!(flights.begin(100, key, "a.example").is_none(), "the key has as many as it may");
        assert_eq!(flights.busy().keys, [key]);
        for number in PER_KEY_MAX..FLIGHTS_MAX {
            held.push(flights.begin(number as i64, KeyId::generate(), &format!("{number}.example")).expect("room"));
        }
        assert!(flights.begin(100, other, "a.example").is_none() && flights.busy().room == 0);
        held.clear();
        let (_a, _b) = (flights.begin(0, key, "slow.example"), flights.begin(1, key, "b.example"));
        let busy = flights.busy();
        assert_eq!((busy.hosts.len(), busy.keys.len(), busy.room), (0, 0, FLIGHTS_MAX - 2));
    }
}
