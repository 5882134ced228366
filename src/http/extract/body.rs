//! Bodies on their way in: how large one may be, and how much all of them take up together.
//!
//! A body is paid for before it is read: by what it announces, or piece by piece as it comes where it announces nothing.
//! What is paid is held until nothing of the body is left in memory, so that nobody fills it by asking often.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use futures_util::StreamExt as _;

use crate::domain::ids::KeyId;
use crate::http::error::{ApiError, ErrorCode};

/// A body up to this size costs nothing: the bound of connections is bound enough. It is also the largest that is
/// parsed on the async threads, and the largest of routes that need no larger one.
pub(in crate::http) const SMALL_BODY_BYTES_MAX: usize = 64 * 1024;
/// By how much a body grows for which it pays at one time where it has not said how long it is.
const UNANNOUNCED_BYTES: usize = 256 * 1024;

/// Whose key a request came with, as an extension of the request.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct BodyOwner(pub(in crate::http) KeyId);

/// What all bodies together may take up.
#[derive(Debug)]
pub(in crate::http) struct BodyBudget {
    bytes_max: usize,
    /// The share that one key may have of it. One body it may always have, whatever its size.
    owner_bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// Only those that hold something.
    owners: HashMap<KeyId, usize>,
}

/// What one request takes up of it, until dropped.
#[derive(Debug)]
pub(in crate::http) struct BodyHold {
    budget: Arc<BodyBudget>,
    owner: KeyId,
    bytes: usize,
}

impl BodyBudget {
    pub(in crate::http) fn new(bytes_max: usize, owner_bytes_max: usize) -> Self {
        Self { bytes_max, owner_bytes_max, held: Mutex::default() }
    }

    fn hold(self: &Arc<Self>, owner: KeyId) -> BodyHold {
        BodyHold { budget: Arc::clone(self), owner, bytes: 0 }
    }
}

impl BodyHold {
    /// Who brought the body; nobody's key where it came without one.
    pub(in crate::http) fn owner(&self) -> KeyId {
        self.owner
    }

    /// Pays for a body that has come to `bytes`.
    fn grow_to(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes <= SMALL_BODY_BYTES_MAX || bytes <= self.bytes {
            return Ok(());
        }
        let more = bytes - self.bytes;
        let mut held = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.owners.get(&self.owner).copied().unwrap_or_default();
        let fits = |now: usize, max: usize| now == self.bytes || now.saturating_add(more) <= max;
        let reason = if !fits(own, self.budget.owner_bytes_max) {
            "the key has as many large bodies on their way as it may"
        } else if !fits(held.bytes, self.budget.bytes_max) {
            "as many large bodies are on their way as the worker takes"
        } else {
            held.bytes = held.bytes.saturating_add(more);
            held.owners.insert(self.owner, own.saturating_add(more));
            self.bytes = bytes;
            return Ok(());
        };
        Err(ApiError::too_many_bodies(reason))
    }
}

impl Drop for BodyHold {
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

/// What a body says of its length.
pub(in crate::http) fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body of at most `bytes_max` bytes, and the hold on the memory that it takes up.
pub(in crate::http) async fn collect(
    body: Body,
    announced: Option<usize>,
    bytes_max: usize,
    (budget, owner): (&Arc<BodyBudget>, KeyId),
) -> Result<(Vec<u8>, BodyHold), ApiError> {
    let too_large = || ApiError::new(ErrorCode::BodyTooLarge).with_detail(format!("the limit is {bytes_max} bytes"));
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large());
    }
    let mut hold = budget.hold(owner);
    hold.grow_to(announced.unwrap_or_default())?;
    let mut bytes = Vec::with_capacity(announced.unwrap_or_default());
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|_| ApiError::new(ErrorCode::MalformedJson).with_detail("the body did not arrive whole"))?;
        let length = bytes.len().saturating_add(piece.len());
        if length > bytes_max {
            return Err(too_large());
        }
        if length > SMALL_BODY_BYTES_MAX && length > hold.bytes {
            let paid = length.next_multiple_of(UNANNOUNCED_BYTES).min(bytes_max);
            hold.grow_to(paid)?;
            // What grows by itself may take twice what it needs.
            bytes.reserve_exact(paid.saturating_sub(bytes.len()));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, hold))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::KeyId;

    const LARGE: usize = 100_000;

    fn held(budget: &Arc<BodyBudget>, owner: KeyId, bytes: usize) -> Option<BodyHold> {
        let mut hold = budget.hold(owner);
        hold.grow_to(bytes).ok().map(|()| hold)
    }

    fn keys() -> [KeyId; 3] {
        [1, 2, 3].map(|n| format!("018f3c1e-9d5b-7a2c-8e4f-00000000000{n}").parse().expect("an id"))
    }

    #[test]
    fn a_key_has_its_share_and_all_have_theirs_and_what_is_held_comes_back() {
        let budget = Arc::new(BodyBudget::new(3 * LARGE, 2 * LARGE));
        let [one, two, three] = keys();
        let first = held(&budget, one, LARGE).expect("room");
        let second = held(&budget, one, LARGE).expect("room");
        assert!(held(&budget, one, LARGE).is_none(), "its share");
        assert!(held(&budget, one, SMALL_BODY_BYTES_MAX).is_some(), "small ones cost nothing");
        let third = held(&budget, two, LARGE).expect("another key has its own");
        assert!(held(&budget, three, LARGE).is_none(), "what all may take up");
        drop(first);
        let again = held(&budget, three, LARGE).expect("given back");
        drop((second, third, again));
        let left = budget.held.lock().expect("not poisoned");
        assert!(left.bytes == 0 && left.owners.is_empty(), "{left:?}");
    }

    #[test]
    fn one_body_is_always_taken_however_large_it_may_be() {
        let budget = Arc::new(BodyBudget::new(LARGE, LARGE));
        let [one, ..] = keys();
        let hold = held(&budget, one, 10 * LARGE).expect("the only one");
        assert!(held(&budget, one, LARGE).is_none());
        drop(hold);
        assert!(held(&budget, one, LARGE).is_some());
    }

    #[tokio::test]
    async fn a_body_that_does_not_say_its_length_pays_as_it_comes() {
        let budget = Arc::new(BodyBudget::new(4 * UNANNOUNCED_BYTES, 2 * UNANNOUNCED_BYTES));
        let [one, ..] = keys();
        let pieces = || {
            let pieces = (0..16).map(|_| Ok::<_, std::io::Error>(vec![b' '; UNANNOUNCED_BYTES / 8]));
            Body::from_stream(futures_util::stream::iter(pieces))
        };
        let read = || collect(pieces(), None, 10 * UNANNOUNCED_BYTES, (&budget, one));
        let (bytes, hold) = read().await.expect("its share suffices");
        assert_eq!((bytes.len(), hold.bytes), (2 * UNANNOUNCED_BYTES, 2 * UNANNOUNCED_BYTES));
        assert!(read().await.is_err(), "no room beside the first");
        drop(hold);
        assert!(read().await.is_ok());
        assert!(collect(pieces(), None, UNANNOUNCED_BYTES, (&budget, one)).await.is_err(), "the route's limit");
        let lies = collect(pieces(), Some(10), 10 * UNANNOUNCED_BYTES, (&budget, one)).await.expect("paid as it comes");
        assert_eq!(lies.1.bytes, 2 * UNANNOUNCED_BYTES);
    }
}
