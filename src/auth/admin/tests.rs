use time::macros::datetime;

use super::*;
use crate::domain::clock::ManualClock;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const WORKER: Actor = Actor::Worker;

async fn fixture() -> (AdminService, ManualClock, Store) {
    let clock = ManualClock::new(datetime!(2030-01-01 12:00 UTC));
    let store = Store::open_in_memory().await.expect("opens");
    (AdminService::new(store.clone(), Arc::new(clock.clone())), clock, store)
}

async fn with_password() -> (AdminService, ManualClock, String) {
    let (admin, clock, _) = fixture().await;
    let password = admin.generate_password(&WORKER).await.expect("set").reveal().to_owned();
    (admin, clock, password)
}

async fn actions(admin: &AdminService) -> Vec<AuditAction> {
    let page = admin.audit_page(None, 100).await.expect("read");
    page.entries.into_iter().rev().map(|entry| entry.action).collect()
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))
}

#[tokio::test]
async fn without_a_password_no_sign_in_succeeds() {
    let (admin, _, _) = fixture().await;
    assert!(!admin.has_password().await.expect("read"));
    assert!(matches!(admin.sign_in("", HERE).await, Err(SignInError::WrongPassword)));
}

#[tokio::test]
async fn the_right_password_opens_a_session_until_it_is_ended() {
    let (admin, _, password) = with_password().await;
    assert_eq!(password.len(), GENERATED_PASSWORD_CHARS);
    let NewSession { token, session } = admin.sign_in(&password, HERE).await.expect("in");
    assert_eq!(admin.session(token.reveal()).await.expect("read"), Some(session));
    let mut other = token.reveal().to_owned();
    other.replace_range(0..1, if other.starts_with('a') { "b" } else { "a" });
    assert_eq!(admin.session(&other).await.expect("read"), None);
    let actor = Actor::Administrator { session: session.id, address: HERE };
    for _ in 0..2 {
        admin.sign_out(session.id, &actor).await.expect("out");
    }
    assert_eq!(admin.session(token.reveal()).await.expect("read"), None);
    let expected = [AuditAction::PasswordSet, AuditAction::SignedIn, AuditAction::SignedOut];
    assert_eq!(actions(&admin).await, expected);
}

#[tokio::test]
async fn an_idle_or_old_session_ends() {
    let (admin, clock, password) = with_password().await;
    let idle = admin.sign_in(&password, HERE).await.expect("in");
    clock.advance(SESSION_IDLE_LIFETIME - Duration::seconds(1));
    let used = admin.sign_in(&password, HERE).await.expect("in");
    let seen = admin.session(idle.token.reveal()).await.expect("read").expect("just in time");
    assert_eq!(seen.last_used_at, clock.now());
    clock.advance(SESSION_IDLE_LIFETIME);
    assert_eq!(admin.session(idle.token.reveal()).await.expect("read"), None);
    assert_eq!(admin.session(used.token.reveal()).await.expect("read"), None);

    let busy = admin.sign_in(&password, HERE).await.expect("in");
    let end = busy.session.expires_at();
    while clock.now() + Duration::hours(1) < end {
        clock.advance(Duration::hours(1));
        let session = admin.session(busy.token.reveal()).await.expect("read").expect("used every hour");
        assert!(session.idle_expires_at() <= end);
    }
    clock.advance(Duration::hours(1));
    assert_eq!(admin.session(busy.token.reveal()).await.expect("read"), None);
}

#[tokio::test]
async fn sessions_are_bounded_and_the_oldest_goes() {
    let (admin, _, password) = with_password().await;
    let mut sessions = Vec::new();
    for _ in 0..=SESSIONS_MAX {
        sessions.push(admin.sign_in(&password, HERE).await.expect("in"));
    }
    assert_eq!(admin.session(sessions[0].token.reveal()).await.expect("read"), None);
    for other in &sessions[1..] {
        assert!(admin.session(other.token.reveal()).await.expect("read").is_some());
    }
}

#[tokio::test]
async fn another_password_ends_all_sessions_and_the_same_one_does_not() {
    let (admin, _, password) = with_password().await;
    let session = admin.sign_in(&password, HERE).await.expect("in");
    let same = password.parse().expect("fit");
    assert!(!admin.ensure_password(&same, &WORKER).await.expect("compared"));
    assert!(admin.session(session.token.reveal()).await.expect("read").is_some());
    let other = "another password".parse().expect("fit");
    assert!(admin.ensure_password(&other, &WORKER).await.expect("set"));
    assert_eq!(admin.session(session.token.reveal()).await.expect("read"), None);
    assert!(matches!(admin.sign_in(&password, HERE).await, Err(SignInError::WrongPassword)));
    admin.sign_in(other.reveal(), HERE).await.expect("in");
}

#[tokio::test]
async fn guesses_are_limited_by_address_also_when_concurrent() {
    let (admin, clock, password) = with_password().await;
    let guesses = (0..20).map(|_| admin.sign_in("a wrong password", HERE));
    let outcomes = futures_util::future::join_all(guesses).await;
    let looked_at = outcomes.iter().filter(|outcome| matches!(outcome, Err(SignInError::WrongPassword))).count();
    assert_eq!(looked_at, BY_ADDRESS.failures_max as usize);
    let expected = BY_ADDRESS.seconds_per_failure as u64;
    let is_refused = |outcome: &Result<_, SignInError>| matches!(outcome, Err(SignInError::Throttled { retry_after_seconds }) if *retry_after_seconds == expected);
    assert!(is_refused(&admin.sign_in("a wrong password", HERE).await));
    assert!(is_refused(&admin.sign_in(&password, HERE).await), "one was checked in this second");
    admin.sign_in(&password, address(1)).await.expect("other addresses are not affected");
    clock.advance(Duration::seconds(BY_ADDRESS.seconds_per_failure));
    // A right password does not count, so it can be repeated at once.
    for _ in 0..3 {
        admin.sign_in(&password, HERE).await.expect("in");
    }
    let refusals = actions(&admin).await.into_iter().filter(|action| *action == AuditAction::SignInRefused).count();
    assert_eq!(refusals, looked_at);
}

#[tokio::test]
async fn guesses_are_limited_in_total_without_locking_out_known_networks() {
    let (admin, _, password) = with_password().await;
    let known = address(1_000_000);
    admin.sign_in(&password, known).await.expect("in");
    for number in 0..FROM_EVERYWHERE.failures_max {
        let outcome = admin.sign_in("a wrong password", address(number)).await;
        assert!(matches!(outcome, Err(SignInError::WrongPassword)), "{outcome:?}");
    }
    for place in [known, IpAddr::V4(Ipv4Addr::LOCALHOST)] {
        admin.sign_in(&password, place).await.expect("in");
        for _ in 0..BY_ADDRESS.failures_max {
            let outcome = admin.sign_in("a wrong password", place).await;
            assert!(matches!(outcome, Err(SignInError::WrongPassword)), "{outcome:?}");
        }
        for _ in 0..2 {
            let outcome = admin.sign_in("a wrong password", place).await;
            assert!(matches!(outcome, Err(SignInError::Throttled { .. })), "they are still limited by address");
        }
    }
    let outcome = admin.sign_in(&password, HERE).await;
    assert!(matches!(outcome, Err(SignInError::Throttled { .. })), "{outcome:?}");
}

/// For clients behind one proxy, or in a network full of strangers.
#[tokio::test]
async fn continued_guessing_does_not_lock_out_the_administrator() {
    let (admin, clock, password) = with_password().await;
    for _ in 0..BY_ADDRESS.failures_max {
        let outcome = admin.sign_in("a wrong password", HERE).await;
        assert!(matches!(outcome, Err(SignInError::WrongPassword)), "{outcome:?}");
    }
    for number in 0..FROM_EVERYWHERE.failures_max {
        let _ = admin.sign_in("a wrong password", address(number)).await;
    }
    // Guesses from elsewhere do not hold up a network with a sign-in: so another network asks next.
    for (place, next) in [(HERE, HERE), (address(2_000_000), address(2_000_001))] {
        clock.advance(Duration::seconds(1));
        if place != HERE {
            // Uses up what is forgiven of the guesses from everywhere by now.
            let outcome = admin.sign_in("a wrong password", address(3_000_000)).await;
            assert!(matches!(outcome, Err(SignInError::WrongPassword)), "{outcome:?}");
        }
        admin.sign_in(&password, place).await.expect("in");
        let again = admin.sign_in(&password, next).await;
        assert!(matches!(again, Err(SignInError::Throttled { .. })), "at a bounded rate: {again:?}");
        let wrong = admin.sign_in("a wrong password", HERE).await;
        assert!(matches!(wrong, Err(SignInError::Throttled { .. })), "{wrong:?}");
    }
}

#[tokio::test]
async fn an_administrator_is_recognized_by_network() {
    let (admin, _, password) = with_password().await;
    let from = |text: &str| text.parse::<IpAddr>().expect("an address");
    admin.sign_in(&password, from("2001:db8:0:1::1")).await.expect("in");
    let store = &admin.0.admin;
    for (address, is_known) in [
        ("2001:db8:0:1::1", true),
        ("2001:db8:0:1:aaaa:bbbb:cccc:dddd", true),
        ("2001:db8:0:2::1", false),
        ("192.0.2.1", false),
    ] {
        assert_eq!(store.has_session_from(from(address)).await.expect("read"), is_known, "{address}");
    }
}

#[tokio::test]
async fn neither_password_nor_token_is_in_the_database_or_in_debug() {
    let (admin, _, store) = fixture().await;
    let password = admin.generate_password(&WORKER).await.expect("set");
    let new = admin.sign_in(password.reveal(), HERE).await.expect("in");
    let shown = format!("{password:?} {new:?} {admin:?}");
    assert!(!shown.contains(password.reveal()) && !shown.contains(new.token.reveal()), "{shown}");
    let texts: Vec<String> = sqlx::query_scalar(
        "SELECT password_hash FROM admin_password UNION ALL SELECT hex(token_hash) || id FROM admin_sessions \
         UNION ALL SELECT concat(actor, session_id, detail) FROM audit_log",
    )
    .fetch_all(store.pool())
    .await
    .expect("rows");
    assert!(texts[0].starts_with("$argon2id$") && texts.len() == 4, "{texts:?}");
    for secret in [password.reveal(), new.token.reveal()] {
        assert!(texts.iter().all(|text| !text.contains(secret)));
    }
}

/// Steps of the machine's clock, back and forward.
const STEPS: [Duration; 4] = [Duration::minutes(-10), Duration::days(-400), Duration::minutes(10), Duration::days(400)];

#[tokio::test]
async fn a_right_password_succeeds_after_the_announced_time_whatever_the_clock_says() {
    for step in STEPS {
        let (admin, clock, password) = with_password().await;
        for _ in 0..BY_ADDRESS.failures_max {
            assert!(matches!(admin.sign_in("a wrong password", HERE).await, Err(SignInError::WrongPassword)));
        }
        clock.set_by(step);
        let told = BY_ADDRESS.seconds_per_failure as u64;
        let outcome = admin.sign_in("a wrong password", HERE).await;
        assert!(
            matches!(outcome, Err(SignInError::Throttled { retry_after_seconds }) if retry_after_seconds == told),
            "{step}: {outcome:?}"
        );
        clock.advance(Duration::seconds(BY_ADDRESS.seconds_per_failure));
        // Not as the one attempt per second beyond the limits, which does not reveal that a password is wrong.
        let outcome = admin.sign_in("a wrong password", HERE).await;
        assert!(matches!(outcome, Err(SignInError::WrongPassword)), "{step}: {outcome:?}");
        clock.advance(Duration::seconds(BY_ADDRESS.seconds_per_failure));
        admin.sign_in(&password, HERE).await.expect("in");
    }
}

#[tokio::test]
async fn a_session_created_while_the_clock_was_ahead_ends_in_time() {
    let (admin, clock, password) = with_password().await;
    clock.set_by(Duration::days(400));
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS_MAX {
        sessions.push(admin.sign_in(&password, HERE).await.expect("in"));
    }
    clock.set_by(Duration::days(-400));
    let is_in = async |session: &NewSession| admin.session(session.token.reveal()).await.expect("read").is_some();
    let used = sessions.last().expect("many");
    assert!(is_in(used).await);
    let new = admin.sign_in(&password, HERE).await.expect("in");
    assert!(is_in(&new).await, "it is the newest, whatever the others' times");
    for _ in 0..24 {
        assert!(is_in(used).await);
        clock.advance(Duration::hours(1));
    }
    assert!(!is_in(used).await, "its lifetime is over");
    clock.set_by(Duration::days(400));
    assert!(!is_in(&new).await, "ahead, all have ended");
}
