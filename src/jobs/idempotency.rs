//! Requests that may come twice: the same word and body of the same key give the same job for a day.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use time::{Duration, OffsetDateTime};
use tokio::sync::OwnedMutexGuard;

use super::service::Inner;
use super::{Job, JobsError};
use crate::domain::ids::KeyId;

/// How long a word stands for its job, unless the job is forgotten before.
const KEPT_FOR: Duration = Duration::hours(24);

/// A client's word for one request, and what it stood for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatKey {
    /// The word, of the client's choice.
    pub word: String,
    /// A collision-free digest of the request.
    pub body_digest: [u8; 32],
}

/// Requests under one word of one key, one after the other: the second is to find the first one's job, and not to be refused
/// for the place that this one has taken and not written down yet.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Asked, Weak<tokio::sync::Mutex<()>>>>);

/// A key, and its word.
type Asked = (KeyId, String);

/// Held until the job is written down, or the request refused.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "the guard is the turn")] OwnedMutexGuard<()>);

impl Turns {
    /// At once, unless there is another one under way.
    pub(super) async fn take(&self, owner: KeyId, key: &RepeatKey) -> Turn {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // So there are at most as many as requests.
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

/// Words written before this moment stand for nothing any more, when what is to be forgotten goes by `now`.
pub(super) fn cutoff(now: OffsetDateTime) -> OffsetDateTime {
    now - KEPT_FOR
}

/// The job that this key has asked for under this word.
///
/// # Errors
/// [`JobsError::OtherRequest`] when the word stood for something else.
pub(super) async fn earlier_job(inner: &Inner, owner: KeyId, key: &RepeatKey) -> Result<Option<Job>, JobsError> {
    let Some((digest, id)) = inner.store.repeated(owner, &key.word, cutoff(inner.paced().now)).await? else {
        return Ok(None);
    };
    if digest != key.body_digest {
        return Err(JobsError::OtherRequest);
    }
    match inner.store.get(id).await {
        Ok(job) => Ok(Some(job)),
        // Forgotten between the two look-ups, and the word with it.
        Err(JobsError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
