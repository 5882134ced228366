//! Input images: what is accepted, what is refused and how, and that they are kept as long as their jobs.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluxserve::domain::engine::EngineError;
use fluxserve::domain::format::OutputFormat;
use fluxserve::domain::image::RgbImage;
use fluxserve::encode::encode;
use serde_json::{Value, json};

use crate::app::{MODEL, Options, TestApp, decoded, image, managing};
use crate::fake_engine::Fault;

const ORANGE: [u8; 3] = [250, 130, 10];
const TEAL: [u8; 3] = [10, 120, 130];

fn flat(width: u32, height: u32, color: [u8; 3]) -> RgbImage {
    RgbImage::new(width, height, color.repeat((width * height) as usize)).expect("three bytes per pixel")
}

fn file(image: &RgbImage, format: OutputFormat) -> String {
    STANDARD.encode(encode(image, format).expect("encodes"))
}

/// A request with an input image of one color, in the output size.
fn from(color: [u8; 3], seed: u64) -> Value {
    let mut body = image(seed);
    body["input_images_base64"] = json!([file(&flat(64, 64, color), OutputFormat::Png)]);
    body
}

async fn kept(app: &TestApp) -> i64 {
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM job_images").fetch_one(app.store.pool()).await;
    count.expect("a count")
}

#[tokio::test]
async fn an_input_image_of_any_format_is_used_in_the_output_size() {
    let app = TestApp::start().await;
    for format in [OutputFormat::Png, OutputFormat::Webp, OutputFormat::Jpeg] {
        let mut body = json!({ "model": MODEL, "prompt": "a fox", "steps": 10, "seed": 1, "strength": 0.35 });
        body["input_images_base64"] = json!([file(&flat(150, 100, ORANGE), format)]);
        let job = app.post_with(&body, &[("prefer", "wait=20")]).await.json();
        assert_eq!(job["status"], "succeeded", "{job}");
        let parameters = &job["parameters"];
        assert_eq!(
            (&parameters["width"], &parameters["height"]),
            (&json!(144), &json!(96)),
            "its own size, rounded \
                                                                                              down"
        );
        assert_eq!((&parameters["steps"], &parameters["strength"]), (&json!(10), &json!(0.35)));
        assert_eq!(parameters["input_images"], 1);
        assert_eq!(job["progress"], json!({ "step": 4, "steps": 4 }), "as many of ten steps as diffusers runs");
        assert!(!job.to_string().contains("base64"), "never returned: {job}");
        let id = job["job_id"].as_str().expect("an id");
        let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
        let (width, height, color) = decoded(&result.bytes);
        assert_eq!((width, height), (144, 96));
        assert!(color.iter().zip(ORANGE).all(|(found, meant)| found.abs_diff(meant) < 6), "{format}: {color:?}");
    }
    let mut body = from(ORANGE, 1);
    body["width"] = json!(128);
    body.as_object_mut().expect("an object").remove("height");
    let job = app.post_with(&body, &[("prefer", "wait=20")]).await.json();
    assert_eq!((&job["parameters"]["height"], &job["parameters"]["strength"]), (&json!(128), &json!(0.6)));
    let plain = app.post_with(&image(1), &[("prefer", "wait=20")]).await.json();
    assert!(plain["parameters"].get("strength").is_none() && plain["parameters"].get("input_images").is_none());
}

#[tokio::test]
async fn each_bad_image_is_named_with_its_reason() {
    let app = TestApp::start().await;
    let good = file(&flat(64, 64, TEAL), OutputFormat::Png);
    let cut = STANDARD.encode(&STANDARD.decode(&good).expect("base64")[..40]);
    let gif = STANDARD.encode(b"GIF89a\x01\0\x01\0\0\0\0;");
    let wrapped = format!("{}\n{}", &good[..8], &good[8..]);
    let cases = [
        (json!("aGk="), "input_images_base64", "must be an array of strings"),
        (json!([1]), "input_images_base64", "must be an array of strings"),
        (json!(["aGk"]), "input_images_base64[0]", "is not base64"),
        (json!(["a b="]), "input_images_base64[0]", "is not base64"),
        (json!([wrapped]), "input_images_base64[0]", "without line breaks"),
        (json!([format!("data:image/png;base64,{good}")]), "input_images_base64[0]", "without `data:`"),
        (json!(["aGk="]), "input_images_base64[0]", "is not a PNG, JPEG or WebP file"),
        (json!([""]), "input_images_base64[0]", "is not a PNG, JPEG or WebP file"),
        (json!([gif]), "input_images_base64[0]", "is not a PNG, JPEG or WebP file"),
        (json!([cut]), "input_images_base64[0]", "cannot be read as a PNG file"),
        (json!([good, good]), "input_images_base64", "from 0 to 1 input images, not 2"),
    ];
    for (images, field, reason) in cases {
        let mut body = image(1);
        body["input_images_base64"] = images;
        let answer = app.post(&body).await;
        assert_eq!(answer.fields(), [field], "{}", answer.text());
        assert!(answer.text().contains(reason), "{reason:?}: {}", answer.text());
        body["steps"] = json!(0);
        body["strength"] = json!(2);
        let fields = app.post(&body).await.fields();
        let is_read = !reason.contains("array");
        assert_eq!(fields.len(), if is_read { 3 } else { 1 }, "and all other errors: {fields:?}");
    }
    for strength in [json!(0), json!(1.01), json!(-0.5)] {
        let mut body = from(TEAL, 1);
        body["strength"] = strength;
        assert_eq!(app.post(&body).await.fields(), ["strength"]);
        body["width"] = json!(65);
        assert_eq!(app.post(&body).await.fields(), ["width", "strength"]);
    }
    let mut body = from(TEAL, 1);
    body["strength"] = json!("much");
    assert_eq!(app.post(&body).await.fields(), ["strength"]);
    let mut body = image(1);
    body["strength"] = json!(0.5);
    let answer = app.post(&body).await;
    assert_eq!(answer.fields(), ["strength"]);
    assert!(answer.text().contains("needs an input image"), "{}", answer.text());
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
    assert_eq!(kept(&app).await, 0);
}

#[tokio::test]
async fn a_model_without_input_images_refuses_one() {
    let app = TestApp::start().await;
    let mut body = from(TEAL, 1);
    body["model"] = json!("black-forest-labs/FLUX.1-dev");
    let answer = app.post(&body).await;
    assert_eq!(answer.fields(), ["input_images_base64"]);
    assert!(answer.text().contains("from 0 to 0 input images, not 1"), "{}", answer.text());
}

#[tokio::test]
async fn a_body_may_be_larger_by_its_images() {
    let app = TestApp::start().await;
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let pixels = (0..256 * 256 * 3).map(|_| noise()).collect();
    let mut body = image(1);
    body["input_images_base64"] = json!([file(&RgbImage::new(256, 256, pixels).expect("fits"), OutputFormat::Png)]);
    assert!(body.to_string().len() > 8 * Options::default().http.body_bytes_max, "noise does not compress");
    assert_eq!(app.post(&body).await.status, StatusCode::ACCEPTED);
    // The model takes an input image and its mask.
    body["input_images_base64"] = json!(["A".repeat(46 * 1024 * 1024)]);
    let answer = app.post(&body).await;
    assert_eq!(answer.code(), "body_too_large");
    assert!(answer.text().contains("44755"), "the limit is named: {}", answer.text());
}

#[tokio::test]
async fn an_image_is_kept_until_its_job_ends_and_a_crash_changes_nothing() {
    let app = TestApp::start().await;
    app.control.hold();
    let running = app.submit(&from(ORANGE, 1)).await;
    app.control.held().await;
    let queued = app.submit(&from(TEAL, 2)).await;
    app.submit(&image(3)).await;
    assert_eq!(kept(&app).await, 2, "one for each job with an input image");
    app.crash().await;
    let app = app.restart(Options::default()).await;
    for (id, color) in [(running, ORANGE), (queued, TEAL)] {
        let job = app.until_status(&id, "succeeded").await;
        assert_eq!((&job["parameters"]["strength"], &job["parameters"]["input_images"]), (&json!(0.6), &json!(1)));
        let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
        assert_eq!(decoded(&result.bytes), (64, 64, color), "from the same image");
    }
    assert_eq!(kept(&app).await, 0);
}

#[tokio::test]
async fn every_end_of_a_job_deletes_its_image() {
    let app = TestApp::start().await;
    app.control.on_next_admit(Fault::Error(EngineError::Request("told to".into())));
    let failed = app.submit(&from(TEAL, 1)).await;
    app.until_status(&failed, "failed").await;
    assert_eq!(kept(&app).await, 0);
    app.control.hold();
    app.submit(&image(2)).await;
    app.control.held().await;
    let canceled = app.submit(&from(TEAL, 3)).await;
    assert_eq!(kept(&app).await, 1);
    app.delete(&format!("/v1/inference/jobs/{canceled}")).await;
    app.until_status(&canceled, "canceled").await;
    assert_eq!(kept(&app).await, 0);
    app.control.release();
}

#[tokio::test]
async fn an_unreadable_image_fails_its_job_with_a_reason() {
    let app = TestApp::start().await;
    app.control.hold();
    let damaged = app.submit(&from(TEAL, 1)).await;
    app.control.held().await;
    let lost = app.submit(&from(TEAL, 2)).await;
    let update = "UPDATE job_images SET image = x'00' WHERE job_id = ?";
    sqlx::query(update).bind(&damaged).execute(app.store.pool()).await.expect("damaged");
    let delete = "DELETE FROM job_images WHERE job_id = ?";
    sqlx::query(delete).bind(&lost).execute(app.store.pool()).await.expect("lost");
    app.crash().await;
    let app = app.restart(Options::default()).await;
    for id in [damaged, lost] {
        let job = app.until_status(&id, "failed").await;
        assert_eq!(job["error"]["code"], "job_unreadable");
        assert_eq!(job["error"]["reason"], "the worker can no longer read the images of the request");
    }
    assert_eq!(kept(&app).await, 0);
}

#[tokio::test]
async fn all_images_together_are_bounded() {
    let app = TestApp::with(Options { input_images_bytes_max: 2 * 64 * 64 * 3, ..Options::default() }).await;
    app.control.hold();
    let first = app.submit(&from(TEAL, 1)).await;
    app.submit(&from(TEAL, 2)).await;
    let refused = app.post(&from(TEAL, 3)).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "queue_full"));
    assert_ne!(refused.header("retry-after"), "");
    app.submit(&image(4)).await;
    app.control.release();
    app.until_status(&first, "succeeded").await;
    assert_eq!(app.jobs.wait_until_idle(std::time::Duration::from_secs(20)).await, 0);
    app.submit(&from(TEAL, 5)).await;
}

#[tokio::test]
async fn a_retry_has_the_same_image() {
    let app = TestApp::start().await;
    let word = ("idempotency-key", "portrait");
    let first = app.post_with(&from(TEAL, 1), &[word]).await.json();
    let again = app.post_with(&from(TEAL, 1), &[word]).await.json();
    assert_eq!(first["job_id"], again["job_id"]);
    assert_eq!(app.post_with(&from(ORANGE, 1), &[word]).await.code(), "idempotency_conflict");
}

#[tokio::test]
async fn the_playground_accepts_input_images() {
    let app = TestApp::start().await;
    let cookie = app.sign_in().await;
    let submit = async |body: &Value| app.send(managing(&cookie, "POST", "/v1/playground/image", Some(body))).await;
    let accepted = submit(&from(ORANGE, 7)).await;
    assert_eq!((accepted.status, &accepted.json()["parameters"]["strength"]), (StatusCode::ACCEPTED, &json!(0.6)));
    let mut body = image(1);
    body["input_images_base64"] = json!(["aGk="]);
    assert_eq!(submit(&body).await.fields(), ["input_images_base64[0]"]);
}
