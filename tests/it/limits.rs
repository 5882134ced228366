//! A key's limits, its reported usage, and its share of the device beside other keys.

use axum::http::StatusCode;
use fluxserve::domain::engine::EngineLimits;
use fluxserve::domain::usage::STEPS_BESIDE;
use serde_json::{Value, json};
use time::Duration;

use crate::app::{Answer, MODEL, Options, TestApp, image, managing, request};
use crate::fake_engine::{Call, Fault};

/// A key with limits, and its administrator.
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

    async fn generate(&self, body: &Value) -> Answer {
        self.app.send(request("POST", "/v1/inference/image", Some(&self.key), Some(body))).await
    }

    async fn list(&self) -> Answer {
        self.app.send(request("GET", "/v1/inference/jobs", Some(&self.key), None)).await
    }

    async fn until_idle(&self) {
        assert_eq!(self.app.jobs.wait_until_idle(std::time::Duration::from_secs(20)).await, 0);
    }
}

/// The largest image, a quarter of a megapixel, with so many steps.
fn large(steps: u32) -> Value {
    let mut body = image(1);
    (body["width"], body["height"], body["steps"]) = (json!(256), json!(256), json!(steps));
    body
}

/// A day's usage in steps of one pass of the largest image.
fn large_steps(day: &Value) -> f64 {
    let steps = day["megapixel_steps"].as_f64().expect("a number") * 1e6 / f64::from(256 * 256);
    assert!((steps - steps.round()).abs() < 1e-6, "{steps}");
    steps.round()
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
    assert_eq!(app.get("/v1/inference/jobs").await.status, StatusCode::OK, "other keys are not affected");
    app.clock.advance(Duration::seconds(seconds));
    assert_eq!(limited.list().await.status, StatusCode::OK);
    assert_eq!(limited.list().await.status, StatusCode::TOO_MANY_REQUESTS);
    let limits = limited.edit(json!({ "requests_per_minute": null, "concurrent_jobs": 5 })).await;
    let expected = json!({
        "requests_per_minute": null,
        "concurrent_jobs": 5,
        "megapixel_steps_per_day": null,
        "priority": "normal",
        "loras": null,
        "budget": null,
    });
    assert_eq!(limits, expected);
    assert_eq!(limited.list().await.status, StatusCode::OK, "an edit applies to the next request");
    assert_eq!(limited.edit(Value::Null).await["concurrent_jobs"], Value::Null);
}

#[tokio::test]
async fn concurrent_jobs() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({ "concurrent_jobs": 2 })).await;
    app.control.hold();
    let first = limited.generate(&image(1)).await.json();
    assert_eq!(limited.generate(&image(2)).await.status, StatusCode::ACCEPTED);
    let answer = limited.generate(&image(3)).await;
    let policy = (r#""concurrent-jobs";q=2"#, r#""concurrent-jobs";r=0"#);
    assert!(assert_limited(&answer, "concurrent_jobs_limit", policy.0, policy.1) >= 1);
    assert_eq!(limited.list().await.json()["data"].as_array().map(Vec::len), Some(2), "the refused job left nothing");
    app.submit(&image(4)).await;
    assert_eq!(limited.edit(json!({ "concurrent_jobs": 3 })).await["concurrent_jobs"], 3);
    assert_eq!(limited.generate(&image(5)).await.status, StatusCode::ACCEPTED);
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
        assert_eq!(limited.generate(&image(seed)).await.status, StatusCode::ACCEPTED, "an ended job does not count");
    }
    app.control.release();
}

#[tokio::test]
async fn concurrent_jobs_are_still_counted_after_a_crash() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({ "concurrent_jobs": 1 })).await;
    app.control.hold();
    assert_eq!(limited.generate(&image(1)).await.status, StatusCode::ACCEPTED);
    let key = limited.key.clone();
    app.crash().await;
    // Held before its first image, so that the job is unfinished.
    let options = Options { waits_for_ready: false, ..Options::default() };
    options.control.hold();
    let app = app.restart(options).await;
    let submission = |seed| request("POST", "/v1/inference/image", Some(&key), Some(&image(seed)));
    assert_eq!(app.send(submission(2)).await.code(), "concurrent_jobs_limit");
    app.control.release();
    assert_eq!(app.jobs.wait_until_idle(std::time::Duration::from_secs(20)).await, 0);
    assert_eq!(app.send(submission(3)).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn megapixel_steps_per_day() {
    let app = TestApp::start().await;
    // An image with 40 steps and 4 for non-step work costs 2.88.
    let limited = Limited::new(&app, json!({ "megapixel_steps_per_day": 7 })).await;
    app.control.hold();
    assert_eq!(limited.generate(&large(40)).await.status, StatusCode::ACCEPTED);
    assert_eq!(limited.generate(&large(40)).await.status, StatusCode::ACCEPTED);
    let policy = r#""megapixel-steps";q=7;w=86400"#;
    let state = r#""megapixel-steps";r=1"#;
    assert_limited(&limited.generate(&large(40)).await, "daily_limit", policy, state);
    assert_eq!(limited.generate(&large(14)).await.status, StatusCode::ACCEPTED, "a smaller one still fits");
    app.control.release();
    limited.until_idle().await;
    let answer = limited.generate(&large(40)).await;
    let seconds = assert_limited(&answer, "daily_limit", policy, r#""megapixel-steps";r=0"#);
    assert!((1..=86_400).contains(&seconds));
    assert_eq!(limited.list().await.status, StatusCode::OK, "other requests cost nothing");
    app.clock.advance(Duration::seconds(seconds));
    assert_eq!(limited.generate(&large(40)).await.status, StatusCode::ACCEPTED, "a new day");
    limited.until_idle().await;
    // Usage from while the clock was ahead does not count for this day.
    app.clock.set_by(Duration::days(100));
    assert_eq!(limited.generate(&large(90)).await.status, StatusCode::ACCEPTED, "another day");
    limited.until_idle().await;
    app.clock.set_by(Duration::days(-100));
    assert_eq!(limited.generate(&large(40)).await.status, StatusCode::ACCEPTED, "some of the limit is left");
    limited.until_idle().await;
}

#[tokio::test]
async fn simultaneous_requests_do_not_exceed_the_daily_limit() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({ "megapixel_steps_per_day": 7 })).await;
    app.control.hold();
    let body = large(40);
    let answers = futures_util::future::join_all((0..6).map(|_| limited.generate(&body))).await;
    let accepted = answers.iter().filter(|answer| answer.status == StatusCode::ACCEPTED).count();
    assert_eq!(accepted, 2);
    app.control.release();
    limited.until_idle().await;
}

#[tokio::test]
async fn usage_is_reported_by_day() {
    let app = TestApp::start().await;
    let mut limited = Limited::new(&app, json!({})).await;
    assert!(limited.usage("").await.iter().all(|day| day["requests"] == 0 && day["images"] == 0));
    limited.generate(&large(3)).await;
    limited.until_idle().await;
    // A job that is canceled after a step is partly charged.
    app.control.hold();
    let job = limited.generate(&large(9)).await.json();
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
    let steps = large_steps(&today);
    let beside = 2.0 * f64::from(STEPS_BESIDE);
    assert!((beside + 3.9..beside + 5.1).contains(&steps), "three steps, and one or two of the other: {steps}");
    assert!(today["gpu_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{today}");

    app.clock.advance(Duration::days(1));
    limited.cookie = app.sign_in().await;
    limited.list().await;
    let days = limited.usage("?days=2").await;
    assert_eq!(days.iter().map(|day| &day["requests"]).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(days[0], today);
    let wrong = format!("{}/usage?days=401", limited.path);
    assert_eq!(app.send(managing(&limited.cookie, "GET", &wrong, None)).await.fields(), ["days"]);
    let unknown = "/v1/api-keys/018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f/usage";
    assert_eq!(app.send(managing(&limited.cookie, "GET", unknown, None)).await.code(), "key_not_found");
}

#[tokio::test]
async fn an_image_costs_its_passes_and_its_non_step_work() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({})).await;
    let mut before = 0.0;
    let mut cost = async |body: Value| {
        assert_eq!(limited.generate(&body).await.status, StatusCode::ACCEPTED);
        limited.until_idle().await;
        let all = limited.usage("?days=1").await.last().map_or(0.0, large_steps);
        all - std::mem::replace(&mut before, all)
    };
    let beside = f64::from(STEPS_BESIDE);
    assert_eq!(cost(large(3)).await, 3.0 + beside);
    let mut steered = large(3);
    steered["negative_prompt"] = json!("a square");
    assert_eq!(cost(steered).await, 2.0 * 3.0 + beside, "both passes");
    // The engine fails in the first step and the image is restarted.
    app.control.on_next_step(Fault::Panic);
    assert_eq!(cost(large(3)).await, 3.0 + 2.0 * beside);
}

#[tokio::test]
async fn the_reserved_amount_is_the_actual_cost() {
    let app = TestApp::start().await;
    // Two passes of 40 steps and the non-step work: 5.5.
    let mut steered = large(40);
    steered["negative_prompt"] = json!("a square");
    let limited = Limited::new(&app, json!({ "megapixel_steps_per_day": 5 })).await;
    assert_eq!(limited.generate(&steered).await.code(), "daily_limit");
    // Five megapixel-steps are 76 steps of one pass, which is 15 images of one step.
    let mut accepted = 0;
    while limited.generate(&large(1)).await.status == StatusCode::ACCEPTED {
        accepted += 1;
        limited.until_idle().await;
    }
    assert_eq!(accepted, 15);
}

#[tokio::test]
async fn each_image_of_a_request_counts_as_one() {
    let app = TestApp::start().await;
    let limited = Limited::new(&app, json!({ "requests_per_minute": 6 })).await;
    let several = async |n: u32| {
        let body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 1, "n": n });
        app.send(request("POST", "/v1/images/generations", Some(&limited.key), Some(&body))).await
    };
    let too_many = several(7).await;
    assert_eq!(too_many.status, StatusCode::BAD_REQUEST, "no wait would help");
    assert_eq!(too_many.openai_error()["param"], "n");
    app.clock.advance(Duration::MINUTE);
    assert_eq!(several(4).await.status, StatusCode::OK);
    let refused = several(4).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{}", refused.text());
    assert_eq!(refused.openai_error()["code"], "rate_limited");
    assert_eq!(refused.header("retry-after"), "20", "two must leave the window");
    assert_eq!(several(2).await.status, StatusCode::OK, "the refused request took nothing");
    app.clock.advance(Duration::seconds(40));
    assert_eq!(several(4).await.status, StatusCode::OK);
    assert_eq!(limited.list().await.status, StatusCode::TOO_MANY_REQUESTS);
    let days = limited.usage("?days=1").await;
    assert_eq!(days.last().map(|day| day["images"].clone()), Some(json!(10)));
}

#[tokio::test]
async fn a_priority_is_set_edited_and_shown() {
    let app = TestApp::start().await;
    let plain = Limited::new(&app, json!({ "concurrent_jobs": 9 })).await;
    assert_eq!(plain.edit(json!({})).await["priority"], "normal");
    let high = Limited::new(&app, json!({ "priority": "high" })).await;
    let shown = async || app.send(managing(&high.cookie, "GET", &high.path, None)).await.json()["limits"].clone();
    assert_eq!(shown().await["priority"], "high");
    let edits = [
        (json!({ "priority": "low" }), "low"),
        (json!({ "requests_per_minute": 60 }), "low"),
        (json!({ "priority": null }), "normal"),
        (json!({ "priority": "high" }), "high"),
    ];
    for (limits, expected) in edits {
        assert_eq!(high.edit(limits.clone()).await["priority"], expected, "{limits}");
        let shown = shown().await;
        assert_eq!(shown["priority"], expected, "{limits}");
    }
    assert_eq!(shown().await["requests_per_minute"], 60, "a priority does not change the limits");
    let usual = high.edit(Value::Null).await;
    assert_eq!((&usual["priority"], &usual["requests_per_minute"]), (&json!("normal"), &Value::Null));

    for wrong in [json!("urgent"), json!("High"), json!(""), json!(4), json!(["high"])] {
        let limits = json!({ "limits": { "priority": wrong } });
        let mut key = limits.clone();
        (key["name"], key["scope"]) = (json!("wrong"), json!({ "inference": true }));
        for (method, path, body) in [("POST", "/v1/api-keys", &key), ("PATCH", high.path.as_str(), &limits)] {
            let answer = app.send(managing(&high.cookie, method, path, Some(body))).await;
            assert_eq!((answer.status, answer.fields()), (StatusCode::BAD_REQUEST, vec!["limits.priority".to_owned()]));
            let reason = &answer.json()["errors"][0]["reason"];
            let expected = if wrong.is_string() { "must be `low`, `normal` or `high`" } else { "must be a string" };
            assert_eq!(reason, expected, "{method} {wrong}");
        }
    }
    assert_eq!(shown().await["priority"], "normal", "the refused edit changed nothing");

    let log = app.send(managing(&high.cookie, "GET", "/v1/audit?limit=100", None)).await.json();
    let entries = log["data"].as_array().expect("a list").iter().rev();
    let of_key = entries.filter(|entry| high.path.ends_with(entry["key_id"].as_str().unwrap_or("none")));
    let told: Vec<_> = of_key.map(|entry| entry["detail"]["limits"].get("priority").and_then(Value::as_str)).collect();
    let expected = [Some("high"), Some("low"), None, Some("normal"), Some("high"), Some("normal")];
    assert_eq!(told, expected, "the creation, then each edit that gave a priority");
}

#[tokio::test]
async fn a_job_has_the_priority_that_its_key_had_when_it_was_accepted() {
    let app = TestApp::start().await;
    app.control.hold();
    let key = Limited::new(&app, json!({ "priority": "high" })).await;
    let mut jobs = Vec::new();
    for (seed, limits) in [(1, json!({})), (2, json!({ "priority": "low" })), (3, json!({ "priority": null }))] {
        key.edit(limits).await;
        jobs.push(key.generate(&image(seed)).await.json()["job_id"].as_str().expect("an id").to_owned());
    }
    jobs.push(app.submit(&image(4)).await);
    let mut recorded: Vec<(String, String)> = Vec::new();
    for job in &jobs {
        let query = sqlx::query_as("SELECT owner_priority, priority FROM jobs WHERE id = ?");
        recorded.push(query.bind(job).fetch_one(app.store.pool()).await.expect("a row"));
    }
    let expected = ["high", "low", "normal", "normal"].map(|owner| (owner.to_owned(), "normal".to_owned()));
    assert_eq!(recorded, expected, "the key's priority, not the job's own");
    app.control.release();
    key.until_idle().await;
}

#[tokio::test]
async fn a_high_key_gets_the_device_before_a_low_one() {
    let app = TestApp::start().await;
    app.control.set_limits(EngineLimits { images_max: 1, step_tokens_max: 100_000 });
    let low = Limited::new(&app, json!({ "priority": "low" })).await;
    let high = Limited::new(&app, json!({ "priority": "high" })).await;
    app.control.hold();
    low.generate(&image(10)).await;
    app.control.held().await;
    for seed in 1..4 {
        low.generate(&image(10 + seed)).await;
        high.generate(&image(20 + seed)).await;
    }
    app.control.release();
    low.until_idle().await;
    let finished = |call| if let Call::Finish(seed) = call { Some(seed) } else { None };
    let order: Vec<u64> = app.control.calls().into_iter().filter_map(finished).filter(|seed| *seed >= 10).collect();
    // Keys with the same priority would alternate.
    assert_eq!(order, [10, 21, 22, 23, 11, 12, 13]);
}
