//! Fixture of the tests of the authenticator.

mod keys;
mod load;
mod secrets;
mod uses;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration as StdDuration;

use time::OffsetDateTime;
use time::macros::datetime;

use super::*;
use crate::auth::audit::Actor;
use crate::auth::key::tests::key_with;
use crate::auth::record::{Change, CreatedKey, KeyEdit, LimitChanges, NewKey};
use crate::auth::service::KeyService;
use crate::auth::throttle::ADDRESSES_MAX;
use crate::domain::clock::ManualClock;
use crate::domain::priority::Priority;
use crate::domain::usage::{Day, USAGE_DAYS_KEPT};

const BY: Actor = Actor::CommandLine;
const FAILURES_MAX: u32 = WRONG_KEYS.failures_max;
const SECONDS_PER_FAILURE: i64 = WRONG_KEYS.seconds_per_failure;
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

struct Fixture {
    folder: tempfile::TempDir,
    store: Store,
    clock: ManualClock,
    service: KeyService,
    authenticator: Authenticator,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("fluxserve.db")).await.expect("opens");
        let clock = ManualClock::new(datetime!(2030-01-01 12:00 UTC));
        let service = KeyService::new(store.clone(), Arc::new(clock.clone()));
        let authenticator = Authenticator::new(store.clone(), Arc::new(clock.clone())).expect("random bytes");
        Self { folder, store, clock, service, authenticator }
    }

    async fn key(&self, scope: Scope, expires_at: Option<OffsetDateTime>) -> CreatedKey {
        self.service
            .create(NewKey { name: "test".into(), scope, expires_at, limits: KeyLimits::default() }, &BY)
            .await
            .expect("made")
    }

    async fn check(&self, value: &str) -> Result<Principal, AuthError> {
        self.authenticator.authenticate(value, HERE).await
    }

    /// A change as another process, or a later version, would make it.
    async fn sql(&self, statement: &'static str) {
        sqlx::query(statement).execute(self.store.pool()).await.expect("a statement");
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path()).expect("readable");
        entries.map(|entry| entry.expect("readable").path()).collect()
    }
}

fn assert_refused(outcome: &Result<Principal, AuthError>, cause: &str) {
    assert!(matches!(outcome, Err(AuthError::Refused)), "{cause}: {outcome:?}");
}

/// A well-formed key that was never created.
fn unknown_key(number: usize) -> String {
    key_with(&format!("{number:08}"), &"A".repeat(32))
}

/// A key's prefix with a secret that is not its own.
fn wrong_secret(key: &CreatedKey) -> String {
    key_with(&key.plain.reveal()[5..13], &"A".repeat(32))
}

/// Steps of the machine's clock, back and forward.
const STEPS: [Duration; 4] = [Duration::minutes(-10), Duration::days(-400), Duration::minutes(10), Duration::days(400)];
