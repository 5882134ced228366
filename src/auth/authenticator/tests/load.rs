//! Limits: wrong keys, requests per minute, concurrent callers.

use super::*;

#[tokio::test]
async fn an_ended_key_does_not_count_as_a_guess() {
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

/// Wrong keys from many addresses, including that of the valid callers, for as long as these need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_wrong_keys_neither_starves_callers_nor_fills_memory() {
    let fixture = Fixture::new().await;
    let [proven, fresh] = [fixture.key(Scope::All, None).await, fixture.key(Scope::Inference, None).await];
    fixture.check(proven.plain.reveal()).await.expect("accepted");
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
    let valid_callers = async {
        fixture.check(fresh.plain.reveal()).await.expect("a good key at its first use, from the flooded address");
        for _ in 0..300 {
            fixture.check(proven.plain.reveal()).await.expect("a good key");
        }
    };
    tokio::time::timeout(StdDuration::from_secs(30), valid_callers).await.expect("no caller is starved");
    flood.abort_all();
    let inner = &fixture.authenticator.0;
    assert_eq!(inner.cache.len(), 2, "only valid keys are cached");
    assert!(inner.throttle.len() <= ADDRESSES_MAX);
    assert!(inner.uses.len() <= 2);
}

#[tokio::test]
async fn concurrent_first_uses_of_a_key_succeed() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    let checks = (0..50).map(|_| fixture.check(key.plain.reveal()));
    for outcome in futures_util::future::join_all(checks).await {
        outcome.expect("accepted");
    }
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_and_a_new_limit_applies_at_once() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    let limit = async |requests_per_minute| {
        let limits = LimitChanges { requests_per_minute, ..LimitChanges::default() };
        let edit = KeyEdit { limits, ..KeyEdit::default() };
        fixture.service.edit(key.id, edit, &BY).await.expect("edited").limits
    };
    assert_eq!(limit(Change::Set(2)).await.requests_per_minute, Some(2));
    for _ in 0..2 {
        assert_eq!(fixture.check(key.plain.reveal()).await.expect("accepted").limits.requests_per_minute, Some(2));
    }
    let outcome = fixture.check(key.plain.reveal()).await;
    let expected = matches!(outcome, Err(AuthError::RateLimited { per_minute: 2, retry_after_seconds: 30, .. }));
    assert!(expected, "{outcome:?}");
    fixture.clock.advance(Duration::seconds(30));
    fixture.check(key.plain.reveal()).await.expect("accepted");
    fixture.check(key.plain.reveal()).await.expect_err("too soon");
    limit(Change::Remove).await;
    for _ in 0..10 {
        fixture.check(key.plain.reveal()).await.expect("no bound");
    }
}

#[tokio::test]
async fn requests_per_minute_do_not_depend_on_the_wall_clock() {
    for step in STEPS {
        let fixture = Fixture::new().await;
        let limits = KeyLimits { requests_per_minute: Some(3), ..KeyLimits::default() };
        let new = NewKey { name: "test".into(), scope: Scope::All, expires_at: None, limits };
        let key = fixture.service.create(new, &BY).await.expect("made");
        for _ in 0..3 {
            fixture.check(key.plain.reveal()).await.expect("accepted");
        }
        fixture.clock.set_by(step);
        let outcome = fixture.check(key.plain.reveal()).await;
        let Err(AuthError::RateLimited { retry_after_seconds, .. }) = outcome else { panic!("{step}: {outcome:?}") };
        assert_eq!(retry_after_seconds, 20, "{step}");
        fixture.clock.advance(Duration::seconds(20));
        fixture.check(key.plain.reveal()).await.expect("waited as announced");
    }
}

#[tokio::test]
async fn wrong_keys_are_forgiven_after_the_announced_time() {
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
