//! Alerts of budgets by webhook: to the operator's receiver and to those of keys, each once, signed, and in order.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use fluxserve::app::tell_of_alerts;
use fluxserve::domain::webhook::{AllowedHosts, WebhookEvent};
use fluxserve::hooks::{Alert, AlertReceiver, BadReceiver, BadUrl, WebhookSettings};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::app::{Answer, Options, TestApp, image, request};
use crate::management::Administrator;
use crate::webhooks::receiver::{Act, Receiver};

const PATIENCE: Duration = Duration::from_secs(20);
/// What both shares of a budget are told as.
const BOTH: [&str; 2] = ["budget.warning", "budget.exhausted"];

/// The operator's secret: 24 bytes.
fn operators_secret() -> String {
    format!("whsec_{}", "QUJD".repeat(8))
}

/// A worker whose operator has a receiver.
fn telling(receiver: &Receiver) -> Options {
    let alerts = AlertReceiver::new(receiver.url(), &operators_secret()).expect("a secret");
    Options { alerts: Some(alerts), ..Options::default() }
}

/// Compares budgets, and hands alerts to webhooks, as the worker does, until it is stopped.
struct Keepers([JoinHandle<()>; 2]);

impl Keepers {
    fn of(app: &TestApp) -> Self {
        let usage = app.usage.clone();
        let watch = tokio::spawn(async move { usage.watch_budgets().await });
        Self([watch, tokio::spawn(tell_of_alerts(app.store.clone(), app.usage.clone(), app.webhooks.clone()))])
    }

    fn stop(self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Asks for an image of 2.88 megapixel-steps, and waits until it is charged.
async fn generate(app: &TestApp, key: &str) -> Answer {
    let mut body = image(1);
    (body["width"], body["height"], body["steps"]) = (json!(256), json!(256), json!(40));
    let answer = app.send(request("POST", "/v1/inference/image", Some(key), Some(&body))).await;
    assert_eq!(app.jobs.wait_until_idle(PATIENCE).await, 0);
    answer
}

/// Limits with a budget of which an image uses most, and a second one is refused.
fn small_budget() -> Value {
    json!({ "budget": { "megapixel_steps": 3 } })
}

fn with_own_budget(name: &str) -> Value {
    json!({ "name": name, "scope": { "inference": true }, "limits": small_budget() })
}

/// Gives a key a webhook, and returns its secret. Without events it has the usual ones.
async fn give_webhook(administrator: &Administrator<'_>, key: &str, url: &str, events: Option<&[&str]>) -> String {
    let made = administrator.ask("POST", &format!("{key}/webhook/secret"), None).await;
    let mut body = json!({ "url": url });
    if let Some(events) = events {
        body["events"] = json!(events);
    }
    let edited = administrator.ask("PATCH", &format!("{key}/webhook"), Some(body)).await;
    assert_eq!(edited.status, StatusCode::OK, "{}", edited.text());
    made.json()["secret"].as_str().expect("a secret").to_owned()
}

/// An alert of a project that some other module has raised.
fn alert(app: &TestApp, number: i64, event: WebhookEvent) -> Alert {
    let data = json!({ "holder": "project", "name": "shop" });
    Alert { number, key: None, event, subject: "project/shop/2026-11".into(), at: app.clock_now(), data }
}

/// Waits until the newest delivery to the operator's receiver is as `is_so` says, and returns the list.
async fn until_newest(administrator: &Administrator<'_>, is_so: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let list = administrator.get("/v1/webhooks/deliveries").await;
        if is_so(&list["data"][0]) {
            return list;
        }
        assert!(started.elapsed() < PATIENCE, "{list}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets a minute pass, and lets the courier see it soon: it looks when something was written.
async fn a_minute_later(app: &TestApp) {
    app.clock.advance(time::Duration::minutes(1));
    app.store.check_writable().await.expect("writable");
}

#[tokio::test]
async fn both_shares_of_a_projects_budget_are_told_the_operator_once_and_its_keys_never() {
    let (receiver, of_key) = (Receiver::start().await, Receiver::start().await);
    let app = TestApp::with(telling(&receiver)).await;
    let keepers = Keepers::of(&app);
    let administrator = Administrator::of(&app).await;
    let project = json!({ "name": "shop", "limits": small_budget() });
    let project = administrator.ask("POST", "/v1/projects", Some(project)).await.json()["id"].clone();
    let member = json!({ "name": "member", "scope": { "inference": true }, "project": project });
    let (path, key) = administrator.create(member).await;
    give_webhook(&administrator, &path, &of_key.url(), Some(&BOTH)).await;
    assert_eq!(generate(&app, &key).await.status, StatusCode::ACCEPTED);
    receiver.until(1).await;
    assert_eq!(generate(&app, &key).await.code(), "budget_exhausted");
    let told = receiver.until(2).await;
    assert_eq!(receiver.kinds(), BOTH);
    let raised = app.usage.alerts_after(0, 100).await.expect("read");
    for ((message, alert), percent) in told.iter().zip(&raised).zip([80, 100]) {
        let said = message.json();
        assert_eq!(said["data"], alert.detail);
        let data = &said["data"];
        assert_eq!((&data["holder"], &data["id"], &data["name"]), (&json!("project"), &project, &json!("shop")));
        assert_eq!((&data["percent"], &data["budget"]), (&json!(percent), &json!({ "megapixel_steps": 3 })));
        assert!(data["used"]["megapixel_steps"].is_number() && data["month"].is_string(), "{data}");
        assert_eq!(message.signatures_by(&operators_secret()), 1, "{}", message.head);
        assert!(message.head.starts_with("POST /hook?token=very-private HTTP/1.1\r\n"), "{}", message.head);
    }
    // Else it is told again after the restart: the receiver has a message before its delivery is noted.
    until_newest(&administrator, |newest| newest["state"] == "delivered").await;
    drop(administrator);
    keepers.stop();
    app.stop_cleanly().await;

    // Alerts are handed over in their order: what is told next shows that nothing was told again before it.
    let app = app.restart(telling(&receiver)).await;
    let keepers = Keepers::of(&app);
    let administrator = Administrator::of(&app).await;
    assert_eq!(generate(&app, &key).await.code(), "budget_exhausted");
    let (_, other) = administrator.create(with_own_budget("other")).await;
    assert_eq!(generate(&app, &other).await.status, StatusCode::ACCEPTED);
    let next = receiver.until(3).await.remove(2);
    assert_eq!((next.kind().as_str(), &next.json()["data"]["name"]), (BOTH[0], &json!("other")));
    assert!(of_key.got().is_empty(), "a project's budget is no business of its keys");
    keepers.stop();
}

#[tokio::test]
async fn what_a_crash_has_left_is_told_at_the_next_start() {
    let receiver = Receiver::start().await;
    let app = TestApp::with(telling(&receiver)).await;
    let administrator = Administrator::of(&app).await;
    let (_, key) = administrator.create(with_own_budget("own")).await;
    drop(administrator);
    // It is charged, and nobody compares or tells.
    assert_eq!(generate(&app, &key).await.status, StatusCode::ACCEPTED);
    app.crash().await;
    let app = app.restart(telling(&receiver)).await;
    let keepers = Keepers::of(&app);
    receiver.until(1).await;
    assert_eq!(generate(&app, &key).await.code(), "budget_exhausted");
    receiver.until(2).await;
    assert_eq!(receiver.kinds(), BOTH);
    keepers.stop();
}

#[tokio::test]
async fn an_alert_is_written_once_and_only_with_its_number() {
    let receiver = Receiver::start().await;
    let app = TestApp::with(telling(&receiver)).await;
    let warning = alert(&app, 7, WebhookEvent::BudgetWarning);
    let refuse =
        "CREATE TRIGGER refuse BEFORE INSERT ON webhook_deliveries BEGIN SELECT RAISE(ABORT, 'told to fail'); END";
    sqlx::query(refuse).execute(app.store.pool()).await.expect("a trigger");
    app.webhooks.add_alert(&warning).await.expect_err("told to fail");
    assert_eq!(app.webhooks.last_alert().await.expect("read"), 0, "neither exists without the other");
    sqlx::query("DROP TRIGGER refuse").execute(app.store.pool()).await.expect("no trigger");
    for _ in 0..2 {
        app.webhooks.add_alert(&warning).await.expect("written");
        assert_eq!(app.webhooks.last_alert().await.expect("read"), 7);
    }
    let list = Administrator::of(&app).await.get("/v1/webhooks/deliveries").await;
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list["data"][0]["subject"], "project/shop/2026-11");
}

#[tokio::test]
async fn a_keys_own_receiver_is_told_of_its_budget_if_it_wants_to_be() {
    let (usual, keen) = (Receiver::start().await, Receiver::start().await);
    // The operator has no receiver.
    let app = TestApp::start().await;
    let keepers = Keepers::of(&app);
    let administrator = Administrator::of(&app).await;
    let (usual_path, usual_key) = administrator.create(with_own_budget("usual")).await;
    give_webhook(&administrator, &usual_path, &usual.url(), None).await;
    let (path, keen_key) = administrator.create(with_own_budget("keen")).await;
    let secret = give_webhook(&administrator, &path, &keen.url(), Some(&BOTH[..1])).await;
    for key in [&usual_key, &keen_key] {
        assert_eq!(generate(&app, key).await.status, StatusCode::ACCEPTED);
        assert_eq!(generate(&app, key).await.code(), "budget_exhausted");
    }
    let told = keen.until(1).await.remove(0);
    assert_eq!((told.kind().as_str(), told.signatures_by(&secret)), (BOTH[0], 1));
    assert_eq!((&told.json()["data"]["holder"], &told.json()["data"]["name"]), (&json!("key"), &json!("keen")));
    usual.until(1).await;
    let started = Instant::now();
    while app.webhooks.last_alert().await.expect("read") < 4 {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // All four were taken: what is not in the log now is told to nobody.
    for (path, event) in [(&usual_path, "job.succeeded"), (&path, BOTH[0])] {
        let log = administrator.get(&format!("{path}/deliveries")).await;
        assert_eq!(log["data"].as_array().map(Vec::len), Some(1), "{log}");
        assert_eq!((&log["data"][0]["event"], log["data"][0]["job_id"].is_null()), (&json!(event), event == BOTH[0]));
    }
    let list = administrator.get("/v1/webhooks/deliveries").await;
    assert_eq!(list, json!({ "receiver": null, "data": [], "next_cursor": null }));
    // A request speaks for its job alone.
    let mut body = image(1);
    (body["webhook_url"], body["webhook_events"]) = (json!(keen.url()), json!(BOTH));
    let refused = app.send(request("POST", "/v1/inference/image", Some(&keen_key), Some(&body))).await;
    assert_eq!(refused.fields(), ["webhook_events"], "{}", refused.text());
    keepers.stop();
}

#[tokio::test]
async fn a_receiver_that_is_down_gets_its_alerts_later_and_in_order() {
    let receiver = Receiver::start().await;
    let app = TestApp::with(telling(&receiver)).await;
    let administrator = Administrator::of(&app).await;
    receiver.plan([Act::Close, Act::Answer(500)]);
    app.webhooks.add_alert(&alert(&app, 1, WebhookEvent::BudgetWarning)).await.expect("written");
    let list = until_newest(&administrator, |newest| newest["attempts"] == 1).await;
    assert_eq!((&list["receiver"], &list["data"][0]["state"]), (&json!("127.0.0.1"), &json!("pending")));
    assert!(!list.to_string().contains("very-private") && !list.to_string().contains("whsec_"), "{list}");
    app.webhooks.add_alert(&alert(&app, 2, WebhookEvent::BudgetExhausted)).await.expect("written");
    a_minute_later(&app).await;
    receiver.until(2).await;
    assert_eq!(receiver.kinds(), [BOTH[0]; 2], "the second one waits for the first");
    let started = Instant::now();
    while administrator.get("/v1/webhooks/deliveries").await["data"][1]["attempts"] != 2 {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    a_minute_later(&app).await;
    receiver.until(4).await;
    assert_eq!(receiver.kinds(), [BOTH[0], BOTH[0], BOTH[0], BOTH[1]]);
    let delivered = until_newest(&administrator, |newest| newest["state"] == "delivered").await;
    assert_eq!((&delivered["data"][1]["attempts"], &delivered["data"][1]["last_status"]), (&json!(3), &json!(200)));
}

#[tokio::test]
async fn a_test_is_sent_and_a_delivery_resent() {
    let receiver = Receiver::start().await;
    let app = TestApp::with(telling(&receiver)).await;
    let administrator = Administrator::of(&app).await;
    let test = administrator.ask("POST", "/v1/webhooks/test", None).await;
    assert_eq!(test.status, StatusCode::ACCEPTED, "{}", test.text());
    let message = receiver.until(1).await.remove(0);
    assert_eq!((message.kind().as_str(), &message.json()["data"]), ("webhook.test", &json!({ "key_id": null })));
    assert_eq!(message.signatures_by(&operators_secret()), 1);
    let list = until_newest(&administrator, |newest| newest["state"] == "delivered").await;
    let id = list["data"][0]["delivery_id"].as_str().expect("an id");
    assert_eq!(message.header("webhook-id"), id);
    let resent = administrator.ask("POST", &format!("/v1/webhooks/deliveries/{id}/resend"), None).await;
    assert_eq!(resent.status, StatusCode::ACCEPTED, "{}", resent.text());
    assert_eq!(receiver.until(2).await[1].header("webhook-id"), id);
    until_newest(&administrator, |newest| newest["state"] == "delivered").await;
    let failed = administrator.get("/v1/webhooks/deliveries?state=failed").await;
    assert_eq!((&failed["data"], &failed["receiver"]), (&json!([]), &json!("127.0.0.1")));
    let unknown = "/v1/webhooks/deliveries/msg_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f/resend";
    assert_eq!(administrator.ask("POST", unknown, None).await.code(), "delivery_not_found");
}

#[tokio::test]
async fn pending_alerts_go_where_the_configuration_says_now() {
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    let app = TestApp::with(telling(&first)).await;
    let administrator = Administrator::of(&app).await;
    first.plan([Act::Close]);
    app.webhooks.add_alert(&alert(&app, 1, WebhookEvent::BudgetWarning)).await.expect("written");
    until_newest(&administrator, |newest| newest["attempts"] == 1).await;
    drop(administrator);
    app.stop_cleanly().await;
    let app = app.restart(telling(&second)).await;
    second.plan([Act::Close]);
    a_minute_later(&app).await;
    second.until(1).await;
    let administrator = Administrator::of(&app).await;
    until_newest(&administrator, |newest| newest["attempts"] == 2).await;
    drop(administrator);
    app.stop_cleanly().await;

    let app = app.restart(Options::default()).await;
    a_minute_later(&app).await;
    let administrator = Administrator::of(&app).await;
    let list = until_newest(&administrator, |newest| newest["state"] == "failed").await;
    let error = list["data"][0]["last_error"].as_str().expect("a reason");
    assert!(error.contains("`webhooks.alerts_url`") && list["receiver"].is_null(), "{list}");
    let id = list["data"][0]["delivery_id"].as_str().expect("an id");
    for path in ["test".to_owned(), format!("deliveries/{id}/resend")] {
        let refused = administrator.ask("POST", &format!("/v1/webhooks/{path}"), None).await;
        assert_eq!(refused.code(), "webhook_not_set_up", "{path}");
        assert!(refused.text().contains("webhooks.alerts_secret"), "{}", refused.text());
    }
    assert_eq!((first.got().len(), second.got().len()), (1, 1));
}

#[tokio::test]
async fn while_webhooks_are_off_alerts_are_told_to_nobody_also_not_later() {
    let receiver = Receiver::start().await;
    let app = TestApp::with(Options { has_webhooks: false, ..telling(&receiver) }).await;
    app.webhooks.add_alert(&alert(&app, 3, WebhookEvent::BudgetWarning)).await.expect("taken");
    assert_eq!(app.webhooks.last_alert().await.expect("read"), 3);
    let administrator = Administrator::of(&app).await;
    assert_eq!(administrator.get("/v1/webhooks/deliveries").await["data"], json!([]));
    assert_eq!(administrator.ask("POST", "/v1/webhooks/test", None).await.code(), "webhooks_off");
}

#[test]
fn the_operators_receiver_is_bound_by_the_rules_for_all() {
    let check = |url: &str, allowed: &[&str]| {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let settings = WebhookSettings {
            is_enabled: true,
            allows_http: false,
            allowed_hosts: AllowedHosts::of(&allowed).expect("a list"),
            only_allowed_hosts: false,
            secret_path: PathBuf::new(),
            origin: String::new(),
            alerts: Some(AlertReceiver::new(url.to_owned(), &operators_secret()).expect("a secret")),
        };
        settings.check()
    };
    for (url, bad) in [
        ("https://10.0.0.1/alerts", BadUrl::Forbidden),
        ("https://localhost/alerts", BadUrl::Forbidden),
        ("http://hooks.example.org/alerts", BadUrl::Scheme),
        ("hooks.example.org", BadUrl::Malformed),
    ] {
        let refused = check(url, &[]).expect_err("refused");
        assert_eq!(refused, BadReceiver::Url(bad), "{url}");
        assert!(refused.to_string().starts_with("`webhooks.alerts_url` "), "{refused}");
    }
    assert_eq!(check("https://hooks.example.org/alerts", &[]), Ok(()));
    assert_eq!(check("https://10.0.0.1/alerts", &["10.0.0.0/8"]), Ok(()));
}
