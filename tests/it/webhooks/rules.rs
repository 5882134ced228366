//! Where webhooks may go, what is refused, tests of receivers, and the log.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::receiver::{Act, Receiver};
use super::{Holder, PATIENCE, advance, with_webhook};
use crate::app::{Options, TestApp, image};
use crate::management::Administrator;

#[tokio::test]
async fn a_name_leads_only_to_addresses_that_are_allowed_at_that_moment() {
    let receiver = Receiver::start().await;
    // It means this machine at first, which the test allows, and the inside from then on.
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let lookup = move |_: String| -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        let inside = ["127.0.0.2", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"];
        let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
        let answer: Vec<&str> = if first { vec!["10.0.0.1", "127.0.0.1"] } else { inside.to_vec() };
        let answer = answer.iter().map(|address| address.parse().expect("an address")).collect();
        Box::pin(async move { Ok(answer) })
    };
    let app = TestApp::with(Options { lookup: Some(Arc::new(lookup)), ..Options::default() }).await;
    let holder = Holder::of(&app, Some(&receiver.url_at("rebinding.test"))).await;
    holder.submit(&image(1)).await;
    receiver.until(1).await;
    holder.until_newest(|delivery| delivery["state"] == "delivered").await;
    holder.submit(&image(2)).await;
    let refused = holder.until_newest(|delivery| delivery["attempts"] == 1 && delivery["state"] == "pending").await;
    assert_eq!(refused["last_error"], "the host has no address that is allowed");
    assert_eq!(asked.load(Ordering::Relaxed), 2, "asked for each connection");
}

#[tokio::test]
async fn requests_cannot_name_receivers_inside() {
    let app = TestApp::start().await;
    let holder = Holder::of(&app, None).await;
    for url in [
        "ftp://hooks.example.org/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[fd00:ec2::254]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://user:word@hooks.example.org/",
        "https://hooks.example.org/#x",
        "https://hooks.example.org:0/",
        "hooks.example.org",
        "",
    ] {
        let answer = holder.call("POST", "/v1/inference/image", Some(&with_webhook(1, url, None))).await;
        assert_eq!(answer.fields(), ["webhook_url"], "{url}: {}", answer.text());
        let answer = holder.ask("PATCH", "webhook", Some(json!({ "url": url }))).await;
        assert_eq!(answer.fields(), ["url"], "{url}: {}", answer.text());
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn what_cannot_be_signed_or_sent_is_refused_by_name() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let bare = app.post(&with_webhook(1, &receiver.url(), None)).await;
    assert_eq!(bare.fields(), ["webhook_url"], "the key has no secret");
    let mut events = image(1);
    events["webhook_events"] = json!(["job.succeeded"]);
    assert_eq!(app.post(&events).await.fields(), ["webhook_events"], "the key has no URL");
    events["webhook_events"] = json!(["job.done"]);
    assert_eq!(app.post(&events).await.fields(), ["webhook_events"]);
    events["webhook_events"] = json!([]);
    assert_eq!(app.post(&events).await.status, StatusCode::ACCEPTED);
    let administrator = Administrator::of(&app).await;
    let console = administrator.ask("POST", "/v1/playground/image", Some(with_webhook(1, &receiver.url(), None))).await;
    assert_eq!(console.fields(), ["webhook_url"]);
    let (path, _) = administrator.create(json!({ "name": "bare", "scope": { "inference": true } })).await;
    let edit = administrator.ask("PATCH", &format!("{path}/webhook"), Some(json!({ "url": receiver.url() }))).await;
    assert_eq!(edit.code(), "webhook_not_set_up");
    let test = administrator.ask("POST", &format!("{path}/webhook/test"), None).await;
    assert_eq!(test.code(), "webhook_not_set_up");
    let off = TestApp::with(Options { has_webhooks: false, ..Options::default() }).await;
    let holder = Holder::of(&off, Some(&receiver.url())).await;
    let refused = holder.call("POST", "/v1/inference/image", Some(&with_webhook(1, &receiver.url(), None))).await;
    assert_eq!(refused.fields(), ["webhook_url"]);
    assert_eq!(holder.ask("POST", "webhook/test", None).await.code(), "webhooks_off");
    holder.submit(&image(1)).await;
    off.jobs.wait_until_idle(PATIENCE).await;
    assert_eq!(holder.log().await.len(), 0);
}

#[tokio::test]
async fn a_test_is_delivered_and_the_log_is_kept_for_a_week() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    for count in 1..=3 {
        let test = holder.ask("POST", "webhook/test", None).await;
        assert_eq!(test.status, StatusCode::ACCEPTED, "{}", test.text());
        receiver.until(count).await;
        holder.until_newest(|delivery| delivery["state"] == "delivered").await;
    }
    let message = receiver.got().remove(0);
    assert_eq!((message.kind().as_str(), message.signatures_by(&holder.secret)), ("webhook.test", 1));
    let page = holder.call("GET", "/v1/inference/deliveries?limit=2", None).await.json();
    let next = page["next_cursor"].as_str().expect("a second page");
    let rest = holder.call("GET", &format!("/v1/inference/deliveries?limit=2&cursor={next}"), None).await.json();
    assert_eq!((page["data"].as_array().map(Vec::len), rest["data"].as_array().map(Vec::len)), (Some(2), Some(1)));
    assert_eq!(rest["next_cursor"], Value::Null);
    assert_eq!(app.webhooks.sweep().await.expect("a sweep"), 0);
    app.clock.advance(time::Duration::days(8));
    assert_eq!(app.webhooks.sweep().await.expect("a sweep"), 3);
    assert_eq!(holder.log().await.len(), 0);
}

#[tokio::test]
async fn what_is_asked_for_again_while_it_is_sent_is_sent_again() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    receiver.plan([Act::Hold]);
    holder.submit(&image(1)).await;
    let id = receiver.until(1).await[0].header("webhook-id").to_owned();
    // Or it would be due at the same moment as before.
    app.clock.advance(time::Duration::seconds(1));
    let resent = holder.call("POST", &format!("/v1/inference/deliveries/{id}/resend"), None).await;
    assert_eq!(resent.status, StatusCode::ACCEPTED, "{}", resent.text());
    receiver.release();
    assert_eq!(receiver.until(2).await[1].header("webhook-id"), id);
    let delivered = holder.until_newest(|delivery| delivery["state"] == "delivered").await;
    assert_eq!(delivered["attempts"], 2);
}

#[tokio::test]
async fn a_long_log_is_deleted_soon_although_some_at_a_time() {
    let app = TestApp::start().await;
    // More than one sweep deletes, and all of them ended long ago.
    let rows =
        "INSERT INTO webhook_deliveries (id, key_id, event, url, host, origin, is_default, happened_at_ms, state,
                                                ended_at_ms)
                WITH RECURSIVE numbers (number) AS
                    (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 1500)
                SELECT number, 'a key', 'job.failed', '', '', '', 0, 0, 'failed', 0 FROM numbers";
    sqlx::query(rows).execute(app.store.pool()).await.expect("written");
    app.stop_cleanly().await;
    // It begins with a sweep.
    let app = app.restart(Options::default()).await;
    let started = Instant::now();
    loop {
        let left = sqlx::query_scalar("SELECT count(*) FROM webhook_deliveries").fetch_one(app.store.pool());
        let left: i64 = left.await.expect("a count");
        if left == 0 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{left} are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn with_another_file_of_the_secret_nothing_is_signed_with_a_wrong_one() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    let (key, path) = (holder.key.clone(), holder.path.clone());
    app.stop_cleanly().await;
    std::fs::remove_file(app.folder.path().join("webhooks.secret")).expect("there");
    let app = app.restart(Options::default()).await;
    let holder = Holder { app: &app, administrator: Administrator::of(&app).await, path, key, secret: String::new() };
    holder.submit(&image(1)).await;
    let tried = holder.until_newest(|delivery| delivery["attempts"] == 1).await;
    assert!(tried["last_error"].as_str().is_some_and(|error| error.contains("webhooks.secret")), "{tried}");
    // With the usual grace: the secret before cannot sign any more, and must not keep the new one from it.
    let secret = holder.make_secret(None).await;
    advance(&app, 60).await;
    assert_eq!(receiver.until(1).await[0].signatures_by(&secret), 1);
}

#[tokio::test]
async fn a_key_that_has_ended_is_told_nothing_more() {
    let receiver = Receiver::start().await;
    let app = TestApp::start().await;
    let holder = Holder::of(&app, Some(&receiver.url())).await;
    app.control.hold();
    holder.submit(&image(1)).await;
    app.control.held().await;
    let revoked = holder.administrator.ask("DELETE", &holder.path, None).await;
    assert_eq!(revoked.status, StatusCode::OK);
    app.control.release();
    app.jobs.wait_until_idle(PATIENCE).await;
    let started = Instant::now();
    let newest = loop {
        let newest = holder.ask("GET", "deliveries", None).await.json()["data"][0].clone();
        if newest["state"] == "failed" {
            break newest;
        }
        assert!(started.elapsed() < PATIENCE, "{newest}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(newest["last_error"], "the key has expired or was revoked");
    assert!(receiver.got().is_empty());
    let edit = holder.ask("PATCH", "webhook", Some(json!({ "url": null }))).await;
    assert_eq!(edit.code(), "key_ended");
}
