//! OpenAI's routes that take images. `scripts/openai-test.sh` tests them with the real clients.

mod models;

use std::io::Cursor;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluxserve::decode::FILE_BYTES_MAX;
use fluxserve::domain::spec::GenerateSpec;
use image::{ImageFormat, Rgba, RgbaImage};
use serde_json::{Value, json};

use crate::app::{Answer, MODEL, TestApp, decoded, managing, request};
use crate::fake_engine::colour;

const EDITS: &str = "/v1/images/edits";
const VARIATIONS: &str = "/v1/images/variations";
const BOUNDARY: &str = "a-boundary";
const SIDE: u32 = 64;

const TEAL: [u8; 4] = [10, 120, 130, 255];
const CLEAR: [u8; 4] = [1, 2, 3, 0];
const WHITE: [u8; 4] = [255; 4];
const BLACK: [u8; 4] = [0, 0, 0, 255];

/// A PNG file whose left and right halves have these colors.
pub(crate) fn halves(left: [u8; 4], right: [u8; 4]) -> Vec<u8> {
    let image = RgbaImage::from_fn(SIDE, SIDE, |x, _| Rgba(if x < SIDE / 2 { left } else { right }));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).expect("encodes");
    bytes.into_inner()
}

/// A PNG file of one color.
pub(crate) fn png(color: [u8; 4]) -> Vec<u8> {
    halves(color, color)
}

pub(crate) fn data_url(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}

/// A form with texts and files.
fn form(texts: &[(&str, &str)], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    let texts = texts.iter().map(|(name, text)| (name, "", text.as_bytes()));
    let files = files.iter().map(|(name, bytes)| (name, "; filename=\"a.png\"\r\nContent-Type: image/png", *bytes));
    for (name, more, content) in texts.chain(files) {
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

fn asked(key: &str, path: &str, content_type: &str, body: Vec<u8>) -> Request<Body> {
    let request = Request::post(path)
        .header("host", "worker.test")
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", content_type)
        .header("content-length", body.len());
    request.body(Body::from(body)).expect("a request")
}

async fn send(app: &TestApp, path: &str, texts: &[(&str, &str)], files: &[(&str, &[u8])]) -> Answer {
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    app.send(asked(&app.keys.inference, path, &content_type, form(texts, files))).await
}

/// An edit of these files with a seed and additional fields.
async fn edit(app: &TestApp, seed: u64, more: &[(&str, &str)], files: &[(&str, &[u8])]) -> Answer {
    let seed = seed.to_string();
    let usual = [("model", MODEL), ("prompt", "a fox"), ("steps", "10"), ("seed", &*seed)];
    send(app, EDITS, &[&usual[..], more].concat(), files).await
}

/// The request that the engine got, which had to succeed.
#[track_caller]
fn admitted(app: &TestApp, seed: u64, answer: &Answer) -> GenerateSpec {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    app.control.spec_of(seed)
}

/// The first pixels of the left and the right half of the mask.
fn mask_of(spec: &GenerateSpec) -> Option<[u8; 2]> {
    let mask = spec.mask()?;
    assert_eq!((mask.width(), mask.height()), (SIDE, SIDE));
    Some([0, SIDE as usize / 2].map(|x| mask.pixels()[x * 3]))
}

fn strength_of(spec: &GenerateSpec) -> f64 {
    spec.input_image().expect("an input image").strength
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str) -> Value {
    let error = answer.openai_error();
    assert_eq!((answer.status.as_u16(), error["code"].as_str()), (status, Some(code)), "{error}");
    error
}

/// The files of a form, by their fields.
type Files<'a> = &'a [(&'a str, &'a [u8])];

#[tokio::test]
async fn an_edit_starts_from_its_image() {
    let app = TestApp::start().await;
    for (seed, name) in [(1, "image"), (2, "image[]"), (3, "image[0]")] {
        let answer = edit(&app, seed, &[("user", "u"), ("input_fidelity", "high")], &[(name, &png(TEAL))]).await;
        let spec = admitted(&app, seed, &answer);
        assert_eq!((mask_of(&spec), strength_of(&spec)), (None, 0.6), "{name}");
        let body = answer.json();
        assert_eq!((&body["size"], &body["data"][0]["seed"]), (&json!("64x64"), &json!(seed)));
        let image = STANDARD.decode(body["data"][0]["b64_json"].as_str().expect("an image")).expect("base64");
        assert_eq!(decoded(&image), (SIDE, SIDE, [10, 120, 130]), "the fake engine returns its input's color");
    }
    let more = [("strength", "0.3"), ("size", "96x80"), ("guidance", "2"), ("negative_prompt", "a wolf")];
    let answer = edit(&app, 4, &more, &[("image", &png(TEAL))]).await;
    let spec = admitted(&app, 4, &answer);
    assert_eq!((spec.width(), spec.height(), spec.guidance(), strength_of(&spec)), (96, 80, 2.0, 0.3));
    assert_eq!(spec.negative().map(|negative| negative.prompt.as_str()), Some("a wolf"));
}

#[tokio::test]
async fn a_mask_says_what_is_replaced() {
    let app = TestApp::start().await;
    let masks = [
        (1, halves(CLEAR, BLACK), "transparent pixels are replaced"),
        (2, halves(WHITE, BLACK), "without transparency it is the white ones"),
    ];
    for (seed, mask, why) in masks {
        let answer = edit(&app, seed, &[], &[("image", &png(TEAL)), ("mask", &mask)]).await;
        let spec = admitted(&app, seed, &answer);
        assert_eq!((mask_of(&spec), strength_of(&spec)), (Some([255, 0]), 1.0), "{why}");
    }
    let files: [(&str, &[u8]); 2] = [("mask", &halves(CLEAR, BLACK)), ("image", &png(TEAL))];
    let answer = edit(&app, 3, &[("strength", "0.5")], &files).await;
    assert_eq!(strength_of(&admitted(&app, 3, &answer)), 0.5);
    // What is around the mask is generated in a size of its own, and becomes part of the image.
    let files: [(&str, &[u8]); 2] = [("image", &png(TEAL)), ("mask", &halves(CLEAR, BLACK))];
    let answer = edit(&app, 4, &[("mask_padding", "8"), ("size", "128x128")], &files).await;
    assert_eq!(admitted(&app, 4, &answer).width(), 128);
    assert_eq!(answer.json()["size"], "64x64");
}

#[tokio::test]
async fn an_image_with_transparent_pixels_is_its_own_mask() {
    let app = TestApp::start().await;
    let answer = edit(&app, 1, &[], &[("image", &halves(CLEAR, TEAL))]).await;
    let spec = admitted(&app, 1, &answer);
    assert_eq!((mask_of(&spec), strength_of(&spec)), (Some([255, 0]), 1.0));
    let files: [(&str, &[u8]); 2] = [("image", &halves(CLEAR, TEAL)), ("mask", &halves(TEAL, CLEAR))];
    let answer = edit(&app, 2, &[], &files).await;
    assert_eq!(mask_of(&admitted(&app, 2, &answer)), Some([0, 255]), "unless another is given");
}

#[tokio::test]
async fn each_image_of_several_starts_from_the_same_one() {
    let app = TestApp::start().await;
    let answer = edit(&app, 7, &[("n", "3"), ("response_format", "url")], &[("image", &png(TEAL))]).await;
    let start = admitted(&app, 7, &answer).input_image().cloned();
    for seed in [8, 9] {
        assert_eq!(app.control.spec_of(seed).input_image().cloned(), start);
    }
    let data = answer.json()["data"].clone();
    let seeds: Vec<_> = data.as_array().expect("images").iter().map(|image| image["seed"].as_u64()).collect();
    assert_eq!(seeds, [Some(7), Some(8), Some(9)]);
    assert!(data[0]["url"].as_str().is_some_and(|url| url.contains("/result?")), "{data}");
}

#[tokio::test]
async fn every_bad_field_of_a_form_is_the_param() {
    let app = TestApp::start().await;
    let good = png(TEAL);
    let with_image: [(&str, &[u8]); 1] = [("image", &good)];
    let cases = [
        ("prompt", "", "must not be empty"),
        ("model", "nothing", "is given twice"),
        ("n", "0", "must be from 1 to 10"),
        ("n", "two", "must be a whole number"),
        ("n[]", "1", "is not a known field"),
        ("size", "64", "must be `auto`"),
        ("size", "100x64", "width must be a multiple of 16"),
        ("strength", "2", "must be above 0 and at most 1"),
        ("strength", "much", "must be a number"),
        ("mask_padding", "4", "needs a mask"),
        ("guidance", "31", "must be from 0 to 30"),
        ("response_format", "png", "must be `b64_json` or `url`"),
        ("output_format", "gif", ""),
        ("quality", "ultra", "is not supported"),
        ("background", "transparent", "is not supported"),
        ("input_fidelity", "max", "is not supported"),
        ("output_compression", "50", "leave it out, or send 100"),
        ("stream", "yes", "must be true or false"),
        ("partial_images", "2", "needs `stream`"),
        ("loras", "pen", "must be an array of objects"),
        ("image", "aGk=", "must be a file"),
        ("mask", "aGk=", "must be a file"),
        ("svg", "1", "is not a known field"),
    ];
    for (field, text, reason) in cases {
        let usual = [("model", MODEL), ("prompt", "a fox"), ("steps", "2")];
        let usual = usual.into_iter().filter(|(name, _)| *name != field || field == "model");
        let texts: Vec<(&str, &str)> = usual.chain([(field, text)]).collect();
        let files: &[(&str, &[u8])] = if field == "image" { &[] } else { &with_image };
        let error = assert_refused(&send(&app, EDITS, &texts, files).await, 400, "invalid_request");
        assert_eq!(error["param"], field, "{text}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(reason)), "{reason}: {error}");
    }
    let missing = assert_refused(&send(&app, EDITS, &[], &[("image", &good)]).await, 400, "invalid_request");
    assert_eq!(missing["message"], "`prompt` is required; `model` is required");
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn every_bad_file_is_named() {
    let app = TestApp::start().await;
    let (good, gif) = (png(TEAL), b"GIF89a\x01\0\x01\0\0\0\0;".to_vec());
    let cases: [(Files, &str, &str); 9] = [
        (&[], "image", "is required"),
        (&[("image", &gif)], "image", "is not a PNG, JPEG or WebP file"),
        (&[("image", &good[..40])], "image", "cannot be read as a PNG file"),
        (&[("image", b"")], "image", "is not a PNG, JPEG or WebP file"),
        (&[("image", &good), ("image", &good)], "image", "at most 1 for this model, not 2"),
        (&[("image[]", &good), ("image[]", &good), ("mask", &good)], "image", "at most 1 for this model, not 2"),
        (&[("image", &good), ("mask", &good), ("mask", &good)], "mask", "is given twice"),
        (&[("image", &good), ("mask", &gif)], "mask", "is not a PNG, JPEG or WebP file"),
        (&[("image", &good), ("style", &good)], "style", "is not the field of a file"),
    ];
    for (files, field, reason) in cases {
        let error = assert_refused(&edit(&app, 1, &[], files).await, 400, "invalid_request");
        assert_eq!(error["param"], field, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(reason)), "{reason}: {error}");
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn bodies_of_other_forms_and_sizes_are_refused() {
    let app = TestApp::start().await;
    let key = &app.keys.inference;
    let form_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let good = form(&[("model", MODEL), ("prompt", "a fox")], &[("image", &png(TEAL))]);
    for path in [EDITS, VARIATIONS] {
        for content_type in ["text/plain", "application/octet-stream", "multipart/form-data", "image/png"] {
            let answer = app.send(asked(key, path, content_type, good.clone())).await;
            assert_refused(&answer, 415, "unsupported_media_type");
        }
        let mut encoded = asked(key, path, &form_type, good.clone());
        encoded.headers_mut().insert("content-encoding", "gzip".parse().expect("a value"));
        assert_refused(&app.send(encoded).await, 415, "unsupported_media_type");
        let cut = good[..good.len() - 10].to_vec();
        let error = assert_refused(&app.send(asked(key, path, &form_type, cut)).await, 400, "invalid_request");
        assert!(error["message"].as_str().is_some_and(|message| message.contains("multipart/form-data")), "{error}");

        let large = vec![0; FILE_BYTES_MAX + 1];
        let error = assert_refused(&send(&app, path, &[], &[("image", &large)]).await, 413, "body_too_large");
        assert_eq!(error["param"], "image");
        let long = "x".repeat(20_000);
        let error = assert_refused(&send(&app, path, &[("prompt", &long)], &[]).await, 413, "body_too_large");
        assert_eq!(error["param"], "prompt");
        let mut lies = asked(key, path, &form_type, good.clone());
        lies.headers_mut().insert("content-length", (100 * FILE_BYTES_MAX).into());
        assert_refused(&app.send(lies).await, 413, "body_too_large");
    }
}

#[tokio::test]
async fn an_edit_in_json_has_its_images_in_urls() {
    let app = TestApp::start().await;
    let image = |file: &[u8]| json!({ "image_url": data_url(file) });
    let body = |more: &Value| {
        let mut body = json!({ "model": MODEL, "prompt": "a fox", "steps": 2, "seed": 5 });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        body
    };
    let send = async |more: Value| app.send(request("POST", EDITS, Some(&app.keys.all), Some(&body(&more)))).await;
    let answer = send(json!({ "images": [image(&png(TEAL))], "mask": image(&halves(CLEAR, BLACK)) })).await;
    assert_eq!(mask_of(&admitted(&app, 5, &answer)), Some([255, 0]));
    app.control.forget_calls();

    let cases = [
        (json!({}), "images", "is required"),
        (json!({ "images": [] }), "images", "is required"),
        (json!({ "images": [image(&png(TEAL)), image(&png(TEAL))] }), "image", "at most 1"),
        (json!({ "images": [{ "image_url": "https://e.org/a.png" }] }), "images[0].image_url", "fetches no images"),
        (json!({ "images": [{ "file_id": "file-1" }] }), "images[0].image_url", "is required"),
        (json!({ "images": [image(b"hi")] }), "images[0]", "is not a PNG, JPEG or WebP file"),
        (json!({ "images": [image(&png(TEAL))], "mask": {} }), "mask.image_url", "is required"),
        (json!({ "images": [image(&png(TEAL))], "image": "x" }), "image", "is not a known field"),
    ];
    for (more, field, reason) in cases {
        let error = assert_refused(&send(more).await, 400, "invalid_request");
        assert_eq!(error["param"], field, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(reason)), "{reason}: {error}");
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
    let mut broken = request("POST", EDITS, Some(&app.keys.all), Some(&json!({})));
    *broken.body_mut() = Body::from("{");
    assert_refused(&app.send(broken).await, 400, "malformed_json");
}

#[tokio::test]
async fn variations_need_a_model_that_makes_them() {
    let app = TestApp::start().await;
    let texts = [("model", MODEL), ("n", "2"), ("size", "64x64"), ("response_format", "url"), ("user", "u")];
    let image = png(TEAL);
    let error = assert_refused(&send(&app, VARIATIONS, &texts, &[("image", &image)]).await, 400, "invalid_request");
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("FLUX.1-Redux")), "{error}");
    let images: [(&str, &[u8]); 2] = [("image", &image), ("image", &image)];
    let error = assert_refused(&send(&app, VARIATIONS, &texts, &images).await, 400, "invalid_request");
    assert_eq!((&error["param"], &error["message"]), (&json!("image"), &json!("`image` must be one")));
    let prompted = [("model", MODEL), ("prompt", "a fox")];
    let error = assert_refused(&send(&app, VARIATIONS, &prompted, &[("image", &image)]).await, 400, "invalid_request");
    assert_eq!(error["param"], "prompt");
}

#[tokio::test]
async fn keys_and_models_are_checked_as_for_generations() {
    let app = TestApp::start().await;
    let form_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let good = || form(&[("model", MODEL), ("prompt", "a fox"), ("steps", "2"), ("n", "2")], &[("image", &png(TEAL))]);
    let wrong = app.send(asked("rgpu_wrong", EDITS, &form_type, good())).await;
    assert_refused(&wrong, 401, "unauthorized");
    let kubernetes = app.send(asked(&app.keys.kubernetes, EDITS, &form_type, good())).await;
    assert_refused(&kubernetes, 403, "scope_forbidden");
    let unknown = send(&app, EDITS, &[("model", "dall-e-2"), ("prompt", "a")], &[("image", &png(TEAL))]).await;
    assert_refused(&unknown, 404, "model_not_found");

    let cookie = app.sign_in().await;
    let new = json!({ "name": "test", "scope": { "inference": true }, "limits": { "requests_per_minute": 1 } });
    let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&new))).await.json();
    let key = made["key"].as_str().expect("a value");
    let error = assert_refused(&app.send(asked(key, EDITS, &form_type, good())).await, 400, "invalid_request");
    assert_eq!(error["param"], "n", "each image is a request");
    assert_refused(&app.send(asked(key, EDITS, &form_type, good())).await, 429, "rate_limited");
}

#[tokio::test]
async fn a_prompt_alone_is_not_an_edit() {
    let app = TestApp::start().await;
    let answer = edit(&app, 1, &[("image", "")], &[]).await;
    assert_refused(&answer, 400, "invalid_request");
    let body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2, "seed": 1, "image": "aGk=" });
    let generated = app.send(request("POST", "/v1/images/generations", Some(&app.keys.all), Some(&body))).await;
    assert_eq!(assert_refused(&generated, 400, "invalid_request")["param"], "image", "it takes no images");
    let plain = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2, "seed": 1 });
    let plain = app.send(request("POST", "/v1/images/generations", Some(&app.keys.all), Some(&plain))).await.json();
    let image = STANDARD.decode(plain["data"][0]["b64_json"].as_str().expect("an image")).expect("base64");
    assert_eq!(decoded(&image).2, colour(1));
}
