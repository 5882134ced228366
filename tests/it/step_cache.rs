//! The cache between steps: its fields, what a job and its file say of it, and that a restart keeps it.

use axum::http::StatusCode;
use fluxserve::http::HttpSettings;
use serde_json::{Value, json};

use crate::app::{Answer, MODEL, Options, TestApp, image, request};
use crate::provenance::told;

/// A valid request with these fields as well.
fn with(more: &Value) -> Value {
    let mut body = image(4);
    body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
    body
}

/// The same through the route of OpenAI's clients.
async fn openai(app: &TestApp, more: &Value) -> Answer {
    let mut body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2, "seed": 4 });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
    app.send(request("POST", "/v1/images/generations", Some(&app.keys.inference), Some(&body))).await
}

#[tokio::test]
async fn a_bad_cache_is_named_by_its_field_and_reason() {
    let app = TestApp::start().await;
    let range = "must be above 0 and at most 1, not";
    let cases = [
        ("cache", json!({ "cache": "teacache" }), "must be first_block"),
        ("cache", json!({ "cache": "teacache", "cache_threshold": 0.1 }), "must be first_block"),
        ("cache", json!({ "cache": true }), "must be a string"),
        ("cache_threshold", json!({ "cache_threshold": 0.1 }), "needs `cache`"),
        ("cache_threshold", json!({ "cache": null, "cache_threshold": 0.1 }), "needs `cache`"),
        ("cache_threshold", json!({ "cache": "first_block", "cache_threshold": 0 }), range),
        ("cache_threshold", json!({ "cache": "first_block", "cache_threshold": -0.1 }), range),
        ("cache_threshold", json!({ "cache": "first_block", "cache_threshold": 1.01 }), range),
        ("cache_threshold", json!({ "cache": "first_block", "cache_threshold": "low" }), "must be a number"),
    ];
    for (field, more, reason) in cases {
        let answer = app.post(&with(&more)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{more}");
        assert_eq!(answer.fields(), [field], "{more}");
        let found = answer.json()["errors"][0]["reason"].as_str().expect("words").to_owned();
        assert!(found.starts_with(reason), "{more}: {found}");
        let error = openai(&app, &more).await.openai_error();
        assert_eq!(error["param"], field, "{more}: {error}");
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn a_job_shows_its_cache_and_its_threshold() {
    let app = TestApp::start().await;
    for (more, cache, threshold) in [
        (json!({}), Value::Null, Value::Null),
        (json!({ "cache": null, "cache_threshold": null }), Value::Null, Value::Null),
        (json!({ "cache": "first_block" }), json!("first_block"), json!(0.08)),
        (json!({ "cache": "first_block", "cache_threshold": 1 }), json!("first_block"), json!(1.0)),
        (json!({ "cache": "first_block", "cache_threshold": 0.12 }), json!("first_block"), json!(0.12)),
    ] {
        let done = app.post_with(&with(&more), &[("prefer", "wait=20")]).await.json();
        assert_eq!(done["status"], "succeeded", "{done}");
        let shown = &done["parameters"];
        assert_eq!((&shown["cache"], &shown["cache_threshold"]), (&cache, &threshold), "{more}");
        let answer = openai(&app, &more).await.json();
        let id = answer["data"][0]["job_id"].as_str().expect("an id");
        let shown = app.get(&format!("/v1/inference/jobs/{id}")).await.json()["parameters"].clone();
        assert_eq!((&shown["cache"], &shown["cache_threshold"]), (&cache, &threshold), "{more}");
    }
}

#[tokio::test]
async fn a_job_keeps_its_cache_over_a_restart_and_its_file_names_it() {
    let app = TestApp::start().await;
    app.control.hold();
    let plain = app.submit(&with(&json!({}))).await;
    let cached = app.submit(&with(&json!({ "cache": "first_block", "cache_threshold": 0.3 }))).await;
    app.control.held().await;
    app.crash().await;
    let app = app.restart(Options::default()).await;
    for (id, threshold) in [(plain, Value::Null), (cached, json!(0.3))] {
        let view = app.until_status(&id, "succeeded").await;
        assert_eq!(view["parameters"]["cache_threshold"], threshold);
        let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
        let (_, parameters) = told(&result.bytes).expect("metadata");
        assert_eq!((&parameters["cache_threshold"], &parameters["seed"]), (&threshold, &json!(4)));
    }
}

#[tokio::test]
async fn a_deterministic_worker_refuses_caches_by_name() {
    let http = HttpSettings { allows_caches: false, ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let more = json!({ "cache": "first_block" });
    let answer = app.post(&with(&more)).await;
    assert_eq!(answer.fields(), ["cache"]);
    assert!(answer.text().contains("--deterministic"), "{}", answer.text());
    let error = openai(&app, &more).await.openai_error();
    assert_eq!(error["param"], "cache", "{error}");
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
    let answer = app.post_with(&with(&json!({})), &[("prefer", "wait=20")]).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}
