//! The metadata in image files about how they were generated, read by another library; and that it contains nothing
//! else.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use exif::{In, Tag, Value as Exif};
use serde_json::{Value, json};

use fluxserve::domain::precision::Precision;

use crate::app::{MODEL, Options, TestApp, image};

/// The program and parameters in a file.
pub(crate) fn told(bytes: &[u8]) -> Option<(String, Value)> {
    let read = exif::Reader::new().read_from_container(&mut Cursor::new(bytes)).ok()?;
    assert_eq!(read.fields().count(), 2, "and nothing else");
    let Exif::Ascii(software) = &read.get_field(Tag::Software, In::PRIMARY)?.value else { panic!("text") };
    let Exif::Undefined(comment, _) = &read.get_field(Tag::UserComment, In::PRIMARY)?.value else { panic!("bytes") };
    let json = comment.strip_prefix(b"ASCII\0\0\0").expect("says what it is");
    Some((String::from_utf8(software[0].clone()).expect("text"), serde_json::from_slice(json).expect("JSON")))
}

async fn generated(app: &TestApp, format: &str, prompt: &str) -> Vec<u8> {
    let mut body = image(5);
    body["prompt"] = json!(prompt);
    let answer = app.post_with(&body, &[("accept", format)]).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    answer.bytes
}

#[tokio::test]
async fn a_file_has_its_parameters_but_no_user_time_or_prompt() {
    let app = TestApp::start().await;
    for format in ["image/png", "image/jpeg", "image/webp"] {
        let bytes = generated(&app, format, "a secret fox").await;
        let (software, parameters) = told(&bytes).expect("metadata");
        assert_eq!(software, concat!("fluxserve ", env!("CARGO_PKG_VERSION")));
        let expected = json!({ "model": MODEL, "seed": 5, "steps": 2, "guidance": 3.5, "width": 64, "height": 64 });
        assert_eq!(parameters, expected, "{format}");
        assert!(!bytes.windows(10).any(|window| window == b"secret fox"));
        app.clock.advance(time::Duration::hours(1));
        // The fake engine generates the same image for each prompt, so the files are equal if they contain nothing
        // else.
        assert!(generated(&app, format, "another thing").await == bytes, "{format}");
    }
}

#[tokio::test]
async fn images_of_the_other_routes_have_metadata_and_previews_do_not() {
    let app = TestApp::start().await;
    let body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "seed": 9, "steps": 2 });
    let request = crate::app::request("POST", "/v1/images/generations", Some(&app.keys.inference), Some(&body));
    let answer = app.send(request).await.json();
    let bytes = STANDARD.decode(answer["data"][0]["b64_json"].as_str().expect("an image")).expect("base64");
    assert_eq!(told(&bytes).expect("metadata").1["seed"], 9);

    let cookie = app.sign_in().await;
    app.control.hold();
    let id = app.submit(&image(3)).await;
    let path = format!("/v1/jobs/{id}/preview");
    let look = async || app.send(crate::app::managing(&cookie, "GET", &path, None)).await;
    app.control.held().await;
    look().await;
    app.control.let_pass(1);
    let preview = loop {
        let answer = look().await;
        if answer.status.is_success() {
            break answer.bytes;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    };
    assert!(told(&preview).is_none());
}

/// The model list marks a model as lossy, and so does each of its images.
#[tokio::test]
async fn a_lossy_image_is_marked() {
    for precision in [Precision::Fp8, Precision::Bf16] {
        check_marks(precision, &precision.to_string()).await;
    }
}

async fn check_marks(precision: Precision, word: &str) {
    let app = TestApp::with(Options { precision, ..Options::default() }).await;
    let (_, parameters) = told(&generated(&app, "image/png", "a fox").await).expect("metadata");
    let expected = json!({
        "model": MODEL, "seed": 5, "steps": 2, "guidance": 3.5, "width": 64, "height": 64, "precision": word
    });
    assert_eq!(parameters, expected);
    let models = app.get("/v1/inference/runtime/models").await.json()["models"].clone();
    let told: Vec<(&Value, &Value)> =
        models.as_array().expect("models").iter().map(|model| (&model["id"], &model["precision"])).collect();
    assert!(told.contains(&(&json!(MODEL), &json!(word))), "{told:?}");
    assert!(told.iter().all(|(id, precision)| *id == MODEL || precision.is_null()), "{told:?}");
    assert_eq!(app.get("/v1/models").await.json()["data"][0]["precision"], word);
}

/// A job survives a change of precision: it runs in the worker's present one, which its file records.
#[tokio::test]
async fn a_job_retried_in_another_precision_records_it() {
    let app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(7)).await;
    app.control.held().await;
    app.crash().await;
    let app = app.restart(Options { precision: Precision::Fp8, ..Options::default() }).await;
    app.until_status(&id, "succeeded").await;
    let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
    let (_, parameters) = told(&result.bytes).expect("metadata");
    assert_eq!((&parameters["seed"], &parameters["precision"]), (&json!(7), &json!("fp8")));
}

#[tokio::test]
async fn metadata_can_be_switched_off() {
    let app = TestApp::with(Options { writes_provenance: false, ..Options::default() }).await;
    for format in ["image/png", "image/jpeg", "image/webp"] {
        assert!(told(&generated(&app, format, "a fox").await).is_none(), "{format}");
    }
}
