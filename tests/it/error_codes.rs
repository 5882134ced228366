//! Every code in the table of errors is reached, with its status.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Request;
use fluxserve::domain::engine::EngineError;
use fluxserve::http::error::ErrorCode;
use fluxserve::http::{Hosts, HttpSettings};
use fluxserve::jobs::WATCHES_PER_OWNER_MAX;
use fluxserve::uploads::UploadLimits;
use futures_util::stream;
use serde_json::json;

use crate::app::{Answer, Options, PASSWORD, TestApp, image, managing, request};
use crate::events::EventStream;
use crate::fake_engine::Fault;
use crate::kubernetes::Site;
use crate::loras::adapter;
use crate::management::Administrator;
use crate::stub_moderator::{Reply, StubModerator};
use crate::uploads::{flat_file, upload};

/// Codes that only other tests reach: the unit test of the panic layer, and the tests of `connections`.
const REACHED_ELSEWHERE: [&str; 2] = ["internal", "too_many_connections"];

struct Reached(BTreeSet<String>);

impl Reached {
    #[track_caller]
    fn note(&mut self, answer: &Answer, expected: &str) {
        assert_eq!(answer.code(), expected, "{}", answer.text());
        let code = ErrorCode::ALL.iter().find(|code| code.as_str() == expected).expect("in the table");
        assert_eq!(answer.status, code.status());
        assert_eq!(answer.json()["title"], code.title());
        self.0.insert(expected.to_owned());
    }

    /// An error as one line for a terminal.
    #[track_caller]
    fn note_line(&mut self, answer: &Answer, expected: &str) {
        assert_eq!(answer.terminal_code(), expected, "{}", answer.text());
        let code = ErrorCode::ALL.iter().find(|code| code.as_str() == expected).expect("in the table");
        assert_eq!(answer.status, code.status());
        self.0.insert(expected.to_owned());
    }
}

#[tokio::test]
async fn every_code_is_reached() {
    let mut reached = Reached(REACHED_ELSEWHERE.map(str::to_owned).into());
    simple_requests(&mut reached).await;
    an_administrator_at_work(&mut reached).await;
    a_key_at_its_limits(&mut reached).await;
    projects_and_budgets(&mut reached).await;
    a_worker_that_takes_one_large_body(&mut reached).await;
    jobs_in_several_states(&mut reached).await;
    a_job_that_many_watch(&mut reached).await;
    a_cluster_and_none(&mut reached).await;
    loras_of_all_kinds(&mut reached).await;
    uploads_that_are_not_there_and_too_many(&mut reached).await;
    a_moderated_worker(&mut reached).await;
    a_full_and_draining_worker(&mut reached).await;
    a_worker_whose_engine_does_not_come_back(&mut reached).await;
    a_worker_without_its_tables(&mut reached).await;
    let missing: Vec<&str> =
        ErrorCode::ALL.iter().map(|code| code.as_str()).filter(|code| !reached.0.contains(*code)).collect();
    assert!(missing.is_empty(), "no request reaches {missing:?}");
}

async fn simple_requests(reached: &mut Reached) {
    let app = TestApp::start().await;
    let key = app.keys.inference.clone();
    let post = |content_type: &str, body: Body| {
        let request = Request::post("/v1/inference/image").header("host", "worker.test").header("x-api-key", &key);
        request.header("content-type", content_type).body(body).expect("a request")
    };
    reached.note(&app.post(&json!({})).await, "invalid_request");
    reached.note(&app.send(post("application/json", Body::from("{"))).await, "malformed_json");
    reached.note(&app.send(post("text/plain", Body::from("{}"))).await, "unsupported_media_type");
    reached.note(&app.send(post("application/json", Body::from(" ".repeat(48_000_000)))).await, "body_too_large");
    let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    reached.note(&app.send(post("application/json", stalled)).await, "body_timeout");
    reached.note(&app.post_with(&image(1), &[("accept", "text/html")]).await, "not_acceptable");
    reached.note(&app.send(request("GET", "/v1/inference/jobs", None, None)).await, "unauthorized");
    let kubernetes = Some(app.keys.kubernetes.as_str());
    reached.note(&app.send(request("GET", "/v1/inference/jobs", kubernetes, None)).await, "scope_forbidden");
    reached.note(&app.get("/nothing").await, "not_found");
    let mut of_two = request("GET", "/v1/inference/jobs", None, None);
    of_two.headers_mut().append("host", "another.test".parse().expect("a value"));
    reached.note(&app.send(of_two).await, "invalid_host");
    let http = HttpSettings { hosts: Hosts::named(["images.test".to_owned()]), ..Options::default().http };
    let named = TestApp::with(Options { http, ..Options::default() }).await;
    reached.note(&named.get("/v1/inference/jobs").await, "misdirected_request");
    reached.note(&app.send(request("PATCH", "/healthz", None, None)).await, "method_not_allowed");
    let mut unknown = image(1);
    unknown["model"] = json!("nobody/nothing");
    reached.note(&app.post(&unknown).await, "model_not_found");
    unknown["model"] = json!("black-forest-labs/FLUX.1-dev");
    reached.note(&app.post(&unknown).await, "model_unavailable");
    for guess in 0..100_000 {
        // Well-formed but unknown keys: only these cost the worker something, so only these are counted.
        let presented = fluxserve::auth::PlainKey::generate().expect("random bytes");
        let answer = app.send(request("GET", "/v1/inference/jobs", Some(presented.reveal()), None)).await;
        if answer.status != 401 {
            assert_ne!(answer.header("retry-after"), "");
            reached.note(&answer, "too_many_failures");
            return;
        }
        assert!(guess < 1000, "guessing is never throttled");
    }
}

async fn an_administrator_at_work(reached: &mut Reached) {
    let app = TestApp::start().await;
    let sign_in = |password: &str| request("POST", "/v1/session", None, Some(&json!({ "password": password })));
    let mut foreign = sign_in(PASSWORD);
    foreign.headers_mut().insert("origin", "http://evil.test".parse().expect("a value"));
    reached.note(&app.send(foreign).await, "foreign_origin");
    reached.note(&app.send(request("GET", "/v1/api-keys", None, None)).await, "session_required");
    let cookie = app.sign_in().await;
    reached.note(&app.send(managing(&cookie, "GET", "/v1/api-keys/nobody", None)).await, "key_not_found");
    let revoked = app.send(managing(&cookie, "GET", "/v1/api-keys?state=revoked", None)).await.json();
    let id = revoked["data"][0]["id"].as_str().expect("an id").to_owned();
    let rotate = managing(&cookie, "POST", &format!("/v1/api-keys/{id}/rotate"), None);
    reached.note(&app.send(rotate).await, "key_ended");
    let active = app.send(managing(&cookie, "GET", "/v1/api-keys?state=active", None)).await.json();
    let active = active["data"][0]["id"].as_str().expect("an id").to_owned();
    let test = managing(&cookie, "POST", &format!("/v1/api-keys/{active}/webhook/test"), None);
    reached.note(&app.send(test).await, "webhook_not_set_up");
    let resend = managing(&cookie, "POST", &format!("/v1/api-keys/{active}/deliveries/x/resend"), None);
    reached.note(&app.send(resend).await, "delivery_not_found");
    let off = TestApp::with(Options { has_webhooks: false, ..Options::default() }).await;
    let resend = "/v1/inference/deliveries/msg_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f/resend";
    reached.note(&off.send(request("POST", resend, Some(&off.keys.inference), None)).await, "webhooks_off");
    reached.note(&app.send(sign_in("a wrong password")).await, "wrong_password");
    for _ in 0..20 {
        let answer = app.send(sign_in("a wrong password")).await;
        if answer.status != 401 {
            assert_ne!(answer.header("retry-after"), "");
            reached.note(&answer, "too_many_sign_ins");
            return;
        }
    }
    panic!("guessing is never throttled");
}

async fn a_key_at_its_limits(reached: &mut Reached) {
    let app = TestApp::start().await;
    let cookie = app.sign_in().await;
    let draw = async |limits: serde_json::Value| {
        let body = json!({ "name": "test", "scope": { "inference": true }, "limits": limits });
        let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&body))).await.json();
        let key = made["key"].as_str().expect("a value").to_owned();
        let draw = || request("POST", "/v1/inference/image", Some(&key), Some(&image(1)));
        app.send(draw()).await;
        app.send(draw()).await
    };
    app.control.hold();
    reached.note(&draw(json!({ "requests_per_minute": 1 })).await, "rate_limited");
    reached.note(&draw(json!({ "concurrent_jobs": 1 })).await, "concurrent_jobs_limit");
    let mut large = image(1);
    (large["width"], large["height"], large["steps"]) = (json!(256), json!(256), json!(40));
    let body = json!({ "name": "test", "scope": { "inference": true }, "limits": { "megapixel_steps_per_day": 2 } });
    let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&body))).await.json();
    let key = made["key"].as_str().expect("a value");
    let answer = app.send(request("POST", "/v1/inference/image", Some(key), Some(&large))).await;
    reached.note(&answer, "daily_limit");
    app.control.release();
}

async fn projects_and_budgets(reached: &mut Reached) {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let shop = json!({ "name": "shop" });
    let made = administrator.ask("POST", "/v1/projects", Some(shop.clone())).await.json();
    let id = made["id"].as_str().expect("an id");
    reached.note(&administrator.ask("POST", "/v1/projects", Some(shop)).await, "project_exists");
    reached.note(&administrator.ask("GET", "/v1/projects/none", None).await, "project_not_found");
    let limits = json!({ "budget": { "megapixel_steps": 1 } });
    let key = json!({ "name": "test", "scope": { "inference": true }, "limits": limits, "project": id });
    let key = administrator.ask("POST", "/v1/api-keys", Some(key)).await.json()["key"].clone();
    reached.note(&administrator.ask("DELETE", &format!("/v1/projects/{id}"), None).await, "project_in_use");
    let mut large = image(1);
    (large["width"], large["height"], large["steps"]) = (json!(256), json!(256), json!(40));
    let answer = app.send(request("POST", "/v1/inference/image", key.as_str(), Some(&large))).await;
    reached.note(&answer, "budget_exhausted");
}

async fn a_worker_that_takes_one_large_body(reached: &mut Reached) {
    let mut options = Options::default();
    options.http.body_bytes_max = 1024 * 1024;
    (options.http.bodies_bytes_max, options.http.body_deadline) = (100_000, Duration::from_secs(1));
    let app = TestApp::with(options).await;
    app.get("/v1/inference/jobs").await;
    let large = |body: Body| {
        let request =
            Request::post("/v1/inference/image").header("host", "worker.test").header("x-api-key", &app.keys.inference);
        let request = request.header("content-type", "application/json").header("content-length", 80_000);
        app.send(request.body(body).expect("a request"))
    };
    let stalled = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let (first, second) = tokio::join!(large(stalled()), large(stalled()));
    let (late, refused) = if first.status == 408 { (first, second) } else { (second, first) };
    reached.note(&late, "body_timeout");
    reached.note(&refused, "too_many_bodies");
}

async fn jobs_in_several_states(reached: &mut Reached) {
    let app = TestApp::start().await;
    let missing = "/v1/inference/jobs/job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f";
    reached.note(&app.get(missing).await, "job_not_found");
    app.control.on_next_admit(Fault::Error(EngineError::Request("no".into())));
    reached.note(&app.post_with(&image(1), &[("accept", "image/png")]).await, "job_failed");
    let id = app.submit(&image(2)).await;
    app.until_status(&id, "succeeded").await;
    let result = format!("/v1/inference/jobs/{id}/result");
    reached.note(&app.get(&format!("{result}?expires=1&signature=00")).await, "link_refused");
    std::fs::remove_file(app.folder.path().join("results").join(format!("{id}.png"))).expect("an image");
    reached.note(&app.get(&result).await, "picture_gone");

    app.post_with(&image(4), &[("idempotency-key", "a")]).await;
    reached.note(&app.post_with(&image(5), &[("idempotency-key", "a")]).await, "idempotency_conflict");
    assert_eq!(app.jobs.wait_until_idle(Duration::from_secs(20)).await, 0);

    app.control.hold();
    let third = image(3);
    let (answer, ()) = tokio::join!(app.post_with(&third, &[("accept", "image/png")]), async {
        app.control.held().await;
        let list = app.get("/v1/inference/jobs?limit=1").await.json();
        let id = list["data"][0]["job_id"].as_str().expect("an id").to_owned();
        reached.note(&app.get(&format!("/v1/inference/jobs/{id}/result")).await, "no_picture");
        let cookie = app.sign_in().await;
        let look = managing(&cookie, "GET", &format!("/v1/jobs/{id}/preview"), None);
        reached.note(&app.send(look).await, "no_preview");
        let path = format!("/v1/inference/jobs/{id}");
        tokio::join!(app.delete(&path), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            app.control.release();
        });
    });
    reached.note(&answer, "job_canceled");
}

async fn a_job_that_many_watch(reached: &mut Reached) {
    let app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    let path = format!("/v1/inference/jobs/{id}/events");
    let mut streams = Vec::new();
    for _ in 0..WATCHES_PER_OWNER_MAX {
        streams.push(EventStream::open(&app, &path, &[]).await);
    }
    let answer = app.get(&path).await;
    assert_ne!(answer.header("retry-after"), "");
    reached.note(&answer, "too_many_streams");
    app.control.release();
}

async fn a_cluster_and_none(reached: &mut Reached) {
    let app = TestApp::start().await;
    let cookie = app.sign_in().await;
    reached.note(&app.send(managing(&cookie, "GET", "/v1/kubernetes", None)).await, "kubernetes_not_configured");
    let site = Site::start().await;
    let namespaces = "/v1/kubernetes/namespaces";
    let id = site.namespace("team-a").await;
    let (_, key) = site.key(&json!({ "kubernetes_exec": { "namespace_ids": [id] } })).await;
    let again = json!({ "name": "team-a" });
    reached.note(&site.manage("POST", namespaces, Some(&again)).await, "namespace_exists");
    reached.note(&site.manage("DELETE", &format!("{namespaces}/{id}"), None).await, "namespace_in_use");
    reached.note(&site.manage("DELETE", &format!("{namespaces}/nothing"), None).await, "namespace_not_found");
    let pending = json!({ "name": "team-b" });
    let pending = site.manage("POST", namespaces, Some(&pending)).await.json()["id"].clone();
    let (_, everywhere) = site.key(&json!({ "all": true })).await;
    let info = json!({ "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1" });
    let ask =
        |key: &str, id: &str| request("POST", &format!("{namespaces}/{id}/exec-credential"), Some(key), Some(&info));
    let answer = site.app.send(ask(&everywhere, pending.as_str().expect("an id"))).await;
    reached.note_line(&answer, "namespace_pending");
    site.cluster.set_away(true);
    reached.note_line(&site.app.send(ask(&key, &id)).await, "kubernetes_unavailable");
}

async fn loras_of_all_kinds(reached: &mut Reached) {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let pen = administrator.add_lora("pen", &adapter("d1_xlabs")).await;
    reached.note(&administrator.upload(Some("x"), "x", &adapter("j7_nan")).await, "lora_rejected");
    reached.note(&administrator.upload(Some("pen"), "x", &adapter("b1_kohya")).await, "lora_exists");
    reached.note(&administrator.ask("GET", "/v1/loras/ink", None).await, "lora_not_found");
    let key = json!({ "name": "test", "scope": { "inference": true }, "limits": { "loras": ["ink"] } });
    let key = administrator.ask("POST", "/v1/api-keys", Some(key)).await.json()["key"].clone();
    let mut body = image(1);
    body["loras"] = json!([{ "id": "pen" }]);
    let forbidden = request("POST", "/v1/inference/image", key.as_str(), Some(&body));
    reached.note(&app.send(forbidden).await, "lora_forbidden");
    app.control.hold();
    app.submit(&body).await;
    reached.note(&administrator.ask("DELETE", &format!("/v1/loras/{pen}"), None).await, "lora_in_use");
    app.control.release();
}

async fn uploads_that_are_not_there_and_too_many(reached: &mut Reached) {
    let limits = UploadLimits { owner_uploads_max: 1, ..UploadLimits::default() };
    let app = TestApp::with(Options { uploads: limits, ..Options::default() }).await;
    let missing = format!("/v1/inference/uploads/{}", "a5".repeat(32));
    reached.note(&app.delete(&missing).await, "upload_not_found");
    upload(&app, &app.keys.inference, &flat_file(1)).await;
    let refused = upload(&app, &app.keys.inference, &flat_file(2)).await;
    assert_ne!(refused.header("retry-after"), "");
    reached.note(&refused, "too_many_uploads");
}

async fn a_moderated_worker(reached: &mut Reached) {
    let moderator = StubModerator::start().await;
    let app = TestApp::with(Options { moderation: Some(moderator.settings()), ..Options::default() }).await;
    moderator.on_prompts(Reply::Refuse("no foxes"));
    reached.note(&app.post(&image(1)).await, "content_refused");
    moderator.on_prompts(Reply::Say(500, String::new()));
    reached.note(&app.post(&image(1)).await, "moderation_unavailable");
}

async fn a_full_and_draining_worker(reached: &mut Reached) {
    let mut options = Options { jobs_max: 1, ..Options::default() };
    options.http.request_deadline = Duration::from_millis(500);
    let app = TestApp::with(options).await;
    app.control.hold();
    app.submit(&image(1)).await;
    reached.note(&app.post(&image(2)).await, "queue_full");
    app.control.release();
    assert_eq!(app.jobs.wait_until_idle(Duration::from_secs(20)).await, 0);
    app.control.hold();
    reached.note(&app.post_with(&image(3), &[("prefer", "wait=20")]).await, "deadline_exceeded");
    app.control.release();
    app.jobs.drain();
    reached.note(&app.post(&image(4)).await, "draining");
    reached.note(&app.get("/readyz").await, "not_ready");
}

async fn a_worker_whose_engine_does_not_come_back(reached: &mut Reached) {
    let app = TestApp::with(Options { stall_min: Duration::from_millis(50), ..Options::default() }).await;
    app.control.hold();
    app.submit(&image(1)).await;
    app.control.held().await;
    reached.note(&app.until_alive(503).await, "engine_stalled");
    app.control.release();
}

async fn a_worker_without_its_tables(reached: &mut Reached) {
    let app = TestApp::start().await;
    app.get("/v1/inference/jobs").await;
    sqlx::query("DROP TABLE jobs").execute(app.store.pool()).await.expect("a table");
    let answer = app.get("/v1/inference/jobs").await;
    reached.note(&answer, "storage_unavailable");
    assert!(!answer.text().contains("table"), "the cause is for the log only: {}", answer.text());
    app.store.close().await;
    reached.note(&app.get("/v1/inference/jobs").await, "auth_unavailable");
}
