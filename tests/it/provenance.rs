//! What the files of images say of how they were drawn, as another reader finds it; and that nothing else is in them.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use exif::{In, Tag, Value as Exif};
use serde_json::{Value, json};

use fluxserve::domain::precision::Precision;

use crate::app::{MODEL, Options, TestApp, image};

/// Program and parameters, as a file tells of them.
fn told(bytes: &[u8]) -> Option<(String, Value)> {
    let read = exif::Reader::new().read_from_container(&mut Cursor::new(bytes)).ok()?;
    assert_eq!(read.fields().count(), 2, "and nothing else");
    let Exif::Ascii(software) = &read.get_field(Tag::Software, In::PRIMARY)?.value else { panic!("text") };
    let Exif::Undefined(comment, _) = &read.get_field(Tag::UserComment, In::PRIMARY)?.value else { panic!("bytes") };
    let json = comment.strip_prefix(b"ASCII\0\0\0").expect("says what it is");
    Some((String::from_utf8(software[0].clone()).expect("text"), serde_json::from_slice(json).expect("JSON")))
}

async fn drawn(app: &TestApp, format: &str, prompt: &str) -> Vec<u8> {
    let mut body = image(5);
    body["prompt"] = json!(prompt);
    let answer = app.post_with(&body, &[("accept", format)]).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    answer.bytes
}

#[tokio::test]
async fn a_file_says_how_it_was_drawn_and_not_for_whom_when_or_of_what() {
    let app = TestApp::start().await;
    for format in ["image/png", "image/jpeg", "image/webp"] {
        let bytes = drawn(&app, format, "a secret fox").await;
        let (software, parameters) = told(&bytes).expect("there is something");
        assert_eq!(software, concat!("fluxserve ", env!("CARGO_PKG_VERSION")));
        let expected = json!({ "model": MODEL, "seed": 5, "steps": 2, "guidance": 3.5, "width": 64, "height": 64 });
        assert_eq!(parameters, expected, "{format}");
        assert!(!bytes.windows(10).any(|window| window == b"secret fox"));
        app.clock.advance(time::Duration::hours(1));
        // The fake engine draws the same for each prompt, so these are the same file if nothing else is in it.
        assert!(drawn(&app, format, "another thing").await == bytes, "{format}");
    }
}

#[tokio::test]
async fn images_of_the_other_routes_say_so_too_and_previews_do_not() {
    let app = TestApp::start().await;
    let body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "seed": 9, "steps": 2 });
    let request = crate::app::request("POST", "/v1/images/generations", Some(&app.keys.inference), Some(&body));
    let answer = app.send(request).await.json();
    let bytes = STANDARD.decode(answer["data"][0]["b64_json"].as_str().expect("an image")).expect("base64");
    assert_eq!(told(&bytes).expect("there is something").1["seed"], 9);

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

/// A model says beforehand that it draws with loss, and each of its images says so afterwards.
#[tokio::test]
async fn a_lossy_image_can_be_told() {
    let app = TestApp::with(Options { precision: Precision::Fp8, ..Options::default() }).await;
    let (_, parameters) = told(&drawn(&app, "image/png", "a fox").await).expect("there is something");
    let expected = json!({
        "model": MODEL, "seed": 5, "steps": 2, "guidance": 3.5, "width": 64, "height": 64, "precision": "fp8"
    });
    assert_eq!(parameters, expected);
    let models = app.get("/v1/inference/runtime/models").await.json()["models"].clone();
    let told: Vec<(&Value, &Value)> =
        models.as_array().expect("models").iter().map(|model| (&model["id"], &model["precision"])).collect();
    assert!(told.contains(&(&json!(MODEL), &json!("fp8"))), "{told:?}");
    assert!(told.iter().all(|(id, precision)| *id == MODEL || precision.is_null()), "{told:?}");
    assert_eq!(app.get("/v1/models").await.json()["data"][0]["precision"], "fp8");
}

/// A job outlives a change of precision: it is drawn in the one that the worker has then, and its file says in which.
#[tokio::test]
async fn a_job_that_is_drawn_again_in_another_precision_says_so() {
    let app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(7)).await;
    app.control.held().await;
    app.crash().await;
    let app = app.restart(Options { precision: Precision::Fp8, ..Options::default() }).await;
    app.until_status(&id, "succeeded").await;
    let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
    let (_, parameters) = told(&result.bytes).expect("there is something");
    assert_eq!((&parameters["seed"], &parameters["precision"]), (&json!(7), &json!("fp8")));
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let app = TestApp::with(Options { writes_provenance: false, ..Options::default() }).await;
    for format in ["image/png", "image/jpeg", "image/webp"] {
        assert!(told(&drawn(&app, format, "a fox").await).is_none(), "{format}");
    }
}
