//! The jobs of keys that are revoked while they are drawn: nobody is to have these images, and others wait for the
//! device. A revocation over HTTP cancels them itself; this is for those that come from the command line.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::auth::{KeyError, KeyService, KeyState};
use crate::domain::ids::KeyId;
use crate::jobs::JobService;
use crate::store::{ChangeMark, Store};

/// How often is looked. While nothing is written to the database that costs next to nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Looks for ever.
pub(super) async fn cancel_their_jobs(store: Store, keys: KeyService, jobs: JobService) {
    let mut seen = None;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        for owner in revoked(&store, &keys, &mut seen, || jobs.owners()).await {
            let count = jobs.cancel_all_of(owner);
            tracing::info!(key = %owner, jobs = count, "the jobs of a revoked key are cancelled");
        }
    }
}

/// Which of the owners' keys are revoked; none where nothing was written to the database since all could be looked at.
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
            // It is looked at again, also when nothing is written until then.
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

    /// Has every connection of the pool run a statement.
    async fn everywhere(store: &Store, statement: &'static str) {
        let mut held = Vec::new();
        for _ in 0..store.pool().options().get_max_connections() {
            let mut connection = store.pool().acquire().await.expect("a connection");
            sqlx::query(statement).execute(&mut *connection).await.expect("run");
            held.push(connection);
        }
    }

    #[tokio::test]
    async fn a_look_that_failed_is_repeated_although_nothing_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
        let keys = KeyService::new(store.clone(), Arc::new(SystemClock));
        let new =
            NewKey { name: "test".into(), scope: Scope::Inference, expires_at: None, limits: KeyLimits::default() };
        let id = keys.create(new, &Actor::CommandLine).await.expect("made").record.id;
        let mut seen = None;
        let mut look = async || revoked(&store, &keys, &mut seen, || BTreeSet::from([id, KeyId::NONE])).await;
        assert_eq!(look().await, []);
        keys.revoke(id, &Actor::CommandLine).await.expect("revoked");
        // A table of that name which only the connection has: looking fails, and nothing is written to the database.
        everywhere(&store, "CREATE TEMP TABLE api_keys (unlike)").await;
        assert_eq!(look().await, []);
        everywhere(&store, "DROP TABLE temp.api_keys").await;
        assert_eq!(look().await, [id]);
        assert_eq!(look().await, [], "nothing was written since");
    }
}
