//! The jobs of keys that are revoked while they are drawn: nobody is to have these pictures, and others wait for the
//! device. A revocation over HTTP cancels them itself; this is for those that come from the command line.

use std::time::Duration;

use crate::auth::{KeyError, KeyService, KeyState};
use crate::jobs::JobService;
use crate::store::Store;

/// How often is looked. While nothing is written to the database that costs next to nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Looks for ever.
pub(super) async fn cancel_their_jobs(store: Store, keys: KeyService, jobs: JobService) {
    let mut seen = None;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let mark = store.change_mark();
        if mark.is_some() && mark == seen {
            continue;
        }
        seen = mark;
        for owner in jobs.owners() {
            let key = match keys.get(owner).await {
                Ok(key) => key,
                // The console's jobs have none.
                Err(KeyError::NotFound(_)) => continue,
                // It is looked at again, also when nothing is written until then.
                Err(_) => {
                    seen = None;
                    continue;
                }
            };
            if key.state == KeyState::Revoked {
                let count = jobs.cancel_all_of(owner);
                tracing::info!(key = %owner, jobs = count, "the jobs of a revoked key are cancelled");
            }
        }
    }
}
