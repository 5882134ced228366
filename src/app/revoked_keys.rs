//! Cancels the jobs of keys that are revoked from the command line: their images must not be delivered, and others wait
//! for the device. A revocation over HTTP cancels them itself.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::auth::{KeyError, KeyService, KeyState};
use crate::domain::ids::KeyId;
use crate::jobs::JobService;
use crate::store::{ChangeMark, Store};

/// Time between checks. One costs next to nothing while the database is not written to.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Checks forever.
pub(super) async fn cancel_their_jobs(store: Store, keys: KeyService, jobs: JobService) {
    let mut seen = None;
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        for owner in revoked(&store, &keys, &mut seen, || jobs.owners()).await {
            let count = jobs.cancel_all_of(owner);
            tracing::info!(key = %owner, jobs = count, "the jobs of a revoked key are canceled");
        }
    }
}

/// Which owners' keys are revoked; none if the database was not written to since the last complete check.
async fn revoked(
    store: &Store,
    keys: &KeyService,
    seen: &mut Option<ChangeMark>,
    owners: impl FnOnce() -> BTreeSet<KeyId>,
) -> Vec<KeyId> {
    let mark = store.change_mark();
    if mark.is_some() && mark == *seen {
        return Vec::new();
    }
    *seen = mark;
    let mut revoked = Vec::new();
    for owner in owners() {
        match keys.get(owner).await {
            Ok(key) if key.state == KeyState::Revoked => revoked.push(owner),
            // The console's jobs have no key.
            Ok(_) | Err(KeyError::NotFound(_)) => {}
            // Checked again next time, even if nothing is written until then.
            Err(_) => *seen = None,
        }
    }
    revoked
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::auth::{Actor, NewKey};
    use crate::domain::clock::SystemClock;
    use crate::domain::limits::KeyLimits;
    use crate::domain::scope::Scope;

    /// Runs a statement on every connection of the pool.
    async fn everywhere(store: &Store, statement: &'static str) {
        let mut held = Vec::new();
        for _ in 0..store.pool().options().get_max_connections() {
            let mut connection = store.pool().acquire().await.expect("a connection");
            sqlx::query(statement).execute(&mut *connection).await.expect("run");
            held.push(connection);
        }
    }

    #[tokio::test]
    async fn a_failed_check_is_repeated_although_nothing_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
        let keys = KeyService::new(store.clone(), Arc::new(SystemClock));
        let new =
            NewKey { name: "test".into(), scope: Scope::Inference, expires_at: None, limits: KeyLimits::default() };
        let id = keys.create(new, &Actor::CommandLine).await.expect("made").record.id;
        let mut seen = None;
        let mut check = async || revoked(&store, &keys, &mut seen, || BTreeSet::from([id, KeyId::NONE])).await;
        assert_eq!(check().await, []);
        keys.revoke(id, &Actor::CommandLine).await.expect("revoked");
        // A temporary table shadows the real one: the check fails, and nothing is written to the database.
        everywhere(&store, "CREATE TEMP TABLE api_keys (unlike)").await;
        assert_eq!(check().await, []);
        everywhere(&store, "DROP TABLE temp.api_keys").await;
        assert_eq!(check().await, [id]);
        assert_eq!(check().await, [], "nothing was written since");
    }
}
