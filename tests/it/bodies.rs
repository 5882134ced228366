//! Bodies: their syntax, their memory, and the check of a key's rights after they have arrived.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::app::{Answer, MODEL, Options, PASSWORD, TestApp, image, managing, request};
use crate::kubernetes::Site;
use crate::management::Administrator;

type Piece = Result<Bytes, std::io::Error>;

/// A body whose last piece is sent on demand.
struct HeldOpen {
    body: Body,
    /// Notified when the first piece has been read.
    begun: oneshot::Receiver<()>,
    tell: oneshot::Sender<()>,
}

fn held_open(body: &str) -> HeldOpen {
    let (first, rest) = body.split_at(body.len() / 2);
    let (first, rest) = (Bytes::from(first.to_owned()), Bytes::from(rest.to_owned()));
    let (begin, begun) = oneshot::channel();
    let (tell, told) = oneshot::channel();
    let last = async move {
        begin.send(()).expect("waited for");
        told.await.expect("told");
        Piece::Ok(rest)
    };
    let body = Body::from_stream(stream::iter([Piece::Ok(first)]).chain(stream::once(last)));
    HeldOpen { body, begun, tell }
}

fn patient() -> Options {
    let mut options = Options::default();
    options.http.body_deadline = Duration::from_secs(20);
    options
}

/// Sends a request with a key, makes a change while the body is in transfer, and returns the answer.
async fn meanwhile(app: &TestApp, path: &str, key: &str, body: &Value, change: impl Future<Output = ()>) -> Answer {
    send_meanwhile(app, request("POST", path, Some(key), Some(body)), body, change).await
}

async fn send_meanwhile(
    app: &TestApp,
    mut asked: Request<Body>,
    body: &Value,
    change: impl Future<Output = ()>,
) -> Answer {
    let HeldOpen { body, begun, tell } = held_open(&body.to_string());
    *asked.body_mut() = body;
    let (answer, ()) = tokio::join!(app.send(asked), async {
        begun.await.expect("read");
        change.await;
        tell.send(()).expect("still read");
    });
    answer
}

async fn made(administrator: &Administrator<'_>, body: Value) -> (String, String) {
    let created = administrator.ask("POST", "/v1/api-keys", Some(body)).await.json();
    let path = format!("/v1/api-keys/{}", created["id"].as_str().expect("an id"));
    (path, created["key"].as_str().expect("a value").to_owned())
}

#[tokio::test]
async fn a_key_that_loses_its_right_while_its_body_arrives_generates_nothing() {
    let app = TestApp::with(patient()).await;
    let administrator = Administrator::of(&app).await;
    let generations = json!({ "prompt": "a fox", "model": MODEL, "size": "64x64", "steps": 2 });
    for (path, body) in [("/v1/inference/image", image(1)), ("/v1/images/generations", generations)] {
        let key = json!({ "name": "test", "scope": { "inference": true } });
        let (revoked, value) = made(&administrator, key.clone()).await;
        let answer = meanwhile(&app, path, &value, &body, async {
            assert_eq!(administrator.ask("DELETE", &revoked, None).await.status, StatusCode::OK);
        });
        assert_eq!(answer.await.status, StatusCode::UNAUTHORIZED, "{path}: revoked");
        let (changed, value) = made(&administrator, key.clone()).await;
        let answer = meanwhile(&app, path, &value, &body, async {
            let scope = json!({ "scope": { "kubernetes_exec": { "all_namespaces": true } } });
            let edited = administrator.ask("PATCH", &changed, Some(scope)).await;
            assert_eq!(edited.status, StatusCode::OK, "{}", edited.text());
        });
        assert_eq!(answer.await.status, StatusCode::FORBIDDEN, "{path}: of another scope");
        let (limited, value) = made(&administrator, key.clone()).await;
        let answer = meanwhile(&app, path, &value, &body, async {
            let limits = json!({ "limits": { "megapixel_steps_per_day": 1, "concurrent_jobs": 1 } });
            assert_eq!(administrator.ask("PATCH", &limited, Some(limits)).await.status, StatusCode::OK);
            app.control.hold();
            app.send(request("POST", "/v1/inference/image", Some(&value), Some(&image(9)))).await;
        });
        assert_eq!(answer.await.status, StatusCode::TOO_MANY_REQUESTS, "{path}: of lower limits");
        app.control.release();
        let mut expiring = key;
        expiring["expires_at"] = json!("2999-01-01T00:00:00Z");
        let (_, value) = made(&administrator, expiring).await;
        let answer = meanwhile(&app, path, &value, &body, async {
            app.clock.advance(time::Duration::days(365 * 1000));
        });
        assert_eq!(answer.await.status, StatusCode::UNAUTHORIZED, "{path}: expired");
        app.clock.advance(time::Duration::days(-365 * 1000));
    }
    assert_eq!(app.jobs.wait_until_idle(Duration::from_secs(20)).await, 0);
}

#[tokio::test]
async fn a_key_that_loses_its_right_while_its_body_arrives_gets_no_token() {
    let site = Site::start().await;
    let id = site.namespace("team-a").await;
    let (key_id, key) = site.key(&json!({ "kubernetes_exec": { "namespace_ids": [id] } })).await;
    let info = json!({ "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1" });
    let route = format!("/v1/kubernetes/namespaces/{id}/exec-credential");
    let before = site.cluster.minted();
    let answer = meanwhile(&site.app, &route, &key, &info, async {
        let revoked = site.manage("DELETE", &format!("/v1/api-keys/{key_id}"), None).await;
        assert_eq!(revoked.status, StatusCode::OK, "{}", revoked.text());
    });
    assert_eq!(answer.await.status, StatusCode::UNAUTHORIZED);
    // Refused before a token is made; afterwards the right would be checked again, and the token withdrawn.
    assert_eq!(site.cluster.minted(), before);
}

#[tokio::test]
async fn nothing_is_done_for_a_session_that_ends_while_the_body_arrives() {
    let site = Site::start().await;
    let app = &site.app;
    let namespace = site.namespace("team-a").await;
    let (key, _) = site.key(&json!({ "inference": true })).await;
    let project = site.manage("POST", "/v1/projects", Some(&json!({ "name": "shop" }))).await.json();
    let project = project["id"].as_str().expect("an id").to_owned();
    let named = json!({ "name": "changed" });
    let cases = [
        ("post", "/v1/api-keys", json!({ "name": "new", "scope": { "inference": true } })),
        ("patch", "/v1/api-keys/{key_id}", named.clone()),
        ("post", "/v1/api-keys/{key_id}/rotate", json!({ "grace_seconds": 60 })),
        ("post", "/v1/kubernetes/namespaces", json!({ "name": "team-b" })),
        ("patch", "/v1/kubernetes/namespaces/{namespace_id}", named.clone()),
        ("post", "/v1/loras", json!({ "repository": "someone/lora", "file": "lora.safetensors" })),
        ("post", "/v1/playground/image", image(1)),
        ("post", "/v1/projects", json!({ "name": "new" })),
        ("patch", "/v1/projects/{project_id}", named),
        ("patch", "/v1/api-keys/{key_id}/webhook", json!({ "events": ["job.failed"] })),
        ("post", "/v1/api-keys/{key_id}/webhook/secret", json!({ "grace_seconds": 60 })),
    ];
    let routes: BTreeSet<_> = cases.iter().map(|(method, path, _)| (*method, *path)).collect();
    let document = app.get("/openapi.json").await.json();
    let session = |operation: &&Value| operation["security"].to_string().contains("session");
    let mut described = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let operations = operations.as_object().expect("operations").iter();
        let with_bodies =
            operations.filter(|(_, operation)| operation.get("requestBody").is_some() && session(operation));
        described.extend(with_bodies.map(|(method, _)| (method.as_str(), path.as_str())));
    }
    assert_eq!(described, routes, "every session route with a body");
    let seen = async || {
        let keys = site.manage("GET", "/v1/api-keys", None).await.json();
        let namespaces = site.manage("GET", "/v1/kubernetes/namespaces", None).await.json();
        let jobs = site.manage("GET", "/v1/jobs", None).await.json();
        let projects = site.manage("GET", "/v1/projects", None).await.json();
        let webhook = site.manage("GET", &format!("/v1/api-keys/{key}/webhook"), None).await.json();
        (
            keys,
            (projects, webhook),
            namespaces["data"].as_array().expect("a list").iter().map(|one| one["name"].clone()).collect::<Vec<_>>(),
            jobs,
        )
    };
    for (method, path, body) in cases {
        let before = seen().await;
        let cookie = app.sign_in().await;
        let asked = managing(
            &cookie,
            &method.to_uppercase(),
            &path.replace("{key_id}", &key).replace("{namespace_id}", &namespace).replace("{project_id}", &project),
            Some(&body),
        );
        let answer = send_meanwhile(app, asked, &body, async {
            let out = app.send(managing(&cookie, "DELETE", "/v1/session", None)).await;
            assert_eq!(out.status, StatusCode::NO_CONTENT);
        });
        let answer = answer.await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::UNAUTHORIZED, "session_required"),
            "{method} {path}"
        );
        assert_eq!(seen().await, before, "{method} {path}");
    }
}

#[tokio::test]
async fn large_bodies_in_transfer_are_bounded_for_each_key_and_in_total() {
    let mut options = patient();
    options.http.body_bytes_max = 1024 * 1024;
    (options.http.bodies_bytes_max, options.http.key_bodies_bytes_max) = (1_500_000, 1_000_000);
    let app = TestApp::with(options).await;
    let text = format!("{}{}", image(1), " ".repeat(600_000));
    let ask = |key: &str, body: Body| {
        let asked = Request::post("/v1/inference/image").header("host", "worker.test").header("x-api-key", key);
        let asked = asked.header("content-type", "application/json").header("content-length", text.len());
        app.send(asked.body(body).expect("a request"))
    };
    let whole = || Body::from(text.clone());
    let (mine, others) = (held_open(&text), held_open(&text));
    let (first, second, ()) =
        tokio::join!(ask(&app.keys.inference, mine.body), ask(&app.keys.other_inference, others.body), async {
            mine.begun.await.expect("read");
            others.begun.await.expect("read");
            for key in [&app.keys.inference, &app.keys.all] {
                // Refused before a byte was read.
                let refused = ask(key, Body::from_stream(stream::pending::<Piece>())).await;
                assert_eq!(refused.code(), "too_many_bodies", "{}", refused.text());
                assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
                assert_ne!(refused.header("retry-after"), "");
            }
            app.submit(&image(2)).await;
            mine.tell.send(()).expect("still read");
            others.tell.send(()).expect("still read");
        });
    assert_eq!((first.status, second.status), (StatusCode::ACCEPTED, StatusCode::ACCEPTED));
    assert_eq!(ask(&app.keys.inference, whole()).await.status, StatusCode::ACCEPTED, "returned");
}

#[tokio::test]
async fn routes_that_need_no_large_body_refuse_one() {
    let mut options = Options::default();
    options.http.body_bytes_max = 1024 * 1024;
    let app = TestApp::with(options).await;
    let mut sign_in = json!({ "password": PASSWORD, "none": null });
    assert_eq!(app.send(request("POST", "/v1/session", None, Some(&sign_in))).await.status, StatusCode::CREATED);
    sign_in["padding"] = json!("x".repeat(4 * 1024));
    let refused = app.send(request("POST", "/v1/session", None, Some(&sign_in))).await;
    assert_eq!(refused.code(), "body_too_large");
    assert!(refused.text().contains("4096"), "{}", refused.text());
    let cookie = app.sign_in().await;
    let mut key = json!({ "name": "test", "scope": { "inference": true } });
    key["padding"] = json!("x".repeat(65_000));
    let keys = |body: &Value| app.send(managing(&cookie, "POST", "/v1/api-keys", Some(body)));
    assert_eq!(keys(&key).await.fields(), ["padding"]);
    key["padding"] = json!("x".repeat(66_000));
    assert_eq!(keys(&key).await.code(), "body_too_large");
}

#[tokio::test]
async fn a_body_of_very_many_values_is_not_parsed() {
    let mut options = Options::default();
    options.http.body_bytes_max = 1024 * 1024;
    let app = TestApp::with(options).await;
    for values in ["{\"\":0}", "0", "[]", "\"\""] {
        let body = format!("{{\"a\":[{values}{}]}}", format!(",{values}").repeat(2000));
        let mut asked = app.post_request(&json!({}), &[]);
        *asked.body_mut() = Body::from(body);
        let answer = app.send(asked).await;
        assert_eq!(answer.code(), "invalid_request");
        assert!(answer.text().contains("more than 1024 values"), "{}", answer.text());
    }
}

#[tokio::test]
async fn an_encoded_body_is_refused_as_such() {
    let app = TestApp::start().await;
    for encoding in ["gzip", "br", "identity, gzip", "DEFLATE", "x"] {
        let answer = app.post_with(&image(1), &[("content-encoding", encoding)]).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{encoding}");
        assert_eq!(answer.code(), "unsupported_media_type");
        assert!(answer.text().contains("Content-Encoding"), "{}", answer.text());
    }
    for encoding in ["identity", "Identity", ""] {
        let answer = app.post_with(&image(1), &[("content-encoding", encoding)]).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{encoding:?}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_is_ignored() {
    let app = TestApp::start().await;
    let mut asked = app.post_request(&json!({}), &[]);
    *asked.body_mut() = Body::from(format!("\u{feff}{}", image(1)));
    assert_eq!(app.send(asked).await.status, StatusCode::ACCEPTED);
    let mut asked = app.post_request(&json!({}), &[]);
    *asked.body_mut() = Body::from(format!("\u{feff}\u{feff}{}", image(1)));
    assert_eq!(app.send(asked).await.code(), "malformed_json", "only one is ignored");
}

#[tokio::test]
async fn whole_numbers_are_accepted_in_any_notation() {
    let app = TestApp::start().await;
    let send = async |path: &str, key: &str, body: &str| {
        let mut asked = request("POST", path, Some(key), Some(&json!({})));
        *asked.body_mut() = Body::from(body.to_owned());
        app.send(asked).await
    };
    let key = &app.keys.inference;
    let body = |seed: &str| {
        format!(
            r#"{{"model":"{MODEL}","prompt":"a","width":6.4e1,"height":64.0,"steps":2.0,"seed":{seed},"deadline_seconds":1e3}}"#
        )
    };
    for (seed, read) in [("42.0", 42_u64), ("1e3", 1000), ("-0.0", 0), ("562949953421312.0", 562_949_953_421_312)] {
        let answer = send("/v1/inference/image", key, &body(seed)).await;
        assert_eq!((answer.status, &answer.json()["seed"]), (StatusCode::ACCEPTED, &json!(read)), "{seed}");
    }
    for seed in ["42.5", "-1.0", "9007199254740991.0", "1e300"] {
        assert_eq!(send("/v1/inference/image", key, &body(seed)).await.fields(), ["seed"], "{seed}");
    }
    let generations =
        format!(r#"{{"model":"{MODEL}","prompt":"a","size":"64x64","n":1.0,"steps":2.0,"partial_images":0.0}}"#);
    let drawn = send("/v1/images/generations", key, &generations).await;
    assert_eq!(drawn.status, StatusCode::OK, "{}", drawn.text());
    let cookie = app.sign_in().await;
    let limits = json!({ "name": "a", "scope": { "inference": true }, "limits": { "concurrent_jobs": 2.0 } });
    let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&limits))).await;
    assert_eq!((made.status, &made.json()["limits"]["concurrent_jobs"]), (StatusCode::CREATED, &json!(2)));
}

#[tokio::test]
async fn null_is_absent_even_for_an_unknown_field() {
    let app = TestApp::start().await;
    let mut body = image(1);
    (body["negative_prompt"], body["remove_bg"]) = (json!(null), json!(null));
    assert_eq!(app.post(&body).await.status, StatusCode::ACCEPTED);
    body["remove_bg"] = json!(false);
    assert_eq!(app.post(&body).await.fields(), ["remove_bg"]);
    let cookie = app.sign_in().await;
    let key = json!({ "name": "a", "scope": { "inference": true }, "limits": { "unknown": null }, "other": null });
    let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&key))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
}
