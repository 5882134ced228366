//! Webhooks: signed, at least once, in order for each job, and to nowhere else than where they may go.

pub(crate) mod receiver;
mod rules;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use fluxserve::domain::engine::EngineError;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::app::{Answer, Options, TestApp, image, request};
use crate::fake_engine::Fault;
use crate::management::Administrator;
use receiver::{Act, Receiver};

/// Longest wait of a test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A key with a webhook secret.
struct Holder<'a> {
    app: &'a TestApp,
    administrator: Administrator<'a>,
    /// The key's path.
    path: String,
    key: String,
    secret: String,
}

impl<'a> Holder<'a> {
    /// A key whose jobs' events go to `url` by default.
    async fn of(app: &'a TestApp, url: Option<&str>) -> Self {
        let administrator = Administrator::of(app).await;
        let (path, key) = administrator.create(json!({ "name": "hooked", "scope": { "inference": true } })).await;
        let holder = Self { app, administrator, path, key, secret: String::new() };
        let secret = holder.make_secret(None).await;
        let holder = Self { secret, ..holder };
        if let Some(url) = url {
            let edited = holder.ask("PATCH", "webhook", Some(json!({ "url": url }))).await;
            assert_eq!(edited.status, StatusCode::OK, "{}", edited.text());
        }
        holder
    }

    /// A request of the administrator below the key's path.
    async fn ask(&self, method: &str, below: &str, body: Option<Value>) -> Answer {
        self.administrator.ask(method, &format!("{}/{below}", self.path), body).await
    }

    async fn make_secret(&self, body: Option<Value>) -> String {
        let made = self.ask("POST", "webhook/secret", body).await;
        assert_eq!(made.status, StatusCode::OK, "{}", made.text());
        made.json()["secret"].as_str().expect("a secret").to_owned()
    }

    /// A request of the key's holder.
    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.app.send(request(method, path, Some(&self.key), body)).await
    }

    /// Submits an image and returns its job's id.
    async fn submit(&self, body: &Value) -> String {
        let answer = self.call("POST", "/v1/inference/image", Some(body)).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        answer.json()["job_id"].as_str().expect("an id").to_owned()
    }

    async fn job(&self, id: &str) -> Value {
        self.call("GET", &format!("/v1/inference/jobs/{id}"), None).await.json()
    }

    /// The log, the newest first.
    async fn log(&self) -> Vec<Value> {
        let list = self.call("GET", "/v1/inference/deliveries", None).await.json();
        list["data"].as_array().expect("a list").clone()
    }

    /// Waits until the newest delivery is as `is_so` says.
    async fn until_newest(&self, is_so: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let newest = self.log().await.first().cloned().unwrap_or_default();
            if is_so(&newest) {
                return newest;
            }
            assert!(started.elapsed() < PATIENCE, "{newest}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn with_webhook(seed: u64, url: &str, events: Option<&[&str]>) -> Value {
    let mut body = image(seed);
    body["webhook_url"] = json!(url);
    if let Some(events) = events {
        body["webhook_events"] = json!(events);
    }
    body
}

/// Lets time pass, and lets the courier see it soon: it looks when something was written.
async fn advance(app: &TestApp, seconds: i64) {
    app.clock.advance(time::Duration::seconds(seconds));
    app.store.check_writable().await.expect("writable");
}

#[tokio::test]
async fn an_end_is_told_signed_and_as_the_job_itself_looks() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    let id = holder.submit(&image(1)).await;
    let message = receiver.until(1).await.remove(0);
    let told = message.json();
    assert_eq!((&told["type"], &told["data"]), (&json!("job.succeeded"), &holder.job(&id).await));
    assert_eq!(told["timestamp"], told["data"]["finished_at"]);
    assert!(message.head.starts_with("POST /hook?token=very-private HTTP/1.1\r\n"), "{}", message.head);
    assert_eq!(message.header("content-type"), "application/json");
    assert_eq!(message.header("webhook-timestamp"), app.clock_now().unix_timestamp().to_string());
    assert_eq!(message.signatures_by(&holder.secret), 1, "{}", message.head);
    let link = told["data"]["result_url"].as_str().expect("a URL").trim_start_matches("http://worker.test");
    assert_eq!(app.send(request("GET", link, None, None)).await.status, StatusCode::OK);
    let delivered = holder.until_newest(|delivery| delivery["state"] == "delivered").await;
    assert_eq!((&delivered["delivery_id"], &delivered["job_id"]), (&json!(message.header("webhook-id")), &json!(id)));
    assert_eq!((&delivered["attempts"], &delivered["last_status"]), (&json!(1), &json!(200)));
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test]
async fn jobs_of_openais_route_have_the_keys_webhook_too() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    let body = json!({ "model": crate::app::MODEL, "prompt": "a fox", "steps": 2 });
    assert_eq!(holder.call("POST", "/v1/images/generations", Some(&body)).await.status, StatusCode::OK);
    let told = receiver.until(1).await.remove(0).json();
    let url = told["data"]["result_url"].as_str().expect("a URL");
    assert!(url.starts_with("http://worker.test/v1/inference/jobs/job_"), "{url}");
}

#[tokio::test]
async fn a_request_names_its_own_receiver_and_events() {
    let (usual, own) = (Receiver::start().await, Receiver::start().await);
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&usual.url())).await;
    holder.submit(&with_webhook(1, &own.url(), Some(&["job.started", "job.succeeded"]))).await;
    let told = own.until(2).await;
    assert_eq!(own.kinds(), ["job.started", "job.succeeded"]);
    let started = told[0].json();
    assert_eq!((&started["data"]["status"], &started["data"]["finished_at"]), (&json!("running"), &Value::Null));
    app.control.on_next_admit(Fault::Error(EngineError::Request("told to".into())));
    holder.submit(&with_webhook(2, &own.url(), None)).await;
    let failed = own.until(3).await[2].json();
    assert_eq!((&failed["type"], &failed["data"]["status"]), (&json!("job.failed"), &json!("failed")));
    assert!(failed["data"]["error"]["code"].is_string(), "{failed}");
    let mut quiet = image(3);
    quiet["webhook_events"] = json!([]);
    let quiet = holder.submit(&quiet).await;
    let mut failures_only = image(4);
    failures_only["webhook_events"] = json!(["job.failed"]);
    let uneventful = holder.submit(&failures_only).await;
    assert_eq!(app.jobs.wait_until_idle(PATIENCE).await, 0);
    app.control.hold();
    let canceled = holder.submit(&image(5)).await;
    app.control.held().await;
    let path = format!("/v1/inference/jobs/{canceled}");
    let (answer, ()) = tokio::join!(holder.call("DELETE", &path, None), async {
        // The request arrives before the step is over.
        tokio::time::sleep(Duration::from_millis(100)).await;
        app.control.release();
    });
    assert_eq!(answer.status, StatusCode::OK);
    let told = usual.until(1).await[0].json();
    assert_eq!((&told["type"], &told["data"]["job_id"]), (&json!("job.canceled"), &json!(canceled)));
    for id in [&quiet, &uneventful] {
        assert_eq!(holder.job(id).await["status"], "succeeded");
    }
    assert_eq!((usual.got().len(), own.got().len(), holder.log().await.len()), (1, 3, 4));
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_with_the_same_id_until_it_succeeds() {
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    let errors = [
        (Act::Answer(500), "the receiver answers 500"),
        (Act::BreakOff, "the answer broke off"),
        (Act::Redirect(elsewhere.url()), "redirects are not followed"),
        (Act::Close, "the connection broke off"),
        (Act::Answer(404), "the receiver answers 404"),
    ];
    receiver.plan(errors.iter().map(|(act, _)| act.clone()));
    holder.submit(&image(1)).await;
    for (at, (_, error)) in errors.iter().enumerate() {
        let tried = holder.until_newest(|delivery| delivery["attempts"] == at + 1).await;
        assert_eq!((&tried["state"], &tried["last_error"]), (&json!("pending"), &json!(error)));
        assert_eq!(receiver.got().len(), at + 1, "not before it is due");
        advance(&app, 6 * 60 * 60).await;
    }
    let delivered = holder.until_newest(|delivery| delivery["state"] == "delivered").await;
    assert_eq!((&delivered["attempts"], &delivered["last_error"]), (&json!(6), &Value::Null));
    let got = receiver.got();
    assert_eq!(got.len(), 6);
    assert!(elsewhere.got().is_empty(), "the redirect is not followed");
    for message in &got {
        assert_eq!((message.header("webhook-id"), message.kind()), (got[0].header("webhook-id"), got[0].kind()));
        assert_eq!(message.signatures_by(&holder.secret), 1, "each time of its own");
    }
    assert_ne!(got[0].header("webhook-timestamp"), got[5].header("webhook-timestamp"));
}

#[tokio::test]
async fn what_fails_for_a_day_is_given_up_and_can_be_sent_again() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    receiver.plan(std::iter::repeat_n(Act::Answer(503), 12));
    holder.submit(&image(1)).await;
    for attempts in 1..12 {
        holder.until_newest(|delivery| delivery["attempts"] == attempts).await;
        advance(&app, 7 * 60 * 60).await;
    }
    let failed = holder.until_newest(|delivery| delivery["state"] == "failed").await;
    assert_eq!((&failed["attempts"], &failed["next_attempt_at"]), (&json!(12), &Value::Null));
    // The session of before has ended.
    let administrator = Administrator::of(&app).await;
    let listed = administrator.get(&format!("{}/deliveries?state=failed", holder.path)).await;
    assert_eq!(listed["data"], json!([failed]));
    let id = failed["delivery_id"].as_str().expect("an id");
    let other = app.send(request("GET", "/v1/inference/deliveries", Some(&app.keys.inference), None)).await.json();
    assert_eq!(other["data"], json!([]));
    let resend = format!("/v1/inference/deliveries/{id}/resend");
    let refused = app.send(request("POST", &resend, Some(&app.keys.inference), None)).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::NOT_FOUND, "delivery_not_found"));
    assert_eq!(receiver.got().len(), 12);
    let resent = holder.call("POST", &resend, None).await;
    assert_eq!((resent.status, &resent.json()["state"]), (StatusCode::ACCEPTED, &json!("pending")));
    let last = receiver.until(13).await.remove(12);
    assert_eq!((last.header("webhook-id"), last.kind().as_str()), (id, "job.succeeded"));
    holder.until_newest(|delivery| delivery["state"] == "delivered").await;
    let again = administrator.ask("POST", &format!("{}/deliveries/{id}/resend", holder.path), None).await;
    assert_eq!(again.status, StatusCode::ACCEPTED, "{}", again.text());
    receiver.until(14).await;
}

#[tokio::test]
async fn a_job_that_was_deleted_is_still_told_of_by_its_id() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    receiver.plan([Act::Close]);
    let id = holder.submit(&image(1)).await;
    holder.until_newest(|delivery| delivery["attempts"] == 1).await;
    sqlx::query("DELETE FROM jobs WHERE id = ?").bind(&id).execute(app.store.pool()).await.expect("deleted");
    advance(&app, 60).await;
    let told = receiver.until(2).await[1].json();
    assert_eq!(told["data"], json!({ "job_id": id, "job_type": "image", "status": "succeeded" }));
}

#[tokio::test]
async fn events_of_one_job_arrive_in_their_order_and_a_slow_receiver_holds_up_no_other() {
    let (slow, quick) = (Receiver::start().await, Receiver::start().await);
    let lookup = |_: String| -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    };
    let app = TestApp::with(Options { lookup: Some(Arc::new(lookup)), ..Options::default() }).await;
    let holder = Holder::of(&app, None).await;
    slow.plan(std::iter::repeat_n(Act::Hold, 4));
    let events: &[&str] = &["job.started", "job.succeeded"];
    for seed in 0..6 {
        let id = holder.submit(&with_webhook(seed, &slow.url(), Some(events))).await;
        let started = Instant::now();
        while holder.job(&id).await["status"] != "succeeded" {
            assert!(started.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    slow.until(4).await;
    holder.submit(&with_webhook(7, &quick.url_at("quick.test"), None)).await;
    quick.until(1).await;
    assert_eq!(slow.kinds(), ["job.started"; 4], "no end before its start, and no more than four at a time");
    slow.release();
    let told = slow.until(12).await;
    for message in &told {
        let job = message.json()["data"]["job_id"].clone();
        let of_job = told.iter().filter(|other| other.json()["data"]["job_id"] == job);
        assert_eq!(of_job.map(receiver::Message::kind).collect::<Vec<_>>(), events);
    }
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    receiver.plan([Act::Answer(410)]);
    holder.submit(&image(1)).await;
    let failed = holder.until_newest(|delivery| delivery["state"] == "failed").await;
    assert_eq!((&failed["attempts"], &failed["last_status"]), (&json!(1), &json!(410)));
    assert!(holder.ask("GET", "webhook", None).await.json()["gone_at"].is_string());
    let second = holder.submit(&image(2)).await;
    app.jobs.wait_until_idle(PATIENCE).await;
    assert_eq!((&holder.job(&second).await["status"], holder.log().await.len()), (&json!("succeeded"), 1));
    let again = holder.ask("PATCH", "webhook", Some(json!({ "url": receiver.url() }))).await.json();
    assert_eq!(again["gone_at"], Value::Null);
    holder.submit(&image(3)).await;
    assert_eq!(receiver.until(2).await.len(), 2);
}

#[tokio::test]
async fn two_secrets_sign_while_one_replaces_the_other() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    let second = holder.make_secret(Some(json!({ "grace_seconds": 3600 }))).await;
    assert_ne!(second, holder.secret);
    let view = holder.ask("GET", "webhook", None).await;
    assert!(view.json()["previous_secret_until"].is_string() && !view.text().contains("whsec_"), "{}", view.text());
    holder.submit(&image(1)).await;
    let both = receiver.until(1).await.remove(0);
    assert_eq!((both.signatures_by(&holder.secret), both.signatures_by(&second)), (1, 1));
    app.clock.advance(time::Duration::minutes(70));
    assert_eq!(holder.ask("GET", "webhook", None).await.json()["previous_secret_until"], Value::Null);
    holder.submit(&image(2)).await;
    let one = receiver.until(2).await.remove(1);
    assert_eq!((one.signatures_by(&holder.secret), one.signatures_by(&second)), (0, 1));
    let third = holder.make_secret(Some(json!({ "grace_seconds": 0 }))).await;
    holder.submit(&image(3)).await;
    let at_once = receiver.until(3).await.remove(2);
    assert_eq!((at_once.signatures_by(&second), at_once.signatures_by(&third)), (0, 1));
    let long = holder.ask("POST", "webhook/secret", Some(json!({ "grace_seconds": 1_000_000 }))).await;
    assert_eq!(long.fields(), ["grace_seconds"]);
    let log = holder.administrator.get("/v1/audit?limit=10").await.to_string();
    assert!(log.contains("webhook_secret_made") && log.contains("webhook_edited"), "{log}");
    assert!(!log.contains("whsec_") && !log.contains("very-private"), "no secret and no path of a URL: {log}");
}

#[tokio::test]
async fn a_crash_loses_no_event_and_a_start_delivers_what_is_pending() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    receiver.plan([Act::Close]);
    let done = holder.submit(&image(1)).await;
    holder.until_newest(|delivery| delivery["attempts"] == 1).await;
    app.control.hold();
    let running = holder.submit(&image(2)).await;
    app.control.held().await;
    let secret = holder.secret.clone();
    app.crash().await;
    let app = app.restart(Options::default()).await;
    advance(&app, 60).await;
    let told = receiver.until(3).await;
    let mut ids: Vec<String> =
        told[1..].iter().map(|message| message.json()["data"]["job_id"].as_str().expect("an id").to_owned()).collect();
    ids.sort();
    assert_eq!(ids, [done, running]);
    assert!(told.iter().all(|message| message.signatures_by(&secret) == 1), "the secret survives as well");
}

#[tokio::test]
async fn a_delivery_is_written_if_and_only_if_the_end_of_its_job_is() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    let trigger = "CREATE TRIGGER refuse BEFORE INSERT ON webhook_deliveries BEGIN SELECT RAISE(ABORT, 'told to'); END";
    sqlx::query(trigger).execute(app.store.pool()).await.expect("a trigger");
    let id = holder.submit(&image(1)).await;
    app.control.until_called(crate::fake_engine::Call::Finish(1)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((&holder.job(&id).await["status"], holder.log().await.len()), (&json!("running"), 0));
    sqlx::query("DROP TRIGGER refuse").execute(app.store.pool()).await.expect("dropped");
    receiver.until(1).await;
    assert_eq!((&holder.job(&id).await["status"], holder.log().await.len()), (&json!("succeeded"), 1));
    let left = sqlx::query_scalar("SELECT count(*) FROM job_webhooks").fetch_one(app.store.pool());
    let left: i64 = left.await.expect("a count");
    assert_eq!(left, 0);
}
