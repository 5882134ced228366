//! What a key may use up, and what it is said to have used up.

use axum::http::StatusCode;
use serde_json::{Value, json};
use time::Duration;

use crate::app::{Answer, Options, TestApp, managing, picture, request};

/// A key with limits, and the administrator who made it.
struct Limited<'a> {
    app: &'a TestApp,
    cookie: String,
    path: String,
    key: String,
}

impl<'a> Limited<'a> {
    async fn new(app: &'a TestApp, limits: Value) -> Self {
        let cookie = app.sign_in().await;
        let body = json!({ "name": "limited", "scope": { "inference": true }, "limits": limits });
        let answer = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&body))).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let view = answer.json();
        let path = format!("/v1/api-keys/{}", view["id"].as_str().expect("an id"));
        Self { app, cookie, path, key: view["key"].as_str().expect("a value").to_owned() }
    }

    async fn edit(&self, limits: Value) -> Value {
        let body = json!({ "limits": limits });
        let answer = self.app.send(managing(&self.cookie, "PATCH", &self.path, Some(&body))).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()["limits"].clone()
    }

    async fn usage(&self, query: &str) -> Vec<Value> {
        self.app.authenticator.record_uses_until(async {}).await;
        let path = format!("{}/usage{query}", self.path);
        let answer = self.app.send(managing(&self.cookie, "GET", &path, None)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()["data"].as_array().expect("a list").clone()
    }

    async fn draw(&self, body: &Value) -> Answer {
        self.app.send(request("POST", "/v1/inference/image", Some(&self.key), Some(body))).await
    }

    async fn list(&self) -> Answer {
        self.app.send(request("GET", "/v1/inference/jobs", Some(&self.key), None)).await
    }

    async fn until_idle(&self) {
        assert_eq!(self.app.jobs.wait_until_idle(std::time::Duration::from_secs(20)).await, 0);
    }
}

/// The largest picture there is, a good quarter of a megapixel, of so many steps.
fn large(steps: u32) -> Value {
    let mut body = picture(1);
    (body["width"], body["height"], body["steps"]) = (json!(256), json!(256), json!(steps));
    body
}

#[track_caller]
fn assert_limited(answer: &Answer, code: &str, policy: &str, state: &str) -> i64 {
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, code), "{}", answer.text());
    let seconds = answer.header("retry-after");
    assert_eq!(answer.header("ratelimit-policy"), policy);
    assert_eq!(answer.header("ratelimit"), format!("{state};t={seconds}"));
    seconds.parse().expect("seconds")
}

#[tokio::test]
async fn requests_per_minute() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({ "requests_per_minute": 3 })).await;
    for _ in 0..3 {
        assert_eq!(limited.list().await.status, StatusCode::OK);
    }
    let answer = limited.list().await;
    let seconds = assert_limited(&answer, "rate_limited", r#""requests";q=3;w=60"#, r#""requests";r=0"#);
    assert_eq!(seconds, 20);
    assert_eq!(app.get("/v1/inference/jobs").await.status, StatusCode::OK, "others go on");
    app.clock.advance(Duration::seconds(seconds));
    assert_eq!(limited.list().await.status, StatusCode::OK);
    assert_eq!(limited.list().await.status, StatusCode::TOO_MANY_REQUESTS);
    let limits = limited.edit(json!({ "requests_per_minute": null, "concurrent_jobs": 5 })).await;
    let expected = json!({ "requests_per_minute": null, "concurrent_jobs": 5, "megapixel_steps_per_day": null });
    assert_eq!(limits, expected);
    assert_eq!(limited.list().await.status, StatusCode::OK, "an edit acts on the next request");
    assert_eq!(limited.edit(Value::Null).await["concurrent_jobs"], Value::Null);
}

#[tokio::test]
async fn concurrent_jobs() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({ "concurrent_jobs": 2 })).await;
    app.control.hold();
    let first = limited.draw(&picture(1)).await.json();
    assert_eq!(limited.draw(&picture(2)).await.status, StatusCode::ACCEPTED);
    let answer = limited.draw(&picture(3)).await;
    let policy = (r#""concurrent-jobs";q=2"#, r#""concurrent-jobs";r=0"#);
    assert!(assert_limited(&answer, "concurrent_jobs_limit", policy.0, policy.1) >= 1);
    assert_eq!(limited.list().await.json()["data"].as_array().map(Vec::len), Some(2), "nothing is left of it");
    app.submit(&picture(4)).await;
    assert_eq!(limited.edit(json!({ "concurrent_jobs": 3 })).await["concurrent_jobs"], 3);
    assert_eq!(limited.draw(&picture(5)).await.status, StatusCode::ACCEPTED);
    let job = format!("/v1/inference/jobs/{}", first["job_id"].as_str().expect("an id"));
    let cancel = request("DELETE", &job, Some(&limited.key), None);
    let (canceled, ()) = tokio::join!(app.send(cancel), async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        app.control.release();
    });
    assert_eq!(canceled.status, StatusCode::OK);
    limited.until_idle().await;
    for seed in 6..9 {
        app.control.hold();
        assert_eq!(limited.draw(&picture(seed)).await.status, StatusCode::ACCEPTED, "a job that has ended is none");
    }
    app.control.release();
}

#[tokio::test]
async fn concurrent_jobs_are_still_counted_after_a_crash() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({ "concurrent_jobs": 1 })).await;
    app.control.hold();
    assert_eq!(limited.draw(&picture(1)).await.status, StatusCode::ACCEPTED);
    let key = limited.key.clone();
    app.crash().await;
    // Held before its first picture, so that the job is still there.
    let options = Options { waits_for_ready: false, ..Options::default() };
    options.control.hold();
    let app = app.restart(options).await;
    let draw = |seed| request("POST", "/v1/inference/image", Some(&key), Some(&picture(seed)));
    assert_eq!(app.send(draw(2)).await.code(), "concurrent_jobs_limit");
    app.control.release();
    assert_eq!(app.jobs.wait_until_idle(std::time::Duration::from_secs(20)).await, 0);
    assert_eq!(app.send(draw(3)).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn megapixel_steps_per_day() {
    let app = TestApp::start().await;
    // A picture with 40 steps takes 2.62 of them.
    let limited = Limited::new(&app, json!({ "megapixel_steps_per_day": 7 })).await;
    app.control.hold();
    assert_eq!(limited.draw(&large(40)).await.status, StatusCode::ACCEPTED);
    assert_eq!(limited.draw(&large(40)).await.status, StatusCode::ACCEPTED);
    let policy = r#""megapixel-steps";q=7;w=86400"#;
    let state = r#""megapixel-steps";r=1"#;
    assert_limited(&limited.draw(&large(40)).await, "daily_limit", policy, state);
    assert_eq!(limited.draw(&large(15)).await.status, StatusCode::ACCEPTED, "a smaller one still fits");
    app.control.release();
    limited.until_idle().await;
    let answer = limited.draw(&large(40)).await;
    let seconds = assert_limited(&answer, "daily_limit", policy, r#""megapixel-steps";r=0"#);
    assert!((1..=86_400).contains(&seconds));
    assert_eq!(limited.list().await.status, StatusCode::OK, "asking costs nothing");
    app.clock.advance(Duration::seconds(seconds));
    assert_eq!(limited.draw(&large(40)).await.status, StatusCode::ACCEPTED, "a new day");
    limited.until_idle().await;
}

#[tokio::test]
async fn what_was_asked_for_at_once_is_not_drawn_beyond_the_share() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({ "megapixel_steps_per_day": 7 })).await;
    app.control.hold();
    let body = large(40);
    let answers = futures_util::future::join_all((0..6).map(|_| limited.draw(&body))).await;
    let accepted = answers.iter().filter(|answer| answer.status == StatusCode::ACCEPTED).count();
    assert_eq!(accepted, 2);
    app.control.release();
    limited.until_idle().await;
}

#[tokio::test]
async fn usage_is_told_by_day() {
    let app = TestApp::start().await;
    let mut limited = Limited::new(&app, json!({})).await;
    assert!(limited.usage("").await.iter().all(|day| day["requests"] == 0 && day["images"] == 0));
    limited.draw(&large(3)).await;
    limited.until_idle().await;
    // One that is cancelled after a step was drawn in part.
    app.control.hold();
    let job = limited.draw(&large(9)).await.json();
    app.control.held().await;
    let job = format!("/v1/inference/jobs/{}", job["job_id"].as_str().expect("an id"));
    let cancel = request("DELETE", &job, Some(&limited.key), None);
    tokio::join!(app.send(cancel), async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        app.control.release();
    });
    limited.until_idle().await;
    let days = limited.usage("").await;
    assert_eq!(days.len(), 30);
    let today = days.last().expect("today").clone();
    assert_eq!((&today["requests"], &today["images"]), (&json!(3), &json!(1)));
    let megapixels_of_a_step = 256.0 * 256.0 / 1e6;
    let steps = today["megapixel_steps"].as_f64().expect("a number") / megapixels_of_a_step;
    assert!((3.9..5.1).contains(&steps), "three steps, and one or two of the other: {steps}");
    assert!(today["gpu_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{today}");

    app.clock.advance(Duration::days(1));
    limited.cookie = app.sign_in().await;
    limited.list().await;
    let days = limited.usage("?days=2").await;
    assert_eq!(days.iter().map(|day| &day["requests"]).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(days[0], today);
    let wrong = format!("{}/usage?days=401", limited.path);
    assert_eq!(app.send(managing(&limited.cookie, "GET", &wrong, None)).await.fields(), ["days"]);
    let nobody = "/v1/api-keys/018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f/usage";
    assert_eq!(app.send(managing(&limited.cookie, "GET", nobody, None)).await.code(), "key_not_found");
}
