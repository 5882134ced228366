//! Incoming bodies: the size of one, and the memory of all together.
//!
//! Memory for a body is reserved before it is read: for its announced length, or step by step if it announces none. The
//! reservation lasts until nothing of the body is left in memory, so that many requests cannot exhaust it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use futures_util::StreamExt as _;

use crate::domain::ids::KeyId;
use crate::http::error::{ApiError, ErrorCode};

/// A body up to this size needs no reservation: the limit of connections bounds these. Also the largest body that is
/// parsed on the async threads, and the limit of routes that need no larger one.
pub(in crate::http) const SMALL_BODY_BYTES_MAX: usize = 64 * 1024;
/// The step by which the reservation of a body without an announced length grows.
const UNANNOUNCED_BYTES: usize = 256 * 1024;

/// The owner of the request's key, as a request extension.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct BodyOwner(pub(in crate::http) KeyId);

/// The memory budget of all bodies together.
#[derive(Debug)]
pub(in crate::http) struct BodyBudget {
    bytes_max: usize,
    /// The most for one key, which may always have one body of any size.
    owner_bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// Only owners with a reservation.
    owners: HashMap<KeyId, usize>,
}

/// The memory reserved for one request, until dropped.
#[derive(Debug)]
pub(in crate::http) struct BodyReservation {
    budget: Arc<BodyBudget>,
    owner: KeyId,
    bytes: usize,
}

impl BodyBudget {
    pub(in crate::http) fn new(bytes_max: usize, owner_bytes_max: usize) -> Self {
        Self { bytes_max, owner_bytes_max, held: Mutex::default() }
    }

    fn reserve(self: &Arc<Self>, owner: KeyId) -> BodyReservation {
        BodyReservation { budget: Arc::clone(self), owner, bytes: 0 }
    }
}

impl BodyReservation {
    /// The owner of the body's key; [`KeyId::NONE`] without a key.
    pub(in crate::http) fn owner(&self) -> KeyId {
        self.owner
    }

    /// Extends the reservation by `bytes`, for a copy of a part of the body.
    ///
    /// # Errors
    /// If the budget does not have them.
    pub(in crate::http) fn grow_by(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.grow_to(self.bytes.saturating_add(bytes))
    }

    /// Extends the reservation to `bytes`.
    fn grow_to(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes <= SMALL_BODY_BYTES_MAX || bytes <= self.bytes {
            return Ok(());
        }
        let more = bytes - self.bytes;
        let mut held = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.owners.get(&self.owner).copied().unwrap_or_default();
        let fits = |now: usize, max: usize| now == self.bytes || now.saturating_add(more) <= max;
        let reason = if !fits(own, self.budget.owner_bytes_max) {
            "the key has reached its limit of large bodies in transfer"
        } else if !fits(held.bytes, self.budget.bytes_max) {
            "the worker has reached its limit of large bodies in transfer"
        } else {
            held.bytes = held.bytes.saturating_add(more);
            held.owners.insert(self.owner, own.saturating_add(more));
            self.bytes = bytes;
            return Ok(());
        };
        Err(ApiError::too_many_bodies(reason))
    }
}

impl Drop for BodyReservation {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut held = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.bytes = held.bytes.saturating_sub(self.bytes);
        let left = held.owners.get(&self.owner).copied().unwrap_or_default().saturating_sub(self.bytes);
        if left == 0 {
            held.owners.remove(&self.owner);
        } else {
            held.owners.insert(self.owner, left);
        }
    }
}

/// A body's announced length.
pub(in crate::http) fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body of limited size as it arrives.
pub(in crate::http) struct Incoming {
    pieces: BodyDataStream,
    /// What has arrived.
    bytes: usize,
    bytes_max: usize,
    reservation: BodyReservation,
}

impl Incoming {
    /// A body of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// If it announces more, or more than the budget has.
    pub(in crate::http) fn begin(
        body: Body,
        announced: Option<usize>,
        bytes_max: usize,
        (budget, owner): (&Arc<BodyBudget>, KeyId),
    ) -> Result<Self, ApiError> {
        if announced.is_some_and(|bytes| bytes > bytes_max) {
            return Err(too_large(bytes_max));
        }
        let mut reservation = budget.reserve(owner);
        reservation.grow_to(announced.unwrap_or_default())?;
        Ok(Self { pieces: body.into_data_stream(), bytes: 0, bytes_max, reservation })
    }

    /// The next piece, whose memory is reserved, or `None` at the end. `incomplete` is the code for a body that breaks off.
    pub(in crate::http) async fn next(&mut self, incomplete: ErrorCode) -> Result<Option<Bytes>, ApiError> {
        let Some(piece) = self.pieces.next().await else { return Ok(None) };
        let piece = piece.map_err(|_| ApiError::new(incomplete).with_detail("the body is incomplete"))?;
        self.bytes = self.bytes.saturating_add(piece.len());
        if self.bytes > self.bytes_max {
            return Err(too_large(self.bytes_max));
        }
        if self.bytes > SMALL_BODY_BYTES_MAX && self.bytes > self.reservation.bytes {
            self.reservation.grow_to(self.bytes.next_multiple_of(UNANNOUNCED_BYTES).min(self.bytes_max))?;
        }
        Ok(Some(piece))
    }

    /// The reservation of all that has arrived.
    pub(in crate::http) fn into_reservation(self) -> BodyReservation {
        self.reservation
    }
}

fn too_large(bytes_max: usize) -> ApiError {
    ApiError::new(ErrorCode::BodyTooLarge).with_detail(format!("the limit is {bytes_max} bytes"))
}

/// Reads a body of at most `bytes_max` bytes, and returns it with its reservation.
pub(in crate::http) async fn collect(
    body: Body,
    announced: Option<usize>,
    bytes_max: usize,
    budget: (&Arc<BodyBudget>, KeyId),
) -> Result<(Vec<u8>, BodyReservation), ApiError> {
    let mut incoming = Incoming::begin(body, announced, bytes_max, budget)?;
    let mut bytes = Vec::with_capacity(announced.unwrap_or_default());
    while let Some(piece) = incoming.next(ErrorCode::MalformedJson).await? {
        // A vector that grows by itself may allocate twice what it needs.
        bytes.reserve_exact(incoming.reservation.bytes.saturating_sub(bytes.len()));
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, incoming.into_reservation()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::KeyId;

    const LARGE: usize = 100_000;

    fn held(budget: &Arc<BodyBudget>, owner: KeyId, bytes: usize) -> Option<BodyReservation> {
        let mut reservation = budget.reserve(owner);
        reservation.grow_to(bytes).ok().map(|()| reservation)
    }

    fn keys() -> [KeyId; 3] {
        [1, 2, 3].map(|n| format!("018f3c1e-9d5b-7a2c-8e4f-00000000000{n}").parse().expect("an id"))
    }

    #[test]
    fn keys_and_the_worker_have_budgets_and_reservations_are_returned() {
        let budget = Arc::new(BodyBudget::new(3 * LARGE, 2 * LARGE));
        let [one, two, three] = keys();
        let first = held(&budget, one, LARGE).expect("room");
        let second = held(&budget, one, LARGE).expect("room");
        assert!(held(&budget, one, LARGE).is_none(), "the key's budget");
        assert!(held(&budget, one, SMALL_BODY_BYTES_MAX).is_some(), "small bodies need no reservation");
        let third = held(&budget, two, LARGE).expect("another key has its own budget");
        assert!(held(&budget, three, LARGE).is_none(), "the worker's budget");
        drop(first);
        let again = held(&budget, three, LARGE).expect("returned");
        drop((second, third, again));
        let left = budget.held.lock().expect("not poisoned");
        assert!(left.bytes == 0 && left.owners.is_empty(), "{left:?}");
    }

    #[test]
    fn one_body_of_any_size_is_always_accepted() {
        let budget = Arc::new(BodyBudget::new(LARGE, LARGE));
        let [one, ..] = keys();
        let reservation = held(&budget, one, 10 * LARGE).expect("the only one");
        assert!(held(&budget, one, LARGE).is_none());
        drop(reservation);
        assert!(held(&budget, one, LARGE).is_some());
    }

    #[tokio::test]
    async fn a_body_without_an_announced_length_reserves_as_it_arrives() {
        let budget = Arc::new(BodyBudget::new(4 * UNANNOUNCED_BYTES, 2 * UNANNOUNCED_BYTES));
        let [one, ..] = keys();
        let pieces = || {
            let pieces = (0..16).map(|_| Ok::<_, std::io::Error>(vec![b' '; UNANNOUNCED_BYTES / 8]));
            Body::from_stream(futures_util::stream::iter(pieces))
        };
        let read = || collect(pieces(), None, 10 * UNANNOUNCED_BYTES, (&budget, one));
        let (bytes, reservation) = read().await.expect("the budget suffices");
        assert_eq!((bytes.len(), reservation.bytes), (2 * UNANNOUNCED_BYTES, 2 * UNANNOUNCED_BYTES));
        assert!(read().await.is_err(), "no budget beside the first");
        drop(reservation);
        assert!(read().await.is_ok());
        assert!(collect(pieces(), None, UNANNOUNCED_BYTES, (&budget, one)).await.is_err(), "the route's limit");
        let lies =
            collect(pieces(), Some(10), 10 * UNANNOUNCED_BYTES, (&budget, one)).await.expect("reserved as it arrives");
        assert_eq!(lies.1.bytes, 2 * UNANNOUNCED_BYTES);
    }
}
