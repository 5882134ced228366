//! Every field of `POST /v1/inference/image`: its refusals, its defaults, and the answer.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::app::{MODEL, TestApp, image};

/// A valid request with one field changed.
fn with(field: &str, value: Value) -> Value {
    let mut body = image(1);
    body[field] = value;
    body
}

fn without(field: &str) -> Value {
    let mut body = image(1);
    body.as_object_mut().expect("an object").remove(field);
    body
}

#[tokio::test]
async fn every_bad_field_is_named() {
    let app = TestApp::start().await;
    let long = "x".repeat(2049);
    let cases = [
        ("prompt", without("prompt")),
        ("prompt", with("prompt", json!(null))),
        ("prompt", with("prompt", json!(""))),
        ("prompt", with("prompt", json!(7))),
        ("prompt", with("prompt", json!(long))),
        ("model", without("model")),
        ("model", with("model", json!(["a"]))),
        ("negative_prompt", with("negative_prompt", json!(long))),
        ("negative_prompt", with("negative_prompt", json!(true))),
        ("width", with("width", json!(100))),
        ("width", with("width", json!(48))),
        ("width", with("width", json!(528))),
        ("width", with("width", json!("64"))),
        ("width", with("width", json!(64.5))),
        ("width", with("width", json!(-64))),
        ("width", with("width", json!(1e30))),
        ("height", with("height", json!(65))),
        ("height", with("height", json!(4_294_967_360_u64))),
        ("steps", with("steps", json!(0))),
        ("steps", with("steps", json!(101))),
        ("steps", with("steps", json!(1.5))),
        ("guidance", with("guidance", json!(-0.5))),
        ("guidance", with("guidance", json!(30.5))),
        ("guidance", with("guidance", json!("3.5"))),
        ("seed", with("seed", json!(-1))),
        ("seed", with("seed", json!(9_007_199_254_740_992_u64))),
        ("seed", with("seed", json!("1"))),
        ("input_images_base64", with("input_images_base64", json!(["aGk=", "aGk="]))),
        ("input_images_base64", with("input_images_base64", json!("aGk="))),
        ("output_format", with("output_format", json!("gif"))),
        ("output_format", with("output_format", json!(1))),
        ("remove_bg", with("remove_bg", json!(false))),
        ("Width", with("Width", json!(64))),
    ];
    for (field, body) in cases {
        let answer = app.post(&body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer.fields(), [field], "{}", answer.text());
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn all_bad_fields_are_named_at_once() {
    let app = TestApp::start().await;
    let answer = app.post(&json!({ "prompt": 1, "steps": "x", "remove_bg": true })).await;
    assert_eq!(answer.fields(), ["prompt", "model", "steps", "remove_bg"]);
    let answer = app.post(&json!({ "prompt": "a", "model": MODEL, "steps": 0, "width": 1 })).await;
    assert_eq!(answer.fields(), ["width", "steps"]);
}

#[tokio::test]
async fn a_field_that_is_given_twice_is_named() {
    let app = TestApp::start().await;
    let body = format!(r#"{{"model": "{MODEL}", "prompt": "a", "seed": 1, "prompt": "b", "x": 1, "x": 2}}"#);
    let mut request = app.post_request(&json!({}), &[]);
    *request.body_mut() = Body::from(body);
    let answer = app.send(request).await;
    let expected = json!([
        { "field": "prompt", "reason": "is given twice" },
        { "field": "x", "reason": "is given twice" },
        { "field": "x", "reason": "is not a known field" },
    ]);
    assert_eq!((answer.code().as_str(), &answer.json()["errors"]), ("invalid_request", &expected));
}

#[tokio::test]
async fn a_refusal_is_not_much_longer_than_the_request() {
    let app = TestApp::start().await;
    let mut body = image(1);
    for number in 0..500 {
        body[format!("field_{number:03}")] = json!(1);
    }
    let answer = app.post(&body).await;
    assert_eq!(answer.fields().len(), 32);
    let detail = answer.json()["detail"].as_str().expect("a detail").to_owned();
    assert!(detail.ends_with(", and 468 more"), "{detail}");
    assert!(answer.bytes.len() < body.to_string().len(), "{}", answer.bytes.len());
    let answer = app.post(&with(&"ä".repeat(5000), json!(1))).await;
    assert_eq!(answer.fields(), [format!("{}…", "ä".repeat(64))]);
    let query = app.get(&format!("/v1/inference/jobs?{}=1", "x".repeat(5000))).await;
    assert_eq!(query.fields(), [format!("{}…", "x".repeat(64))]);
}

#[tokio::test]
async fn limits_are_inclusive_and_count_characters() {
    let app = TestApp::start().await;
    for (field, value) in [
        ("prompt", json!("ä".repeat(2048))),
        ("negative_prompt", json!("")),
        ("width", json!(256)),
        ("steps", json!(1)),
        ("guidance", json!(0)),
        ("guidance", json!(30)),
        ("seed", json!(9_007_199_254_740_991_u64)),
        ("input_images_base64", json!([])),
        ("output_format", json!("webp")),
        ("seed", json!(null)),
    ] {
        let answer = app.post_with(&with(field, value), &[("prefer", "wait=20")]).await;
        assert_eq!(answer.status, StatusCode::OK, "{field}: {}", answer.text());
    }
}

#[tokio::test]
async fn bodies_that_are_not_objects_are_refused() {
    let app = TestApp::start().await;
    let send = async |content_type: Option<&str>, body: String| {
        let mut request =
            Request::post("/v1/inference/image").header("host", "worker.test").header("x-api-key", &app.keys.inference);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let answer = app.send(request.body(Body::from(body)).expect("a request")).await;
        (answer.status.as_u16(), answer.code())
    };
    let json = Some("application/json");
    let good = image(1).to_string();
    for broken in ["", "{", "[]", "null", "\"x\"", "{\"prompt\":}", "\u{feff}{"] {
        assert_eq!(send(json, broken.into()).await, (400, "malformed_json".into()), "{broken:?}");
    }
    assert_eq!(send(json, "[".repeat(1000)).await, (400, "malformed_json".into()));
    assert_eq!(send(None, good.clone()).await, (415, "unsupported_media_type".into()));
    assert_eq!(send(Some("text/plain"), good.clone()).await, (415, "unsupported_media_type".into()));
    // Larger than an image allows.
    let large = with("prompt", json!("x".repeat(48_000_000))).to_string();
    assert_eq!(send(json, large).await, (413, "body_too_large".into()));
}

#[tokio::test]
async fn content_types_may_carry_parameters() {
    let app = TestApp::start().await;
    let headers = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(app.post_with(&image(1), &headers).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn unknown_models_and_models_that_are_not_served_are_refused() {
    let app = TestApp::start().await;
    let unknown = app.post(&with("model", json!("nobody/nothing"))).await;
    assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "model_not_found"));
    let known = app.post(&with("model", json!("black-forest-labs/FLUX.1-dev"))).await;
    assert_eq!((known.status.as_u16(), known.code().as_str()), (503, "model_unavailable"));
}

#[tokio::test]
async fn the_answer_to_an_accepted_job_is_exactly_this() {
    let app = TestApp::start().await;
    app.control.hold();
    let answer = app.post(&image(5)).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let body = answer.json();
    let fields: Vec<&str> = body.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected =
        ["job_id", "job_type", "status", "status_url", "result_url", "seed", "queue_position", "eta_seconds"];
    expected.sort_unstable();
    assert_eq!(fields, expected);
    let id = body["job_id"].as_str().expect("an id");
    assert_eq!((&body["job_type"], &body["status"], &body["seed"]), (&json!("image"), &json!("queued"), &json!(5)));
    assert_eq!(body["status_url"], format!("http://worker.test/v1/inference/jobs/{id}"));
    assert_eq!(answer.header("location"), body["status_url"]);
    let result_url = body["result_url"].as_str().expect("a URL");
    assert!(result_url.starts_with(&format!("http://worker.test/v1/inference/jobs/{id}/result?expires=")));
    assert!(body["eta_seconds"].as_f64().is_some_and(|eta| eta >= 0.0), "the warm-up has measured the speed: {body}");
    app.control.held().await;
    assert_eq!(app.post(&image(6)).await.json()["queue_position"], 1);
    assert_eq!(app.post(&image(7)).await.json()["queue_position"], 2);
    app.control.release();
}

#[tokio::test]
async fn absent_fields_have_the_cards_defaults() {
    let app = TestApp::start().await;
    let body = json!({ "model": MODEL, "prompt": "a fox" });
    let first = app.post_with(&body, &[("prefer", "wait=20")]).await.json();
    let parameters = &first["parameters"];
    assert_eq!((&parameters["width"], &parameters["height"]), (&json!(128), &json!(128)));
    assert_eq!((&parameters["steps"], &parameters["guidance"]), (&json!(20), &json!(3.5)));
    assert_eq!(parameters["output_format"], "png");
    assert_eq!(parameters["seed"], first["seed"]);
    assert!(first["seed"].as_u64().is_some_and(|seed| seed < 1 << 53));
    let second = app.post_with(&body, &[("prefer", "wait=20")]).await.json();
    assert_ne!(first["seed"], second["seed"], "each job gets a random seed");
}
