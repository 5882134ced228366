//! Keys, passwords and session tokens appear only in the answer that returned them: not in the database, its copies,
//! trace logs, or refusals.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use serde_json::json;

use crate::app::{Answer, PASSWORD, TestApp, image, managing, request};

/// Everything logged while it is the thread's subscriber.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The secrets, and the places that were searched.
struct Search {
    secrets: Vec<(&'static str, Vec<u8>)>,
}

impl Search {
    #[track_caller]
    fn in_bytes(&self, place: &str, bytes: &[u8]) {
        for (name, secret) in &self.secrets {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!is_there, "{name} is in {place}");
        }
    }

    fn in_folder(&self, folder: &Path) -> usize {
        let mut files = 0;
        for entry in std::fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                files += self.in_folder(&path);
            } else {
                self.in_bytes(&path.display().to_string(), &std::fs::read(&path).expect("readable"));
                files += 1;
            }
        }
        files
    }

    fn in_answer(&self, answer: &Answer) {
        self.in_bytes("an answer", &answer.bytes);
        for (name, value) in &answer.headers {
            self.in_bytes(name.as_str(), value.as_bytes());
        }
    }
}

#[tokio::test]
async fn no_secret_is_stored_logged_or_in_refusals() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    // With a single subscriber, the thread that first reaches an event decides for all threads whether it is enabled,
    // and other tests' threads have no subscriber. A second subscriber prevents that.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());

    let app = TestApp::start().await;
    let cookie = app.sign_in().await;
    let body = json!({ "name": "searched for", "scope": { "inference": true } });
    let created = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&body))).await.json();
    let path = format!("/v1/api-keys/{}", created["id"].as_str().expect("an id"));
    let old = created["key"].as_str().expect("a value").to_owned();
    let rotate = managing(&cookie, "POST", &format!("{path}/rotate"), Some(&json!({ "grace_seconds": 60 })));
    let new = app.send(rotate).await.json()["key"].as_str().expect("a value").to_owned();
    let made = app.send(managing(&cookie, "POST", &format!("{path}/webhook/secret"), None)).await.json();
    let webhook_secret = made["secret"].as_str().expect("a secret").trim_start_matches("whsec_").to_owned();
    let wrong_password = "a password of another system";
    let token = cookie.split_once('=').expect("a pair").1.to_owned();
    let search = Search {
        secrets: vec![
            ("the password", PASSWORD.into()),
            ("a wrong password", wrong_password.into()),
            ("the session's token", token.into_bytes()),
            ("the old key", old[13..45].into()),
            ("the new key", new[13..45].into()),
            (
                "the webhook's secret",
                base64::engine::general_purpose::STANDARD.decode(&webhook_secret).expect("base64"),
            ),
            ("the webhook's secret as text", webhook_secret.into_bytes()),
        ],
    };

    for key in [&old, &new] {
        let answer = app.send(request("POST", "/v1/inference/image", Some(key), Some(&image(1)))).await;
        assert_eq!(answer.status, 202);
        search.in_answer(&answer);
    }
    let with = |password: &str| request("POST", "/v1/session", None, Some(&json!({ "password": password })));
    let mut misspelt = new.clone();
    misspelt.replace_range(50.., if new.ends_with('0') { "1" } else { "0" });
    let unfit = json!({ "password": [PASSWORD], "passwort": PASSWORD });
    let garbled = json!({ "name": "x", "scope": { "inference": new }, "expires_at": old });
    let refused = [
        with(wrong_password),
        request("POST", "/v1/session", None, Some(&unfit)),
        request("GET", "/v1/inference/jobs", Some(&misspelt), None),
        request("GET", "/v1/api-keys", Some(&new), None),
        managing(&cookie, "POST", "/v1/api-keys", Some(&garbled)),
        managing(&cookie, "GET", &format!("/v1/api-keys?state={new}&cursor={old}"), None),
        managing(&cookie, "GET", &format!("/v1/api-keys/{new}"), None),
    ];
    for request in refused {
        let answer = app.send(request).await;
        assert!(answer.status.is_client_error(), "{}", answer.text());
        search.in_answer(&answer);
    }
    for path in [path.as_str(), &format!("{path}/webhook"), "/v1/api-keys", "/v1/audit", "/v1/session"] {
        search.in_answer(&app.send(managing(&cookie, "GET", path, None)).await);
    }
    app.send(managing(&cookie, "DELETE", &path, None)).await;
    search.in_answer(&app.send(request("GET", "/v1/inference/jobs", Some(&new), None)).await);

    let copy = app.folder.path().join("copy.db");
    app.store.backup(&copy).await.expect("copied");
    let logged = captured.0.lock().expect("not poisoned").clone();
    assert!(String::from_utf8_lossy(&logged).contains("wrong password"), "the log is not empty");
    search.in_bytes("the log", &logged);
    assert!(search.in_folder(app.folder.path()) >= 2, "the database and its copy");
    let prefixes = Search { secrets: vec![("a prefix", new[5..13].into())] };
    let found = std::panic::catch_unwind(|| prefixes.in_folder(app.folder.path()));
    assert!(found.is_err(), "the search works: it finds the public id");
}
