//! Idempotent requests: the same idempotency key and body from the same API key give the same job for a day.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use time::{Duration, OffsetDateTime};
use tokio::sync::OwnedMutexGuard;

use crate::domain::ids::KeyId;

/// How long an idempotency key refers to its job, unless the job is deleted before.
const KEPT_FOR: Duration = Duration::hours(24);

/// A client's idempotency key, and the request it was sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatKey {
    /// The key, chosen by the client.
    pub word: String,
    /// A collision-free digest of the request.
    pub body_digest: [u8; 32],
}

/// Serializes requests with the same idempotency key: the second finds the first one's job, instead of being refused
/// for the reservation that the first holds before its job is stored.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Asked, Weak<tokio::sync::Mutex<()>>>>);

/// Owner and idempotency key.
type Asked = (KeyId, String);

/// Held until the job is stored, or the request refused.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "the guard is the turn")] OwnedMutexGuard<()>);

impl Turns {
    /// Returns at once, unless the same request is under way.
    pub(super) async fn take(&self, owner: KeyId, key: &RepeatKey) -> Turn {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // So there are at most as many entries as requests.
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.entry((owner, key.word.clone())).or_default();
            turn.upgrade().unwrap_or_else(|| {
                let new = Arc::default();
                *turn = Arc::downgrade(&new);
                new
            })
        };
        Turn(turn.lock_owned().await)
    }
}

/// Idempotency keys stored before this moment have expired.
pub(super) fn cutoff(now: OffsetDateTime) -> OffsetDateTime {
    now - KEPT_FOR
}
