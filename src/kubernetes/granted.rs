//! How long ago the last token of each grant was made, by time that passes: what hangs on a grant may go when its tokens
//! are dead, and the machine's clock may be set to anything meanwhile.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::store::Grant;

/// As many as there are grants.
#[derive(Debug, Default)]
pub(super) struct Granted(Mutex<HashMap<Uuid, Seen>>);

#[derive(Debug)]
struct Seen {
    /// Another one with every token.
    tokens_end_at: OffsetDateTime,
    /// Since when it is this one, as [`crate::domain::clock::Clock::uptime`] counts. Of an earlier life's: since it was first
    /// seen.
    since: Duration,
}

impl Granted {
    /// How long no token has been made, when the process's time is `uptime`.
    pub(super) fn unused_for(&self, grant: &Grant, uptime: Duration) -> Duration {
        let mut grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = grants.entry(grant.id).or_insert(Seen { tokens_end_at: grant.tokens_end_at, since: uptime });
        if seen.tokens_end_at != grant.tokens_end_at {
            *seen = Seen { tokens_end_at: grant.tokens_end_at, since: uptime };
        }
        uptime - seen.since
    }

    /// Forgets those that are gone.
    pub(super) fn keep_only(&self, grants: &[Grant]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|id, _| grants.iter().any(|grant| grant.id == *id));
    }
}
