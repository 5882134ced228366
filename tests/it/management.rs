//! Keys, sessions and the audit log over HTTP, for the administrator.

use axum::body::Body;
use axum::http::header::COOKIE;
use axum::http::{Request, StatusCode};
use fluxserve::http::HttpSettings;
use serde_json::{Value, json};
use time::Duration;

use crate::app::{Answer, Options, PASSWORD, TestApp, image, managing, request};

/// A signed-in administrator.
pub(crate) struct Administrator<'a> {
    app: &'a TestApp,
    cookie: String,
}

impl<'a> Administrator<'a> {
    pub(crate) async fn of(app: &'a TestApp) -> Self {
        Self { app, cookie: app.sign_in().await }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.app.send(managing(&self.cookie, method, path, body.as_ref())).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    }

    /// The answer to a request that is made for the session's cookie.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Answer {
        request.headers_mut().insert(COOKIE, self.cookie.parse().expect("a value"));
        self.app.send(request).await
    }

    /// Creates a key; returns its path and value.
    pub(crate) async fn create(&self, body: Value) -> (String, String) {
        let answer = self.ask("POST", "/v1/api-keys", Some(body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        assert_eq!(answer.header("cache-control"), "no-store");
        let view = answer.json();
        let text = |field: &str| view[field].as_str().expect("a text").to_owned();
        (format!("/v1/api-keys/{}", text("id")), text("key"))
    }

    async fn inference_key(&self) -> (String, String) {
        self.create(json!({ "name": "test", "scope": { "inference": true } })).await
    }

    async fn rotate(&self, path: &str, body: Option<Value>) -> String {
        let answer = self.ask("POST", &format!("{path}/rotate"), body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.header("cache-control"), "no-store");
        answer.json()["key"].as_str().expect("a value").to_owned()
    }
}

/// The status of an inference route for a key.
async fn status_of(app: &TestApp, key: &str) -> u16 {
    app.send(request("GET", "/v1/inference/jobs", Some(key), None)).await.status.as_u16()
}

async fn sign_in_with(app: &TestApp, password: &str, headers: &[(&'static str, &str)]) -> Answer {
    let mut request = request("POST", "/v1/session", None, Some(&json!({ "password": password })));
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a value"));
    }
    app.send(request).await
}

#[tokio::test]
async fn a_session_is_created_shown_and_ended() {
    let app = TestApp::start().await;
    let wrong = sign_in_with(&app, "not the password", &[]).await;
    assert_eq!((wrong.status.as_u16(), wrong.code().as_str()), (401, "wrong_password"));
    assert!(wrong.header("set-cookie").is_empty() && wrong.header("www-authenticate").starts_with("Session"));
    let answer = sign_in_with(&app, PASSWORD, &[("origin", "http://worker.test")]).await;
    let cookie = answer.header("set-cookie");
    assert!(cookie.starts_with("fluxserve_session="), "{cookie}");
    for attribute in ["Path=/", "HttpOnly", "SameSite=Strict", "Max-Age=86400"] {
        assert!(cookie.split("; ").any(|part| part == attribute), "{cookie} lacks {attribute}");
    }
    let cookie = cookie.split(';').next().expect("a pair");
    assert!(!answer.text().contains(cookie.split_once('=').expect("a pair").1), "only the cookie contains the token");
    let shown = app.send(managing(cookie, "GET", "/v1/session", None)).await.json();
    assert_eq!(shown, answer.json());
    let out = app.send(managing(cookie, "DELETE", "/v1/session", None)).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    assert!(out.header("set-cookie").contains("Max-Age=0"));
    let gone = app.send(managing(cookie, "GET", "/v1/session", None)).await;
    assert_eq!((gone.status.as_u16(), gone.code().as_str()), (401, "session_required"));
}

#[tokio::test]
async fn over_https_the_cookie_is_bound_to_this_host() {
    let http = HttpSettings { public_url: Some("https://images.example.org".into()), ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let answer = sign_in_with(&app, PASSWORD, &[("origin", "https://images.example.org")]).await;
    let cookie = answer.header("set-cookie");
    assert!(cookie.starts_with("__Host-fluxserve_session=") && cookie.ends_with("; Secure"), "{cookie}");
    let plain = cookie.split(';').next().expect("a pair").replace("__Host-", "");
    assert_eq!(app.send(managing(&plain, "GET", "/v1/session", None)).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_page_of_another_site_cannot_change_anything() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let (path, key) = administrator.inference_key().await;
    let foreign = [("origin", "http://evil.test"), ("origin", "null"), ("sec-fetch-site", "cross-site")];
    for (name, value) in foreign {
        let answer = sign_in_with(&app, PASSWORD, &[(name, value)]).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "foreign_origin"), "{name}: {value}");
        assert!(answer.header("set-cookie").is_empty());
        for (method, path) in [("DELETE", path.as_str()), ("PATCH", &path), ("POST", "/v1/api-keys")] {
            let body = json!({ "name": "evil", "scope": { "all": true } });
            let mut request = managing(&administrator.cookie, method, path, Some(&body));
            request.headers_mut().insert(name, value.parse().expect("a value"));
            assert_eq!(app.send(request).await.code(), "foreign_origin", "{method} {path}");
        }
    }
    assert_eq!(status_of(&app, &key).await, 200);
}

#[tokio::test]
async fn wrong_passwords_are_throttled_without_affecting_other_clients() {
    let app = TestApp::start().await;
    let mut throttled = None;
    for _ in 0..20 {
        let answer = sign_in_with(&app, "a wrong password", &[]).await;
        if answer.status != StatusCode::UNAUTHORIZED {
            throttled = Some(answer);
            break;
        }
    }
    let throttled = throttled.expect("an end of guessing");
    assert_eq!((throttled.status.as_u16(), throttled.code().as_str()), (429, "too_many_sign_ins"));
    let seconds: i64 = throttled.header("retry-after").parse().expect("seconds");
    assert_eq!(
        sign_in_with(&app, PASSWORD, &[]).await.status,
        StatusCode::TOO_MANY_REQUESTS,
        "even the right password"
    );
    let elsewhere = request("POST", "/v1/session", None, Some(&json!({ "password": PASSWORD })));
    assert_eq!(app.send_from("192.0.2.9:1", elsewhere).await.status, StatusCode::CREATED);
    app.clock.advance(Duration::seconds(1));
    assert_eq!(
        sign_in_with(&app, PASSWORD, &[]).await.status,
        StatusCode::CREATED,
        "one attempt per second is checked"
    );
    let throttled = sign_in_with(&app, PASSWORD, &[]).await;
    assert_eq!(throttled.status, StatusCode::TOO_MANY_REQUESTS, "and no more");
    app.clock.advance(Duration::seconds(seconds));
    assert_eq!(sign_in_with(&app, PASSWORD, &[]).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_key_is_created_shown_and_listed_and_its_value_is_shown_once() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let end = "2999-12-31T23:30:00-01:00";
    let body = json!({ "name": " ci ", "scope": { "inference": true }, "expires_at": end });
    let (path, key) = administrator.create(body).await;
    assert_eq!(status_of(&app, &key).await, 200);
    let view = administrator.get(&path).await;
    assert_eq!(view["name"], "ci");
    assert_eq!((&view["prefix"], &view["state"]), (&json!(key[..13]), &json!("active")));
    assert_eq!(view["scope"], json!({ "inference": true }));
    assert_eq!(view["expires_at"], "3000-01-01T00:30:00Z");
    let fields: Vec<&str> = view.as_object().expect("an object").keys().map(String::as_str).collect();
    let documented =
        ["id", "name", "prefix", "scope", "state", "created_at", "expires_at", "last_used_at", "rotated_at", "limits"];
    assert!(documented.iter().all(|field| fields.contains(field)) && !fields.contains(&"key"), "{fields:?}");

    let all = administrator.get("/v1/api-keys?limit=100").await;
    assert_eq!(all["data"][0], view, "the newest first");
    assert_eq!(all["next_cursor"], Value::Null);
    let count = all["data"].as_array().expect("a list").len();
    let mut seen = Vec::new();
    let mut next = "/v1/api-keys?limit=3".to_owned();
    loop {
        let page = administrator.get(&next).await;
        seen.extend(page["data"].as_array().expect("a list").iter().cloned());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        next = format!("/v1/api-keys?limit=3&cursor={cursor}");
    }
    assert_eq!(seen.len(), count);
    assert_eq!(json!(seen), all["data"]);
    for (state, expected) in [("active", count - 2), ("expired", 1), ("revoked", 1)] {
        let page = administrator.get(&format!("/v1/api-keys?limit=100&state={state}")).await;
        let keys = page["data"].as_array().expect("a list");
        assert!(keys.iter().all(|key| key["state"] == state));
        assert_eq!(keys.len(), expected, "{state}");
    }
    let wrong = administrator.ask("GET", "/v1/api-keys?limit=0&state=gone&cursor=x&page=2", None).await;
    assert_eq!(wrong.fields(), ["cursor", "state", "limit", "page"]);
    for missing in ["/v1/api-keys/018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f", "/v1/api-keys/nonsense"] {
        for method in ["GET", "DELETE"] {
            assert_eq!(administrator.ask(method, missing, None).await.code(), "key_not_found");
        }
    }
}

#[tokio::test]
async fn every_invalid_scope_is_refused_with_its_rule_on_create_and_on_edit() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let (path, key) = administrator.inference_key().await;
    let id = "018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f";
    let exec = |value: Value| json!({ "kubernetes_exec": value });
    let cases = [
        (json!({}), "allows nothing"),
        (json!(null), "must be an object"),
        (json!("all"), "must be an object"),
        (json!({ "inference": true, "kubernetes_exec": { "all_namespaces": true } }), "cannot be in one scope"),
        (json!({ "all": true, "inference": true }), "must stand alone"),
        (json!({ "all": true, "kubernetes_exec": { "all_namespaces": true } }), "must stand alone"),
        (json!({ "all": false }), "must be true"),
        (json!({ "inference": false }), "must be true"),
        (exec(json!({})), "empty `kubernetes_exec`"),
        (exec(json!({ "namespace_ids": [] })), "empty `namespace_ids`"),
        (exec(json!({ "all_namespaces": true, "namespace_ids": [id] })), "exclude each other"),
        (exec(json!({ "namespace_ids": [id, id] })), "more than once"),
        (exec(json!({ "namespace_ids": ["default"] })), "not a namespace id"),
        (exec(json!({ "namespace_ids": [id] })), "unknown namespace"),
        (json!({ "admin": true }), "no field `admin`"),
    ];
    for (scope, rule) in cases {
        let body = json!({ "name": "test", "scope": scope });
        for (method, path) in [("POST", "/v1/api-keys"), ("PATCH", path.as_str())] {
            let answer = administrator.ask(method, path, Some(body.clone())).await;
            assert_eq!((answer.status.as_u16(), answer.fields()), (400, vec!["scope".to_owned()]), "{method} {scope}");
            let reason = answer.json()["errors"][0]["reason"].as_str().expect("a reason").to_owned();
            assert!(reason.contains(rule), "{method} {scope}: {reason}");
        }
    }
    assert_eq!(status_of(&app, &key).await, 200);
    for good in [json!({ "all": true }), json!({ "inference": true }), exec(json!({ "all_namespaces": true }))] {
        let answer = administrator.ask("PATCH", &path, Some(json!({ "scope": good }))).await;
        assert_eq!((answer.status, &answer.json()["scope"]), (StatusCode::OK, &good));
    }
}

#[tokio::test]
async fn invalid_keys_are_refused_field_by_field() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let (path, _) = administrator.inference_key().await;
    let scope = json!({ "inference": true });
    let creations = [
        (json!({}), vec!["name", "scope"]),
        (json!({ "name": 7, "scope": scope, "expires_at": "tomorrow" }), vec!["name", "expires_at"]),
        (json!({ "name": "a", "scope": scope, "expires_at": "2030-01-31T12:00:00" }), vec!["expires_at"]),
        (json!({ "name": "a", "scope": scope, "expires_at": "2001-01-01T00:00:00Z" }), vec!["expires_at"]),
        (json!({ "name": "a\nb", "scope": scope }), vec!["name"]),
        (json!({ "name": "x".repeat(101), "scope": scope }), vec!["name"]),
        (json!({ "name": "a", "scope": scope, "key": "mine" }), vec!["key"]),
        (json!({ "name": "a", "scope": scope, "limits": 7 }), vec!["limits"]),
        (
            json!({ "name": "a", "scope": scope, "limits": { "concurrent_jobs": "1", "per_hour": 1 } }),
            vec!["limits.concurrent_jobs", "limits.per_hour"],
        ),
        (json!({ "name": "a", "scope": scope, "limits": { "concurrent_jobs": 0 } }), vec!["limits.concurrent_jobs"]),
        (
            json!({ "name": "a", "scope": scope, "limits": { "requests_per_minute": 9_999_999_999_u64 } }),
            vec!["limits.requests_per_minute"],
        ),
    ];
    for (body, fields) in creations {
        assert_eq!(administrator.ask("POST", "/v1/api-keys", Some(body.clone())).await.fields(), fields, "{body}");
    }
    let edits = [
        (json!({ "name": null }), vec!["name"]),
        (json!({ "name": "" }), vec!["name"]),
        (json!({ "name": "ci\u{202e}x" }), vec!["name"]),
        (json!({ "limits": { "requests_per_minute": 0 } }), vec!["limits.requests_per_minute"]),
        (json!({ "limits": { "requests_per_minute": -1 } }), vec!["limits.requests_per_minute"]),
        (json!({ "expires_at": "2001-01-01T00:00:00Z" }), vec!["expires_at"]),
        (json!({ "state": "active", "prefix": "rgpu_" }), vec!["prefix", "state"]),
    ];
    for (body, fields) in edits {
        assert_eq!(administrator.ask("PATCH", &path, Some(body.clone())).await.fields(), fields, "{body}");
    }
    let rotate = format!("{path}/rotate");
    for body in [json!({ "grace_seconds": 604_801 }), json!({ "grace_seconds": -1 }), json!({ "grace_seconds": "1" })] {
        assert_eq!(administrator.ask("POST", &rotate, Some(body)).await.fields(), ["grace_seconds"]);
    }
}

#[tokio::test]
async fn an_edit_and_a_revocation_apply_to_the_next_request() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let (path, key) = administrator.inference_key().await;
    let edit = async |body: Value| {
        let answer = administrator.ask("PATCH", &path, Some(body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    };
    assert_eq!(status_of(&app, &key).await, 200);
    edit(json!({ "scope": { "kubernetes_exec": { "all_namespaces": true } } })).await;
    assert_eq!(status_of(&app, &key).await, 403);
    let edited = edit(json!({ "name": "renamed", "scope": { "all": true } })).await;
    assert_eq!((&edited["name"], &edited["scope"]), (&json!("renamed"), &json!({ "all": true })));
    assert_eq!(status_of(&app, &key).await, 200);
    let end = app.clock_now() + Duration::minutes(1);
    let end = end.format(&time::format_description::well_known::Rfc3339).expect("a text");
    edit(json!({ "expires_at": end })).await;
    app.clock.advance(Duration::minutes(1));
    assert_eq!(status_of(&app, &key).await, 401);
    assert_eq!(edit(json!({ "expires_at": null })).await["state"], "active");
    assert_eq!(status_of(&app, &key).await, 200);
    for _ in 0..2 {
        let answer = administrator.ask("DELETE", &path, None).await;
        assert_eq!((answer.status, &answer.json()["state"]), (StatusCode::OK, &json!("revoked")));
        assert_eq!(status_of(&app, &key).await, 401);
    }
    for (method, path) in [("PATCH", path.clone()), ("POST", format!("{path}/rotate"))] {
        let answer = administrator.ask(method, &path, Some(json!({}))).await;
        let expected = if method == "PATCH" { (200, None) } else { (409, Some("key_ended".to_owned())) };
        let code = (answer.status == StatusCode::CONFLICT).then(|| answer.code());
        assert_eq!((answer.status.as_u16(), code), expected, "{method}: an edit of nothing changes nothing");
    }
    let late = administrator.ask("PATCH", &path, Some(json!({ "name": "late" }))).await;
    assert_eq!(late.code(), "key_ended");
}

#[tokio::test]
async fn a_rotation_overlaps_for_the_given_time() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let (path, first) = administrator.inference_key().await;
    let second = administrator.rotate(&path, Some(json!({ "grace_seconds": 3600 }))).await;
    assert_eq!([status_of(&app, &first).await, status_of(&app, &second).await], [200, 200]);
    let view = administrator.get(&path).await;
    assert_eq!((&view["prefix"], &view["overlap"]["prefix"]), (&json!(second[..13]), &json!(first[..13])));
    assert!(view["rotated_at"].is_string());
    app.clock.advance(Duration::seconds(3599));
    assert_eq!([status_of(&app, &first).await, status_of(&app, &second).await], [200, 200]);
    app.clock.advance(Duration::seconds(1));
    assert_eq!([status_of(&app, &first).await, status_of(&app, &second).await], [401, 200]);
    assert_eq!(administrator.get(&path).await["overlap"], Value::Null);
    let third = administrator.rotate(&path, None).await;
    assert_eq!([status_of(&app, &second).await, status_of(&app, &third).await], [401, 200]);

    // The jobs belong to the key, whichever value requested them.
    let send = async |key: &str, method: &str, path: &str, body: Option<&Value>| {
        app.send(request(method, path, Some(key), body)).await
    };
    let job = send(&third, "POST", "/v1/inference/image", Some(&image(1))).await.json();
    let fourth = administrator.rotate(&path, None).await;
    let job = format!("/v1/inference/jobs/{}", job["job_id"].as_str().expect("an id"));
    assert_eq!(send(&fourth, "GET", &job, None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_audit_log_records_who_did_what_and_from_where() {
    let app = TestApp::start().await;
    sign_in_with(&app, "a wrong password", &[]).await;
    let administrator = Administrator::of(&app).await;
    let (path, key) = administrator.inference_key().await;
    administrator.ask("PATCH", &path, Some(json!({ "name": "other" }))).await;
    administrator.rotate(&path, None).await;
    administrator.ask("DELETE", &path, None).await;
    let log = administrator.get("/v1/audit?limit=100").await;
    let entries = log["data"].as_array().expect("a list");
    let told: Vec<_> = entries.iter().take(6).map(|entry| (&entry["action"], &entry["actor"])).collect();
    let expected = [
        ("key_revoked", "administrator"),
        ("key_rotated", "administrator"),
        ("key_edited", "administrator"),
        ("key_created", "administrator"),
        ("signed_in", "administrator"),
        ("sign_in_refused", "stranger"),
    ];
    for ((action, actor), expected) in told.into_iter().zip(expected) {
        assert_eq!((action.as_str(), actor.as_str()), (Some(expected.0), Some(expected.1)));
    }
    let created = &entries[3];
    assert_eq!(created["address"], "127.0.0.1");
    assert_eq!(created["session_id"], administrator.get("/v1/session").await["id"]);
    assert_eq!((&created["key_prefix"], &created["detail"]["name"]), (&json!(key[..13]), &json!("test")));
    assert_eq!(entries[2]["detail"], json!({ "name": "other" }));
    assert!(entries[6..].iter().all(|entry| entry["actor"] == "command_line"), "what the test set up before");

    let first = administrator.get("/v1/audit?limit=2").await;
    let cursor = first["next_cursor"].as_str().expect("more").to_owned();
    let second = administrator.get(&format!("/v1/audit?limit=2&cursor={cursor}")).await;
    assert_eq!([&second["data"][0], &second["data"][1]], [&entries[2], &entries[3]]);
    let wrong = administrator.ask("GET", "/v1/audit?limit=101&cursor=x", None).await;
    assert_eq!(wrong.fields(), ["cursor", "limit"]);
}
