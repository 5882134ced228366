use time::Duration;
use time::macros::datetime;

use super::*;
use crate::auth::record::{Change, GRACE_SECONDS_MAX, KeyState, LimitChanges, NAME_CHARS_MAX, Overlap};
use crate::domain::clock::ManualClock;
use crate::domain::limits::KeyLimits;
use crate::domain::priority::Priority;
use crate::domain::scope::Scope;

const BY: Actor = Actor::CommandLine;

async fn service() -> (KeyService, ManualClock) {
    let clock = ManualClock::new(datetime!(2030-01-01 12:00 UTC));
    let store = Store::open_in_memory().await.expect("opens");
    (KeyService::new(store, Arc::new(clock.clone())), clock)
}

fn new_key(name: &str) -> NewKey {
    NewKey { name: name.into(), scope: Scope::Inference, expires_at: None, limits: KeyLimits::default() }
}

#[tokio::test]
async fn created_keys_are_listed() {
    let (service, clock) = service().await;
    assert_eq!(service.count().await.expect("counted"), 0);
    let expires_at = Some(clock.now() + Duration::hours(1));
    let first = service.create(NewKey { expires_at, ..new_key(" one ") }, &BY).await.expect("made").record;
    let second = service.create(new_key("two"), &BY).await.expect("made").record;
    assert_eq!((first.name.as_str(), first.state, first.expires_at), ("one", KeyState::Active, expires_at));
    assert_eq!(service.list(None, 10).await.expect("listed"), [first.clone(), second.clone()]);
    assert_eq!(service.list(None, 1).await.expect("listed"), std::slice::from_ref(&first));
    assert_eq!(service.list(Some(first.id), 10).await.expect("listed"), std::slice::from_ref(&second));
    assert_eq!(service.get(second.prefix).await.expect("there"), second);
    clock.advance(Duration::hours(1));
    assert_eq!(service.get(first.prefix).await.expect("there").state, KeyState::Expired);
    assert_eq!(service.count().await.expect("counted"), 2);
}

#[tokio::test]
async fn names_and_expiries_are_checked() {
    let (service, clock) = service().await;
    for name in ["", "  ", "two\nlines", "\u{1b}[2J", &"x".repeat(NAME_CHARS_MAX + 1)] {
        assert!(matches!(service.create(new_key(name), &BY).await, Err(KeyError::Name)), "{name:?}");
    }
    // Right-to-left override, zero-width space, a line separator beyond ASCII, a tag, other marks.
    for invisible in ["\u{202e}", "\u{200b}", "\u{2028}", "\u{e0041}", "\u{feff}", "\u{ad}", "\u{2066}", "\u{200f}"] {
        let name = format!("ci{invisible}x");
        assert!(matches!(service.create(new_key(&name), &BY).await, Err(KeyError::Name)), "{name:?}");
    }
    // Some letters and emoji need a joiner or a variation selector.
    for visible in [
        "ключ",
        "鍵",
        "مفتاح",
        "e\u{301}té",
        "build — nightly",
        "🦊",
        "می\u{200c}خواهم",
        "ක්\u{200d}ෂ",
        "❤\u{fe0f}",
        "葛\u{e0100}",
    ] {
        service.create(new_key(visible), &BY).await.expect("visible");
    }
    service.create(new_key(&"ü".repeat(NAME_CHARS_MAX)), &BY).await.expect("characters are counted, not bytes");
    for expiry in [clock.now(), clock.now() - Duration::days(1)] {
        let outcome = service.create(NewKey { expires_at: Some(expiry), ..new_key("late") }, &BY).await;
        assert!(matches!(outcome, Err(KeyError::ExpiryPassed)));
    }
    let no_such_date = Some(datetime!(9999-12-31 23:59:59 -1));
    let outcome = service.create(NewKey { expires_at: no_such_date, ..new_key("late") }, &BY).await;
    assert!(matches!(outcome, Err(KeyError::ExpiryTooLate)));
    let elsewhere = Some(datetime!(2030-06-01 12:00:00.123456789 +2));
    let made = service.create(NewKey { expires_at: elsewhere, ..new_key("late") }, &BY).await.expect("made").record;
    assert_eq!(service.get(made.id).await.expect("there"), made, "returned as it is stored");
}

#[tokio::test]
async fn revoking_again_changes_nothing() {
    let (service, clock) = service().await;
    let key = service.create(new_key("short-lived"), &BY).await.expect("made").record;
    let revoked = service.revoke(key.prefix, &BY).await.expect("revoked");
    assert_eq!((revoked.state, revoked.revoked_at), (KeyState::Revoked, Some(clock.now())));
    clock.advance(Duration::hours(1));
    assert_eq!(service.revoke(key.prefix, &BY).await.expect("again"), revoked);
    let missing = "rgpu_00000000".parse().expect("a prefix");
    assert!(
        matches!(service.revoke(missing, &BY).await, Err(KeyError::NotFound(KeyRef::Prefix(prefix))) if prefix == missing)
    );
}

#[tokio::test]
async fn pages_are_newest_first_and_filter_by_state() {
    let (service, clock) = service().await;
    let soon = Some(clock.now() + Duration::hours(1));
    let expiring = service.create(NewKey { expires_at: soon, ..new_key("expiring") }, &BY).await.expect("made").id;
    let revoked = service.create(NewKey { expires_at: soon, ..new_key("revoked") }, &BY).await.expect("made").id;
    let active = service.create(new_key("active"), &BY).await.expect("made").id;
    service.revoke(revoked, &BY).await.expect("revoked");
    clock.advance(Duration::hours(1));
    let ids = async |before, state, keys_max| {
        let page = service.page(KeyQuery { before, state, keys_max }).await.expect("listed");
        (page.keys.iter().map(|key| key.id).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(ids(None, None, 3).await, (vec![active, revoked, expiring], None));
    assert_eq!(ids(None, None, 2).await, (vec![active, revoked], Some(revoked)));
    assert_eq!(ids(Some(revoked), None, 2).await, (vec![expiring], None));
    assert_eq!(ids(None, None, 0).await, (vec![active], Some(active)), "a page holds at least one key");
    for (state, id) in [(KeyState::Active, active), (KeyState::Revoked, revoked), (KeyState::Expired, expiring)] {
        assert_eq!(ids(None, Some(state), 3).await, (vec![id], None), "{state}");
    }
}

#[tokio::test]
async fn an_edit_changes_only_what_it_names() {
    let (service, clock) = service().await;
    let key = service.create(new_key("old"), &BY).await.expect("made").record;
    let edit = KeyEdit { name: Some(" new ".into()), ..KeyEdit::default() };
    let edited = service.edit(key.prefix, edit, &BY).await.expect("edited");
    assert_eq!(edited, KeyRecord { name: "new".into(), ..key.clone() });
    let end = clock.now() + Duration::hours(1);
    let edit = KeyEdit { scope: Some(Scope::KubernetesAll), expires_at: Change::Set(end), ..KeyEdit::default() };
    let edited = service.edit(key.id, edit, &BY).await.expect("edited");
    assert_eq!((&edited.scope, edited.expires_at), (&Scope::KubernetesAll, Some(end)));
    assert_eq!(service.edit(key.id, KeyEdit::default(), &BY).await.expect("nothing to do"), edited);
    clock.advance(Duration::hours(2));
    assert_eq!(service.get(key.id).await.expect("there").state, KeyState::Expired);
    let edit = KeyEdit { expires_at: Change::Remove, ..KeyEdit::default() };
    let revived = service.edit(key.id, edit, &BY).await.expect("edited");
    assert_eq!((revived.state, revived.expires_at), (KeyState::Active, None));

    let wrong_name = KeyEdit { name: Some("a\nb".into()), ..KeyEdit::default() };
    assert!(matches!(service.edit(key.id, wrong_name, &BY).await, Err(KeyError::Name)));
    let past = KeyEdit { expires_at: Change::Set(clock.now()), ..KeyEdit::default() };
    assert!(matches!(service.edit(key.id, past, &BY).await, Err(KeyError::ExpiryPassed)));
    service.revoke(key.id, &BY).await.expect("revoked");
    let late = KeyEdit { name: Some("late".into()), ..KeyEdit::default() };
    let outcome = service.edit(key.id, late.clone(), &BY).await;
    assert!(matches!(outcome, Err(KeyError::Ended(KeyState::Revoked))), "{outcome:?}");
    let missing = KeyId::generate();
    let outcome = service.edit(missing, late, &BY).await;
    assert!(matches!(outcome, Err(KeyError::NotFound(KeyRef::Id(id))) if id == missing));
}

#[tokio::test]
async fn a_priority_is_stored_and_changed_independently() {
    let (service, _) = service().await;
    let plain = service.create(new_key("plain"), &BY).await.expect("made").record;
    assert_eq!(plain.limits.priority, Priority::Normal);
    for priority in Priority::ALL {
        let limits = KeyLimits { concurrent_jobs: Some(3), priority, ..KeyLimits::default() };
        let made =
            service.create(NewKey { limits: limits.clone(), ..new_key("made") }, &BY).await.expect("made").record;
        assert_eq!(service.get(made.id).await.expect("there").limits, limits);
        let edit = async |limits| {
            let edit = KeyEdit { limits, ..KeyEdit::default() };
            service.edit(made.id, edit, &BY).await.expect("edited").limits
        };
        let fewer = LimitChanges { concurrent_jobs: Change::Set(2), ..LimitChanges::default() };
        let expected = KeyLimits { concurrent_jobs: Some(2), ..limits };
        assert_eq!(edit(fewer).await, expected, "another limit leaves the priority alone");
        for other in Priority::ALL {
            let change = LimitChanges { priority: Some(other), ..LimitChanges::default() };
            assert_eq!(edit(change).await, KeyLimits { priority: other, ..expected.clone() }, "from {priority}");
        }
    }
    assert_eq!(service.get(plain.id).await.expect("there"), plain, "another key is not affected");
}

#[tokio::test]
async fn a_rotated_key_keeps_its_id_and_both_prefixes_find_it() {
    let (service, clock) = service().await;
    let key = service.create(new_key("rotating"), &BY).await.expect("made").record;
    let rotated = service.rotate(key.prefix, 60, &BY).await.expect("rotated").record;
    let overlap = Overlap { prefix: key.prefix, until: clock.now() + Duration::minutes(1) };
    assert_eq!((rotated.id, rotated.rotated_at, rotated.overlap), (key.id, Some(clock.now()), Some(overlap)));
    assert_ne!(rotated.prefix, key.prefix);
    assert_eq!(service.get(key.prefix).await.expect("by the old prefix").id, key.id);
    assert_eq!(service.get(rotated.prefix).await.expect("by the new prefix").id, key.id);
    clock.advance(Duration::minutes(1));
    assert_eq!(service.get(key.id).await.expect("there").overlap, None);
    let again = service.rotate(key.id, 0, &BY).await.expect("rotated").record;
    assert_eq!(again.overlap, None);
    assert!(matches!(service.get(rotated.prefix).await, Err(KeyError::NotFound(_))));

    let outcome = service.rotate(key.id, GRACE_SECONDS_MAX + 1, &BY).await;
    assert!(matches!(outcome, Err(KeyError::GraceTooLong)));
    service.rotate(key.id, GRACE_SECONDS_MAX, &BY).await.expect("a week");
    let end = clock.now() + Duration::hours(1);
    let edit = KeyEdit { expires_at: Change::Set(end), ..KeyEdit::default() };
    service.edit(key.id, edit, &BY).await.expect("edited");
    clock.advance(Duration::hours(1));
    assert!(matches!(service.rotate(key.id, 0, &BY).await, Err(KeyError::Ended(KeyState::Expired))));
    service.revoke(key.id, &BY).await.expect("revoked");
    assert!(matches!(service.rotate(key.id, 0, &BY).await, Err(KeyError::Ended(KeyState::Revoked))));
}

#[tokio::test]
async fn the_log_records_changes_and_not_refusals() {
    let clock = ManualClock::new(datetime!(2030-01-01 12:00 UTC));
    let store = Store::open_in_memory().await.expect("opens");
    let service = KeyService::new(store.clone(), Arc::new(clock.clone()));
    let admin = crate::auth::AdminService::new(store, Arc::new(clock.clone()));
    let key = service.create(new_key("one"), &BY).await.expect("made").record;
    let limits = LimitChanges {
        requests_per_minute: Change::Remove,
        concurrent_jobs: Change::Set(3),
        priority: Some(Priority::High),
        ..LimitChanges::default()
    };
    let edit = KeyEdit { name: Some("two".into()), expires_at: Change::Remove, limits, ..KeyEdit::default() };
    service.edit(key.id, edit, &BY).await.expect("edited");
    let rotated = service.rotate(key.id, 0, &Actor::Worker).await.expect("rotated").record;
    for _ in 0..2 {
        service.revoke(key.id, &BY).await.expect("revoked");
    }
    service.rotate(key.id, 0, &BY).await.expect_err("revoked");
    let page = admin.audit_page(None, 100).await.expect("read");
    let told: Vec<_> = page.entries.iter().rev().map(|entry| (entry.action, entry.detail.clone())).collect();
    let expected = [
        (
            AuditAction::KeyCreated,
            json!({
                "name": "one",
                "scope": { "inference": true },
                "expires_at": null,
                "limits": {
                    "requests_per_minute": null,
                    "concurrent_jobs": null,
                    "megapixel_steps_per_day": null,
                    "priority": "normal",
                },
            }),
        ),
        (
            AuditAction::KeyEdited,
            json!({
                "name": "two",
                "expires_at": null,
                "limits": { "concurrent_jobs": 3, "requests_per_minute": null, "priority": "high" },
            }),
        ),
        (AuditAction::KeyRotated, json!({ "new_prefix": rotated.prefix.to_string(), "old_value_until": null })),
        (AuditAction::KeyRevoked, json!({})),
    ];
    assert_eq!(told, expected);
    assert!(page.entries.iter().all(|entry| entry.at == clock.now() && entry.address.is_none()));
    let prefixes: Vec<_> = page.entries.iter().rev().filter_map(|entry| entry.key).map(|key| key.prefix).collect();
    assert_eq!(prefixes, [key.prefix, key.prefix, key.prefix, rotated.prefix]);
    assert_eq!(page.entries[1].actor, "worker");
}
