//! Which keys are valid, and the effect of changes to them.

use super::*;

#[tokio::test]
async fn a_valid_key_yields_its_id_and_scope() {
    let fixture = Fixture::new().await;
    for scope in [Scope::All, Scope::Inference, Scope::KubernetesAll] {
        let key = fixture.key(scope.clone(), None).await;
        for _ in 0..3 {
            let principal = fixture.check(key.plain.reveal()).await.expect("accepted");
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
async fn all_invalid_keys_get_the_same_refusal() {
    let fixture = Fixture::new().await;
    let soon = fixture.clock.now() + Duration::hours(1);
    let (good, expiring, revoked) = (
        fixture.key(Scope::All, None).await,
        fixture.key(Scope::All, Some(soon)).await,
        fixture.key(Scope::All, None).await,
    );
    for key in [&good, &expiring, &revoked] {
        fixture.check(key.plain.reveal()).await.expect("accepted at first");
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
    fixture.check(good.plain.reveal()).await.expect("the valid one still works");
}

#[tokio::test]
async fn a_revocation_by_another_process_applies_to_the_next_request() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("accepted");
    let other = Store::open_existing(&fixture.folder.path().join("fluxserve.db")).await.expect("opens");
    KeyService::new(other, Arc::new(fixture.clock.clone())).revoke(key.record.prefix, &BY).await.expect("revoked");
    assert_refused(&fixture.check(key.plain.reveal()).await, "revoked");
}

#[tokio::test]
async fn a_changed_scope_and_expiry_apply_to_the_next_request() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("accepted");
    let edit = KeyEdit { scope: Some(Scope::Inference), ..KeyEdit::default() };
    fixture.service.edit(key.id, edit, &BY).await.expect("edited");
    assert_eq!(fixture.check(key.plain.reveal()).await.expect("accepted").scope, Scope::Inference);
    let end = fixture.clock.now() + Duration::hours(1);
    let edit = KeyEdit { expires_at: Change::Set(end), ..KeyEdit::default() };
    fixture.service.edit(key.id, edit, &BY).await.expect("edited");
    fixture.check(key.plain.reveal()).await.expect("accepted");
    fixture.clock.advance(Duration::hours(1));
    assert_refused(&fixture.check(key.plain.reveal()).await, "expired");
    let edit = KeyEdit { expires_at: Change::Remove, ..KeyEdit::default() };
    fixture.service.edit(key.id, edit, &BY).await.expect("edited");
    fixture.check(key.plain.reveal()).await.expect("accepted");
    // Even a change that does not increment the version.
    fixture.sql("UPDATE api_keys SET expires_at_ms = 1").await;
    assert_refused(&fixture.check(key.plain.reveal()).await, "expired");
}

#[tokio::test]
async fn a_rotated_value_works_until_its_grace_ends() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("accepted");
    let rotated = fixture.service.rotate(key.id, 60, &BY).await.expect("rotated");
    for _ in 0..2 {
        for value in [&key.plain, &rotated.plain] {
            assert_eq!(fixture.check(value.reveal()).await.expect("both work").key_id, key.id);
        }
    }
    assert_refused(&fixture.check(&wrong_secret(&key)).await, "the old prefix with a wrong secret");
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

/// A stored hash that argon2 cannot read shows whether it ran.
#[tokio::test]
async fn argon2_runs_once_for_each_version_of_a_row_and_never_for_a_wrong_secret() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("accepted");
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
async fn a_corrupt_row_authenticates_no_caller() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    fixture.check(key.plain.reveal()).await.expect("accepted");
    fixture.sql("UPDATE api_keys SET scope = '{}'").await;
    let outcome = fixture.check(key.plain.reveal()).await;
    assert!(
        matches!(outcome, Err(AuthError::Unavailable(KeyFailure::CorruptRow { column: "scope", .. }))),
        "{outcome:?}"
    );
    fixture.sql("UPDATE api_keys SET scope = '{\"all\": true}'").await;
    fixture.check(key.plain.reveal()).await.expect("accepted");
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
async fn a_new_priority_applies_to_the_next_request() {
    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::Inference, None).await;
    let seen = async || fixture.check(key.plain.reveal()).await.expect("accepted").limits.priority;
    assert_eq!(seen().await, Priority::Normal);
    for priority in [Priority::High, Priority::Low, Priority::Normal] {
        let limits = LimitChanges { priority: Some(priority), ..LimitChanges::default() };
        fixture.service.edit(key.id, KeyEdit { limits, ..KeyEdit::default() }, &BY).await.expect("edited");
        assert_eq!(seen().await, priority);
    }
}
