//! Where secrets must not appear.

use super::*;

/// Everything logged on a thread while it is the subscriber.
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
    // With a single subscriber, tracing caches the interest in an event from the first thread that reaches it, and other
    // tests' threads have no subscriber. A second one turns that cache off.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());

    let fixture = Fixture::new().await;
    let key = fixture.key(Scope::All, None).await;
    let value = key.plain.reveal();
    fixture.check(value).await.expect("accepted");
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
    assert!(prefixes > 0, "the search itself works: it finds the public id");
}
