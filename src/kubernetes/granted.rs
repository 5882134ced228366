//! The age of each grant's last token by elapsed time: a grant's Secret may go when its tokens have expired, whatever the
//! machine's clock is set to meanwhile.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::store::Grant;

/// The known grants, as many as there are in the database.
#[derive(Debug, Default)]
pub(super) struct Granted(Mutex<HashMap<Uuid, Seen>>);

#[derive(Debug)]
struct Seen {
    /// Changes with every token.
    tokens_end_at: OffsetDateTime,
    /// Since when it has this value, by [`crate::domain::clock::Clock::uptime`]. For a grant from before the last start: since
    /// it was first seen.
    since: Duration,
}

impl Granted {
    /// Time since the last token was made, as of `uptime`.
    pub(super) fn unused_for(&self, grant: &Grant, uptime: Duration) -> Duration {
        let mut grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = grants.entry(grant.id).or_insert(Seen { tokens_end_at: grant.tokens_end_at, since: uptime });
        if seen.tokens_end_at != grant.tokens_end_at {
            *seen = Seen { tokens_end_at: grant.tokens_end_at, since: uptime };
        }
        uptime - seen.since
    }

    /// Forgets all but `grants`.
    pub(super) fn keep_only(&self, grants: &[Grant]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|id, _| grants.iter().any(|grant| grant.id == *id));
    }
}
