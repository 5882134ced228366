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

    /// As another process, or a later version of this one, would change it.
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

/// A well-formed key that nobody made.
fn unknown_key(number: usize) -> String {
    key_with(&format!("{number:08}"), &"A".repeat(32))
}

/// A key's prefix with a secret that is not its own.
fn wrong_secret(key: &CreatedKey) -> String {
    key_with(&key.plain.reveal()[5..13], &"A".repeat(32))
}

#[tokio::test]
async fn a_good_key_tells_whose_it_is_and_what_it_may_do() {
    let fixture = Fixture::new().await;
    for scope in [Scope::All, Scope::Inference, Scope::KubernetesAll] {
        let key = fixture.key(scope.clone(), None).await;
        for _ in 0..3 {
            let principal = fixture.check(key.plain.reveal()).await.expect("let in");
            let expected = Principal {
                key_id: key.id,
                prefix: key.record.prefix,
                scope: scope.clone(),
                limits: KeyLimits::default(),
            };
            assert_eq!(principal, expected);
        }
    }
}

#[tokio::test]
async fn six_causes_have_one_refusal() {
    let fixture = Fixture::new().await;
    let soon = fixture.clock.now() + Duration::hours(1);
    let (good, expiring, revoked) = (
        fixture.key(Scope::All, None).await,
        fixture.key(Scope::All, Some(soon)).await,
        fixture.key(Scope::All, None).await,
    );
    for key in [&good, &expiring, &revoked] {
        fixture.check(key.plain.reveal()).await.expect("let in at first");
    }
    fixture.clock.advance(Duration::hours(1));
    fixture.service.revoke(revoked.record.prefix, &BY).await.expect("revoked");

    let mut misspelt = good.plain.reveal().to_owned();
    let last = if misspelt.ends_with('0') { "1" } else { "0" };
    misspelt.replace_range(50.., last);
    let cases = [
        ("missing", ""),
        ("malformed", "Bearer something"),
        ("wrong checksum", &misspelt),
        ("unknown", &unknown_key(1)),
        ("wrong secret", &wrong_secret(&good)),
        ("revoked", revoked.plain.reveal()),
        ("expired", expiring.plain.reveal()),
    ];
    for (cause, value) in cases {
        assert_refused(&fixture.check(value).await, cause);
    }
    fixture.check(good.plain.reveal()).await.expect("the good one is not harmed");
}

#[tokio::test]
async fn a_key_that_has_ended_is_no_guess() {
    let fixture = Fixture::new().await;
    let soon = fixture.clock.now() + Duration::hours(1);
    let [revoked, expired] = [fixture.key(Scope::All, None).await, fixture.key(Scope::All, Some(soon)).await];
    fixture.service.revoke(revoked.record.prefix, &BY).await.expect("revoked");
    fixture.clock.advance(Duration::hours(2));
    for _ in 0..=FAILURES_MAX {
        assert_refused(&fixture.check(revoked.plain.reveal()).await, "revoked");
        assert_refused(&fixture.check(expired.plain.reveal()).await, "expired");
    }
    assert_refused(&fixture.check(&wrong_secret(&revoked)).await, "the first guess from here");
}

#[tokio::test]
async fn a_revocation_by_another_process_acts_on_the_next_request() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("let in");
    let other = Store::open_existing(&fixture.folder.path().join("fluxserve.db")).await.expect("opens");
    KeyService::new(other, Arc::new(fixture.clock.clone())).revoke(key.record.prefix, &BY).await.expect("revoked");
    assert_refused(&fixture.check(key.plain.reveal()).await, "revoked");
}

#[tokio::test]
async fn a_changed_scope_and_expiry_act_on_the_next_request() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("let in");
    let edit = KeyEdit { scope: Some(Scope::Inference), ..KeyEdit::default() };
    fixture.service.edit(key.id, edit, &BY).await.expect("edited");
    assert_eq!(fixture.check(key.plain.reveal()).await.expect("let in").scope, Scope::Inference);
    let end = fixture.clock.now() + Duration::hours(1);
    let edit = KeyEdit { expires_at: Change::Set(end), ..KeyEdit::default() };
    fixture.service.edit(key.id, edit, &BY).await.expect("edited");
    fixture.check(key.plain.reveal()).await.expect("let in");
    fixture.clock.advance(Duration::hours(1));
    assert_refused(&fixture.check(key.plain.reveal()).await, "expired");
    let edit = KeyEdit { expires_at: Change::Remove, ..KeyEdit::default() };
    fixture.service.edit(key.id, edit, &BY).await.expect("edited");
    fixture.check(key.plain.reveal()).await.expect("let in");
    // Even a change that forgets to move the version.
    fixture.sql("UPDATE api_keys SET expires_at_ms = 1").await;
    assert_refused(&fixture.check(key.plain.reveal()).await, "expired");
}

#[tokio::test]
async fn a_rotated_value_works_to_the_end_of_its_grace_and_no_longer() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("let in");
    let rotated = fixture.service.rotate(key.id, 60, &BY).await.expect("rotated");
    for _ in 0..2 {
        for value in [&key.plain, &rotated.plain] {
            assert_eq!(fixture.check(value.reveal()).await.expect("both work").key_id, key.id);
        }
    }
    assert_refused(&fixture.check(&wrong_secret(&key)).await, "the old prefix is no way in");
    let mixed = key_with(&key.plain.reveal()[5..13], &rotated.plain.reveal()[13..45]);
    assert_refused(&fixture.check(&mixed).await, "the old prefix with the new secret");
    fixture.clock.advance(Duration::seconds(59));
    fixture.check(key.plain.reveal()).await.expect("the last second");
    fixture.clock.advance(Duration::seconds(1));
    assert_refused(&fixture.check(key.plain.reveal()).await, "the grace is over");
    fixture.check(rotated.plain.reveal()).await.expect("the new value stays");

    let third = fixture.service.rotate(key.id, 0, &BY).await.expect("rotated");
    assert_refused(&fixture.check(rotated.plain.reveal()).await, "no grace");
    let fourth = fixture.service.rotate(key.id, 600, &BY).await.expect("rotated");
    let fifth = fixture.service.rotate(key.id, 600, &BY).await.expect("rotated");
    assert_refused(&fixture.check(third.plain.reveal()).await, "two rotations ago");
    fixture.check(fourth.plain.reveal()).await.expect("in its grace");
    fixture.service.revoke(key.id, &BY).await.expect("revoked");
    for value in [&fourth.plain, &fifth.plain] {
        assert_refused(&fixture.check(value.reveal()).await, "revoked, whichever value");
    }
}

/// A stored hash that argon2 cannot read tells whether it was asked.
#[tokio::test]
async fn argon2_runs_once_for_each_version_of_a_row_and_never_for_a_wrong_secret() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("let in");
    fixture.sql("UPDATE api_keys SET secret_hash = 'unreadable'").await;
    fixture.check(key.plain.reveal()).await.expect("proven before");
    assert_refused(&fixture.check(&wrong_secret(&key)).await, "wrong secret");
    fixture.sql("UPDATE api_keys SET version = version + 1").await;
    let outcome = fixture.check(key.plain.reveal()).await;
    assert!(matches!(outcome, Err(AuthError::Unavailable(KeyFailure::Hash(HashError::Argon2(_))))), "{outcome:?}");
    assert_refused(&fixture.check(&wrong_secret(&key)).await, "wrong secret");
}

#[tokio::test]
async fn a_right_tag_with_a_wrong_secret_is_refused() {
    let fixture = Fixture::new().await;
    let [key, other] = [fixture.key(Scope::All, None).await, fixture.key(Scope::All, None).await];
    let (id, other_id) = (key.id.to_string(), other.id.to_string());
    sqlx::query("UPDATE api_keys SET secret_hash = (SELECT secret_hash FROM api_keys WHERE id = ?) WHERE id = ?")
        .bind(other_id)
        .bind(id)
        .execute(fixture.store.pool())
        .await
        .expect("a statement");
    assert_refused(&fixture.check(key.plain.reveal()).await, "another key's hash");
}

#[tokio::test]
async fn a_row_that_makes_no_sense_lets_nobody_in() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("let in");
    fixture.sql("UPDATE api_keys SET scope = '{}'").await;
    let outcome = fixture.check(key.plain.reveal()).await;
    assert!(
        matches!(outcome, Err(AuthError::Unavailable(KeyFailure::CorruptRow { column: "scope", .. }))),
        "{outcome:?}"
    );
    fixture.sql("UPDATE api_keys SET scope = '{\"all\": true}'").await;
    fixture.check(key.plain.reveal()).await.expect("let in");
    let urgent = "UPDATE api_keys SET priority = 'urgent'";
    sqlx::query(urgent).execute(fixture.store.pool()).await.expect_err("no such priority");
    fixture.sql("PRAGMA ignore_check_constraints = 1; UPDATE api_keys SET priority = 'urgent'").await;
    let outcome = fixture.check(key.plain.reveal()).await;
    assert!(
        matches!(outcome, Err(AuthError::Unavailable(KeyFailure::CorruptRow { column: "priority", .. }))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn failures_are_throttled_by_address_and_forgiven_with_time() {
    let fixture = Fixture::new().await;
    for number in 0..FAILURES_MAX as usize {
        assert_refused(&fixture.check(&unknown_key(number)).await, "unknown");
    }
    let outcome = fixture.check(&unknown_key(99)).await;
    let expected = SECONDS_PER_FAILURE as u64;
    assert!(matches!(outcome, Err(AuthError::Throttled { retry_after_seconds }) if retry_after_seconds == expected));
    assert_refused(&fixture.authenticator.authenticate(&unknown_key(99), THERE).await, "from elsewhere");
    fixture.clock.advance(Duration::seconds(SECONDS_PER_FAILURE));
    assert_refused(&fixture.check(&unknown_key(99)).await, "forgiven");
}

#[tokio::test]
async fn typos_are_not_counted() {
    let fixture = Fixture::new().await;
    for _ in 0..10 * FAILURES_MAX {
        assert_refused(&fixture.check("rgpu_typo").await, "malformed");
    }
    assert_refused(&fixture.check(&unknown_key(1)).await, "unknown");
}

/// Wrong keys from everywhere, the good callers' own address among them, for as long as the good ones need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_wrong_keys_starves_nobody_and_fills_no_memory() {
    let fixture = Fixture::new().await;
    let [proven, fresh] = [fixture.key(Scope::All, None).await, fixture.key(Scope::Inference, None).await];
    fixture.check(proven.plain.reveal()).await.expect("let in");
    let mut flood = tokio::task::JoinSet::new();
    for lane in 0..32_usize {
        let authenticator = fixture.authenticator.clone();
        let wrong = wrong_secret(&proven);
        flood.spawn(async move {
            for number in 0.. {
                let client =
                    if lane < 8 { HERE } else { IpAddr::V4(Ipv4Addr::from_bits((lane << 16 | number) as u32)) };
                let value = if number % 2 == 0 { &unknown_key(number) } else { &wrong };
                authenticator.authenticate(value, client).await.expect_err("no good key");
            }
        });
    }
    let good_callers = async {
        fixture.check(fresh.plain.reveal()).await.expect("a good key at its first use, from the flooded address");
        for _ in 0..300 {
            fixture.check(proven.plain.reveal()).await.expect("a good key");
        }
    };
    tokio::time::timeout(StdDuration::from_secs(30), good_callers).await.expect("nobody is starved");
    flood.abort_all();
    let inner = &fixture.authenticator.0;
    assert_eq!(inner.cache.len(), 2, "only good keys take a place");
    assert!(inner.throttle.len() <= ADDRESSES_MAX);
    assert!(inner.uses.len() <= 2);
}

#[tokio::test]
async fn a_stampede_of_one_new_key_is_let_in() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    let checks = (0..50).map(|_| fixture.check(key.plain.reveal()));
    for outcome in futures_util::future::join_all(checks).await {
        outcome.expect("let in");
    }
}

#[tokio::test]
async fn uses_are_written_when_the_worker_stops() {
    let fixture = Fixture::new().await;
    let [used, unused] = [fixture.key(Scope::All, None).await, fixture.key(Scope::All, None).await];
    fixture.check(used.plain.reveal()).await.expect("let in");
    fixture.clock.advance(Duration::minutes(1));
    fixture.check(used.plain.reveal()).await.expect("let in");
    fixture.authenticator.record_uses_until(async {}).await;
    let used = fixture.service.get(used.record.prefix).await.expect("there");
    assert_eq!(used.last_used_at, Some(datetime!(2030-01-01 12:01 UTC)));
    assert_eq!(fixture.service.get(unused.record.prefix).await.expect("there").last_used_at, None);
    assert_eq!(fixture.authenticator.0.uses.len(), 0);
}

#[tokio::test]
async fn requests_are_counted_by_day_and_refused_ones_are_not() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    let today = Day::of(fixture.clock.now());
    for count in [3, 2] {
        for _ in 0..count {
            fixture.check(key.plain.reveal()).await.expect("let in");
        }
        fixture.check(&wrong_secret(&key)).await.expect_err("wrong");
        fixture.authenticator.record_uses_until(async {}).await;
    }
    fixture.clock.advance(Duration::hours(12));
    fixture.check(key.plain.reveal()).await.expect("let in");
    fixture.authenticator.record_uses_until(async {}).await;
    let requests = fixture.service.requests_by_day(key.id, today).await.expect("read");
    let tomorrow = Day::of(fixture.clock.now());
    assert_eq!(requests, [(today, 5), (tomorrow, 1)]);
    assert_eq!(fixture.service.requests_by_day(key.id, tomorrow).await.expect("read"), [(tomorrow, 1)]);

    fixture.clock.advance(Duration::days(i64::from(USAGE_DAYS_KEPT)));
    fixture.check(key.plain.reveal()).await.expect("let in");
    fixture.authenticator.record_uses_until(async {}).await;
    let days: Vec<_> = fixture.service.requests_by_day(key.id, today).await.expect("read");
    assert_eq!(days.iter().map(|(day, _)| *day).collect::<Vec<_>>(), [tomorrow, Day::of(fixture.clock.now())]);
}

#[tokio::test]
async fn requests_beyond_the_bound_wait_and_another_bound_acts_at_once() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    let limit = async |requests_per_minute| {
        let limits = LimitChanges { requests_per_minute, ..LimitChanges::default() };
        let edit = KeyEdit { limits, ..KeyEdit::default() };
        fixture.service.edit(key.id, edit, &BY).await.expect("edited").limits
    };
    assert_eq!(limit(Change::Set(2)).await.requests_per_minute, Some(2));
    for _ in 0..2 {
        assert_eq!(fixture.check(key.plain.reveal()).await.expect("let in").limits.requests_per_minute, Some(2));
    }
    let outcome = fixture.check(key.plain.reveal()).await;
    let expected = matches!(outcome, Err(AuthError::RateLimited { per_minute: 2, retry_after_seconds: 30 }));
    assert!(expected, "{outcome:?}");
    fixture.clock.advance(Duration::seconds(30));
    fixture.check(key.plain.reveal()).await.expect("let in");
    fixture.check(key.plain.reveal()).await.expect_err("too soon");
    limit(Change::Remove).await;
    for _ in 0..10 {
        fixture.check(key.plain.reveal()).await.expect("no bound");
    }
}

#[tokio::test]
async fn another_priority_counts_from_the_next_request_on() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::Inference, None).await;
    let seen = async || fixture.check(key.plain.reveal()).await.expect("let in").limits.priority;
    assert_eq!(seen().await, Priority::Normal);
    for priority in [Priority::High, Priority::Low, Priority::Normal] {
        let limits = LimitChanges { priority: Some(priority), ..LimitChanges::default() };
        fixture.service.edit(key.id, KeyEdit { limits, ..KeyEdit::default() }, &BY).await.expect("edited");
        assert_eq!(seen().await, priority);
    }
}

#[tokio::test]
async fn uses_that_could_not_be_written_are_kept() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("let in");
    fixture.store.close().await;
    fixture.authenticator.record_uses_until(async {}).await;
    assert_eq!(fixture.authenticator.0.uses.len(), 1);
}

/// Everything that is logged while it is the subscriber of its thread.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_reaches_the_database_the_logs_or_debug() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    // While there is a single subscriber, tracing lets the thread that first reaches an event decide whether it is ever
    // of interest, and other tests' threads have no subscriber. A second one ends that shortcut.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());

    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    let value = key.plain.reveal();
    fixture.check(value).await.expect("let in");
    fixture.check(&wrong_secret(&key)).await.expect_err("wrong");
    fixture.service.revoke(key.record.prefix, &BY).await.expect("revoked");
    fixture.check(value).await.expect_err("revoked");
    fixture.authenticator.record_uses_until(async {}).await;

    let secret = &value[13..45];
    let logged = String::from_utf8_lossy(&captured.0.lock().expect("not poisoned")).into_owned();
    assert!(logged.contains("revoked"), "something is logged at all: {logged}");
    assert!(!logged.contains(secret));
    let row = fixture.authenticator.0.rows.get(key.record.prefix).await.expect("readable");
    let shown = format!("{key:?} {row:?} {:?} {:?}", fixture.authenticator, fixture.service);
    assert!(!shown.contains(secret) && !shown.contains("argon2id"), "{shown}");
    let mut prefixes = 0;
    for file in fixture.files() {
        let bytes = std::fs::read(&file).expect("readable");
        let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!holds(secret), "{}", file.display());
        prefixes += usize::from(holds(&value[5..13]));
    }
    assert!(prefixes > 0, "the search itself works: the public id is in there");
}

/// The machine's clock is set forward, and back.
const STEPS: [Duration; 4] = [Duration::minutes(-10), Duration::days(-400), Duration::minutes(10), Duration::days(400)];

#[tokio::test]
async fn a_minutes_requests_are_counted_by_no_clock_that_can_be_set() {
    for step in STEPS {
        let fixture = Fixture::new().await;
        let limits = KeyLimits { requests_per_minute: Some(3), ..KeyLimits::default() };
        let new = NewKey { name: "test".into(), scope: Scope::All, expires_at: None, limits };
        let key = fixture.service.create(new, &BY).await.expect("made");
        for _ in 0..3 {
            fixture.check(key.plain.reveal()).await.expect("let in");
        }
        fixture.clock.set_by(step);
        let outcome = fixture.check(key.plain.reveal()).await;
        let Err(AuthError::RateLimited { retry_after_seconds, .. }) = outcome else { panic!("{step}: {outcome:?}") };
        assert_eq!(retry_after_seconds, 20, "{step}");
        fixture.clock.advance(Duration::seconds(20));
        fixture.check(key.plain.reveal()).await.expect("it has waited as told");
    }
}

#[tokio::test]
async fn wrong_keys_are_forgiven_after_the_time_that_was_told() {
    for step in STEPS {
        let fixture = Fixture::new().await;
        for number in 0..FAILURES_MAX as usize {
            assert_refused(&fixture.check(&unknown_key(number)).await, "unknown");
        }
        fixture.clock.set_by(step);
        let outcome = fixture.check(&unknown_key(99)).await;
        let expected = SECONDS_PER_FAILURE as u64;
        assert!(
            matches!(outcome, Err(AuthError::Throttled { retry_after_seconds }) if retry_after_seconds == expected),
            "{step}: {outcome:?}"
        );
        fixture.clock.advance(Duration::seconds(SECONDS_PER_FAILURE));
        assert_refused(&fixture.check(&unknown_key(99)).await, "forgiven");
    }
}

#[tokio::test]
async fn an_old_value_ends_in_its_time_although_the_clock_was_ahead_when_it_was_replaced() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    let write = async || fixture.authenticator.0.uses.write().await.expect("written");
    write().await;
    fixture.clock.set_by(Duration::days(400));
    fixture.service.rotate(key.id, 3600, &BY).await.expect("rotated");
    fixture.check(key.plain.reveal()).await.expect("in its grace");
    write().await;
    fixture.clock.set_by(Duration::days(-400));
    write().await;
    // Which of the two the clock is wrong at shows after an hour.
    fixture.clock.advance(Duration::hours(1));
    write().await;
    let seen = fixture.service.get(key.id).await.expect("there");
    assert_eq!((seen.rotated_at, seen.last_used_at), (Some(fixture.clock.now()), Some(fixture.clock.now())));
    fixture.clock.advance(Duration::minutes(59));
    fixture.check(key.plain.reveal()).await.expect("in its grace");
    fixture.clock.advance(Duration::minutes(1));
    assert_refused(&fixture.check(key.plain.reveal()).await, "its grace is over");
}

#[tokio::test]
async fn requests_are_neither_forgotten_nor_counted_for_days_to_come_by_a_clock_that_is_wrong() {
    for step in [Duration::days(500), Duration::days(-500)] {
        let fixture = Fixture::new().await;
        let key = fixture.key(Scope::All, None).await;
        let count = async || {
            fixture.check(key.plain.reveal()).await.expect("let in");
            fixture.authenticator.record_uses_until(async {}).await;
        };
        let total = async || {
            let days = fixture.service.requests_by_day(key.id, Day::from_number(0)).await.expect("read");
            (days.iter().map(|(_, requests)| requests).sum::<u64>(), days.last().map(|(day, _)| *day))
        };
        count().await;
        fixture.clock.set_by(step);
        count().await;
        fixture.clock.set_by(-step);
        fixture.clock.advance(Duration::hours(1));
        count().await;
        fixture.clock.advance(Duration::hours(1));
        count().await;
        let today = Day::of(fixture.clock.now());
        let kept = if step.is_negative() { 3 } else { 4 };
        assert_eq!(total().await, (kept, Some(today)), "{step}: what is too long ago goes, and nothing else");
    }
}
