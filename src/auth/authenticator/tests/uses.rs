//! Recorded uses of keys.

use super::*;

#[tokio::test]
async fn uses_are_written_when_the_worker_stops() {
    let fixture = Fixture::new().await;
    let [used, unused] = [fixture.key(Scope::All, None).await, fixture.key(Scope::All, None).await];
    fixture.check(used.plain.reveal()).await.expect("accepted");
    fixture.clock.advance(Duration::minutes(1));
    fixture.check(used.plain.reveal()).await.expect("accepted");
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
            fixture.check(key.plain.reveal()).await.expect("accepted");
        }
        fixture.check(&wrong_secret(&key)).await.expect_err("wrong");
        fixture.authenticator.record_uses_until(async {}).await;
    }
    fixture.clock.advance(Duration::hours(12));
    fixture.check(key.plain.reveal()).await.expect("accepted");
    fixture.authenticator.record_uses_until(async {}).await;
    let requests = fixture.service.requests_by_day(key.id, today).await.expect("read");
    let tomorrow = Day::of(fixture.clock.now());
    assert_eq!(requests, [(today, 5), (tomorrow, 1)]);
    assert_eq!(fixture.service.requests_by_day(key.id, tomorrow).await.expect("read"), [(tomorrow, 1)]);

    fixture.clock.advance(Duration::days(i64::from(USAGE_DAYS_KEPT)));
    fixture.check(key.plain.reveal()).await.expect("accepted");
    fixture.authenticator.record_uses_until(async {}).await;
    let days: Vec<_> = fixture.service.requests_by_day(key.id, today).await.expect("read");
    assert_eq!(days.iter().map(|(day, _)| *day).collect::<Vec<_>>(), [tomorrow, Day::of(fixture.clock.now())]);
}

#[tokio::test]
async fn uses_that_could_not_be_written_are_kept() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("accepted");
    fixture.store.close().await;
    fixture.authenticator.record_uses_until(async {}).await;
    assert_eq!(fixture.authenticator.0.uses.len(), 1);
}

#[tokio::test]
async fn an_old_value_ends_in_time_although_the_clock_was_ahead_at_its_rotation() {
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
    // After an hour it is clear which of the two times was wrong.
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
async fn a_wrong_clock_neither_loses_requests_nor_counts_them_for_future_days() {
    for step in [Duration::days(500), Duration::days(-500)] {
        let fixture = Fixture::new().await;
        let key = fixture.key(Scope::All, None).await;
        let count = async || {
            fixture.check(key.plain.reveal()).await.expect("accepted");
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
        assert_eq!(total().await, (kept, Some(today)), "{step}: only what is too old is deleted");
    }
}
