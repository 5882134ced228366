//! Requests that may come twice: the same word and body of the same key give the same job for a day.

use time::{Duration, OffsetDateTime};

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

/// Words written before this moment stand for nothing any more.
pub(super) fn cutoff(now: OffsetDateTime) -> OffsetDateTime {
    now - KEPT_FOR
}

/// The job that this key has asked for under this word.
///
/// # Errors
/// [`JobsError::OtherRequest`] when the word stood for something else.
pub(super) async fn earlier_job(inner: &Inner, owner: KeyId, key: &RepeatKey) -> Result<Option<Job>, JobsError> {
    let Some((digest, id)) = inner.store.repeated(owner, &key.word, cutoff(inner.clock.now())).await? else {
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
