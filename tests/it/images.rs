//! Images with roles: what each model takes, what is refused and how, and that all of them survive a restart.

mod hostile;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluxserve::domain::conditioning::{Conditioning, ControlMode, ControlNetCard, ImageRole, StyleCard};
use fluxserve::domain::format::OutputFormat;
use fluxserve::domain::image::RgbImage;
use fluxserve::domain::model::ModelCard;
use fluxserve::encode::encode;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};
use serde_json::{Value, json};

use crate::app::{MODEL, Options, TestApp, decoded, image};

const ORANGE: [u8; 3] = [250, 130, 10];
const TEAL: [u8; 3] = [10, 120, 130];
const WHITE: [u8; 3] = [255; 3];

/// A PNG of one color, as base64.
fn flat(width: u32, height: u32, color: [u8; 3]) -> String {
    let pixels = color.repeat((width * height) as usize);
    let image = RgbImage::new(width, height, pixels).expect("three bytes per pixel");
    STANDARD.encode(encode(&image, OutputFormat::Png).expect("encodes"))
}

/// An image of a role, in the output size.
fn of(role: &str, color: [u8; 3]) -> Value {
    json!({ "role": role, "base64": flat(64, 64, color) })
}

/// The same, with options.
fn with(role: &str, options: &Value) -> Value {
    let mut image = of(role, TEAL);
    for (name, value) in options.as_object().expect("an object") {
        image[name] = value.clone();
    }
    image
}

fn body(seed: u64, images: &[Value]) -> Value {
    let mut body = image(seed);
    body["images"] = json!(images);
    body
}

fn nets(card: &mut ModelCard) {
    let net = |name: &str, modes| ControlNetCard { name: name.into(), modes };
    card.attached.controlnets = vec![net("lines", None), net("union", Some(7))];
    card.attached.style = Some(StyleCard { side: 32, tokens: 9 });
    card.attached.estimates_depth = true;
}

fn one_net(card: &mut ModelCard) {
    card.attached.controlnets = vec![ControlNetCard { name: "lines".into(), modes: None }];
}

fn kontext(card: &mut ModelCard) {
    (card.conditioning, card.input_images_max) = (Conditioning::References, 2);
    // The sizes that it was trained with.
    card.limits.pixels_max = 2_000_000;
    one_net(card);
}

fn fill(card: &mut ModelCard) {
    (card.conditioning, card.input_images_min, card.input_images_max) = (Conditioning::Fill, 1, 1);
}

fn canny(card: &mut ModelCard) {
    (card.conditioning, card.input_images_min, card.input_images_max) = (Conditioning::Control, 1, 1);
}

async fn with_card(change_card: fn(&mut ModelCard)) -> TestApp {
    // Reference images are large.
    let input_images_bytes_max = 64 * 1024 * 1024;
    TestApp::with(Options { input_images_bytes_max, change_card, ..Options::default() }).await
}

async fn done(app: &TestApp, body: &Value) -> Value {
    let answer = app.post_with(body, &[("prefer", "wait=20")]).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let job = answer.json();
    assert_eq!(job["status"], "succeeded", "{job}");
    job
}

/// The first pixel.
fn color(image: &RgbImage) -> &[u8] {
    &image.pixels()[..3]
}

#[tokio::test]
async fn each_image_reaches_the_engine_in_its_role() {
    let app = with_card(nets).await;
    let images = [
        with("style", &json!({ "scale": 0.5 })),
        of("mask", WHITE),
        with("control", &json!({ "controlnet": "union", "mode": "pose", "scale": 0.7, "start": 0.1, "end": 0.8 })),
        with("control", &json!({ "controlnet": "lines", "preprocess": "depth" })),
        of("input", ORANGE),
    ];
    let mut asked = body(3, &images);
    asked["strength"] = json!(1);
    let job = done(&app, &asked).await;
    let spec = app.control.spec_of(3);
    let input = spec.input_image().expect("an input image");
    assert_eq!((color(&input.image), input.strength), (&ORANGE[..], 1.0));
    assert_eq!(color(spec.mask().expect("a mask")), WHITE);
    let [union, lines] = spec.controls() else { panic!("{:?}", spec.controls()) };
    assert_eq!((union.controlnet.as_deref(), union.mode), (Some("union"), Some(ControlMode(4))));
    assert_eq!((union.scale, union.start, union.end, union.is_depth_estimated), (0.7, 0.1, 0.8, false));
    assert_eq!((lines.controlnet.as_deref(), lines.mode, lines.is_depth_estimated), (Some("lines"), None, true));
    let [style] = spec.styles() else { panic!("{:?}", spec.styles()) };
    assert_eq!((style.scale, style.image.width(), style.image.height()), (0.5, 32, 32));
    assert_eq!(spec.style_tokens(), 9);

    let parameters = &job["parameters"];
    assert_eq!(parameters["input_images"], 5);
    let expected = json!([
        { "role": "input" },
        { "role": "mask" },
        { "role": "control", "controlnet": "union", "mode": "pose", "scale": 0.7, "start": 0.1, "end": 0.8 },
        { "role": "control", "controlnet": "lines", "preprocess": "depth", "scale": 1.0, "start": 0.0, "end": 1.0 },
        { "role": "style", "scale": 0.5 },
    ]);
    assert_eq!(parameters["images"], expected);
    assert!(!job.to_string().contains("base64"), "never returned: {job}");
}

#[tokio::test]
async fn a_mode_is_a_word_or_a_number() {
    let app = with_card(nets).await;
    for (seed, mode) in (1..).zip([json!("depth"), json!(2), json!("2"), json!(2.0)]) {
        done(&app, &body(seed, &[with("control", &json!({ "controlnet": "union", "mode": mode }))])).await;
        assert_eq!(app.control.spec_of(seed).controls()[0].mode, Some(ControlMode(2)), "{mode}");
    }
}

#[tokio::test]
async fn images_in_both_fields_count_together() {
    let app = with_card(kontext).await;
    let mut asked = body(4, &[of("reference", ORANGE)]);
    asked["input_images_base64"] = json!([flat(64, 64, TEAL)]);
    done(&app, &asked).await;
    let spec = app.control.spec_of(4);
    let colors: Vec<_> = spec.references().iter().map(|image| color(image).to_vec()).collect();
    assert_eq!(colors, [TEAL.to_vec(), ORANGE.to_vec()], "those without a role come first");
    assert!(spec.reference_tokens() > 0);
    asked["images"] = json!([of("reference", ORANGE), of("reference", ORANGE)]);
    let answer = app.post(&asked).await;
    assert_eq!(answer.fields(), ["images"]);
    assert!(answer.text().contains("from 0 to 2 reference images, not 3"), "{}", answer.text());
    // It may also start from an image.
    done(&app, &body(5, &[of("reference", TEAL), of("input", ORANGE), of("mask", WHITE)])).await;
    assert_eq!(color(&app.control.spec_of(5).input_image().expect("one").image), ORANGE);
}

#[tokio::test]
async fn models_with_channels_take_their_own_images() {
    let app = with_card(fill).await;
    done(&app, &body(1, &[of("input", ORANGE), of("mask", WHITE)])).await;
    assert_eq!(app.control.spec_of(1).input_image().expect("one").strength, 1.0);
    let without_mask = app.post(&body(1, &[of("input", ORANGE)])).await;
    assert_eq!(without_mask.fields(), ["images"]);
    assert!(without_mask.text().contains("1 mask image, not 0"), "{}", without_mask.text());
    assert_eq!(app.post(&image(1)).await.fields(), ["input_images_base64", "images"]);

    let app = with_card(canny).await;
    let mut asked = image(2);
    asked["input_images_base64"] = json!([flat(64, 64, TEAL)]);
    done(&app, &asked).await;
    let spec = app.control.spec_of(2);
    assert_eq!((spec.controls().len(), spec.controls()[0].controlnet.as_deref()), (1, None));
    let scaled = body(2, &[with("control", &json!({ "scale": 0.5, "controlnet": "lines" }))]);
    assert_eq!(app.post(&scaled).await.fields(), ["images[0].controlnet", "images[0].scale"]);
    assert_eq!(app.post(&body(2, &[of("control", TEAL), of("input", TEAL)])).await.fields(), ["images"]);
}

#[tokio::test]
async fn every_mistake_in_an_image_is_named() {
    let app = with_card(nets).await;
    let control = |options: Value| with("control", &options);
    let base64 = flat(64, 64, TEAL);
    for (images, fields) in [
        (json!("x"), vec!["images"]),
        (json!(["x"]), vec!["images"]),
        (json!([{}]), vec!["images[0].role", "images[0].base64"]),
        (json!([{ "role": "input", "base64": null }]), vec!["images[0].base64"]),
        (json!([{ "role": "input", "base64": 7 }]), vec!["images[0].base64"]),
        (json!([{ "role": "input", "upload_id": 7 }]), vec!["images[0].upload_id"]),
        (json!([{ "role": "input", "base64": base64, "upload_id": "a5" }]), vec!["images[0].base64"]),
        (json!([{ "role": "Input", "base64": base64 }]), vec!["images[0].role"]),
        (json!([{ "role": "input", "base64": "aGk=" }]), vec!["images[0]"]),
        (json!([{ "role": "input", "base64": base64, "weight": 1 }]), vec!["images[0].weight"]),
        (json!([control(json!({ "controlnet": "lines", "mode": [] }))]), vec!["images[0].mode"]),
        (json!([control(json!({ "controlnet": "union", "mode": "edges" }))]), vec!["images[0].mode"]),
        (json!([control(json!({ "controlnet": "union", "mode": -1 }))]), vec!["images[0].mode"]),
        (json!([control(json!({ "controlnet": "union", "mode": 7 }))]), vec!["images[0].mode"]),
        (json!([control(json!({ "controlnet": "union" }))]), vec!["images[0].mode"]),
        (json!([control(json!({ "controlnet": "lines", "mode": 0 }))]), vec!["images[0].mode"]),
        (json!([control(json!({}))]), vec!["images[0].controlnet"]),
        (json!([control(json!({ "controlnet": "depth" }))]), vec!["images[0].controlnet"]),
        (json!([control(json!({ "controlnet": "lines", "preprocess": "edges" }))]), vec!["images[0].preprocess"]),
        (json!([control(json!({ "controlnet": "lines", "scale": 2.5 }))]), vec!["images[0].scale"]),
        (json!([control(json!({ "controlnet": "lines", "scale": -0.1 }))]), vec!["images[0].scale"]),
        (json!([control(json!({ "controlnet": "lines", "start": 1 }))]), vec!["images[0].start"]),
        (json!([control(json!({ "controlnet": "lines", "end": 1.1 }))]), vec!["images[0].end"]),
        (json!([control(json!({ "controlnet": "lines", "start": 0.5, "end": 0.5 }))]), vec!["images[0].end"]),
        (json!([with("input", &json!({ "scale": 1, "mode": 1 }))]), vec!["images[0].mode", "images[0].scale"]),
        (json!([with("style", &json!({ "preprocess": "canny" }))]), vec!["images[0].preprocess"]),
    ] {
        let mut asked = image(1);
        asked["images"] = images.clone();
        let answer = app.post(&asked).await;
        assert_eq!(answer.fields(), fields, "{images}: {}", answer.text());
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}

#[tokio::test]
async fn depth_needs_its_model() {
    let app = with_card(one_net).await;
    let answer = app.post(&body(1, &[with("control", &json!({ "preprocess": "depth" }))])).await;
    assert_eq!(answer.fields(), ["images[0].preprocess"]);
    done(&app, &body(1, &[with("control", &json!({ "preprocess": "canny" }))])).await;
    let spec = app.control.spec_of(1);
    let [control] = spec.controls() else { panic!("{:?}", spec.controls()) };
    assert_eq!((control.controlnet.as_deref(), control.is_depth_estimated), (Some("lines"), false));
}

#[tokio::test]
async fn what_does_not_go_together_is_refused() {
    let refused = async |app: &TestApp, images: &[Value], padding: Option<u32>| {
        let mut asked = body(1, images);
        if let Some(padding) = padding {
            asked["mask_padding"] = json!(padding);
        }
        app.post(&asked).await.fields()
    };
    let app = with_card(nets).await;
    assert_eq!(refused(&app, &[of("mask", WHITE)], None).await, ["images[0]"], "a mask of nothing");
    assert_eq!(refused(&app, &[of("input", TEAL)], Some(8)).await, ["mask_padding"]);
    assert_eq!(refused(&app, &[of("input", TEAL), of("mask", WHITE)], Some(4097)).await, ["mask_padding"]);
    assert_eq!(refused(&app, &[of("input", TEAL), of("input", TEAL)], None).await, ["images"]);
    assert_eq!(refused(&app, &[of("reference", TEAL)], None).await, ["images"]);
    assert_eq!(refused(&app, &vec![of("style", TEAL); 9], None).await, ["images"]);
    let mut alone = image(1);
    (alone["mask_padding"], alone["strength"]) = (json!(8), json!(0.5));
    assert_eq!(app.post(&alone).await.fields(), ["mask_padding", "strength"]);
    alone["mask_padding"] = json!("8");
    assert_eq!(app.post(&alone).await.fields(), ["mask_padding"]);

    let app = with_card(kontext).await;
    let both = [of("reference", TEAL), with("control", &json!({ "controlnet": "lines" }))];
    assert_eq!(refused(&app, &both, None).await, ["images[1]"]);
}

#[tokio::test]
async fn more_images_than_a_model_takes_are_not_decoded() {
    let app = with_card(nets).await;
    let broken = json!({ "role": "style", "base64": "no base64 at all" });
    let answer = app.post(&body(1, &vec![broken.clone(); 9])).await;
    assert_eq!(answer.fields(), ["images"], "not one of them is told to be broken");
    let answer = app.post(&body(1, &vec![broken; 8])).await;
    assert_eq!(answer.fields().len(), 8);
}

#[tokio::test]
async fn files_that_hurt_are_handled() {
    let app = TestApp::start().await;
    let input = |bytes: &[u8]| {
        let mut asked = image(1);
        asked["images"] = json!([{ "role": "input", "base64": STANDARD.encode(bytes) }]);
        asked
    };
    let mut asked = input(&STANDARD.decode(flat(1, 1, ORANGE)).expect("base64"));
    for side in ["width", "height"] {
        asked.as_object_mut().expect("an object").remove(side);
    }
    let job = done(&app, &asked).await;
    assert_eq!((&job["parameters"]["width"], &job["parameters"]["height"]), (&json!(64), &json!(64)), "enlarged");

    let mut clear = Vec::new();
    let pixels = [ORANGE[0], ORANGE[1], ORANGE[2], 0].repeat(64 * 64);
    PngEncoder::new(&mut clear).write_image(&pixels, 64, 64, ExtendedColorType::Rgba8).expect("encodes");
    let job = done(&app, &input(&clear)).await;
    let id = job["job_id"].as_str().expect("an id");
    let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
    assert_eq!(decoded(&result.bytes), (64, 64, ORANGE), "transparency is dropped");

    // TIFF, little endian: one entry, orientation 6 (rotate right).
    let exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let mut lying = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut lying, 95);
    encoder.set_exif_metadata(exif).expect("JPEG can hold it");
    encoder.write_image(&TEAL.repeat(128 * 64), 128, 64, ExtendedColorType::Rgb8).expect("encodes");
    let mut asked = input(&lying);
    for side in ["width", "height"] {
        asked.as_object_mut().expect("an object").remove(side);
    }
    let job = done(&app, &asked).await;
    assert_eq!((&job["parameters"]["width"], &job["parameters"]["height"]), (&json!(64), &json!(128)), "upright");

    let mut bomb = STANDARD.decode(flat(1, 1, TEAL)).expect("base64");
    bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let sum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
    bomb[29..33].copy_from_slice(&sum);
    let refused = app.post(&input(&bomb)).await;
    assert_eq!(refused.fields(), ["images[0]"]);
    assert!(refused.text().contains("at most 32000000 pixels, not 65535x65535"), "{}", refused.text());
}

/// How many images of unfinished jobs are stored.
async fn kept(app: &TestApp) -> i64 {
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM job_images").fetch_one(app.store.pool()).await;
    count.expect("a count")
}

#[tokio::test]
async fn a_restart_gives_the_same_request() {
    let app = with_card(nets).await;
    app.control.hold();
    app.submit(&image(1)).await;
    app.control.held().await;
    let images = [
        of("input", ORANGE),
        json!({ "role": "mask", "base64": flat(64, 64, WHITE) }),
        with("control", &json!({ "controlnet": "union", "mode": 3, "scale": 0.3, "end": 0.9 })),
        with("control", &json!({ "controlnet": "lines", "preprocess": "depth", "start": 0.2 })),
        with("style", &json!({ "scale": 0.1 })),
    ];
    let mut asked = body(2, &images);
    asked["strength"] = json!(0.7);
    let job = app.submit(&asked).await;
    assert_eq!(kept(&app).await, 5);
    app.crash().await;
    let options = || Options { change_card: nets, ..Options::default() };
    let app = app.restart(options()).await;
    app.until_status(&job, "succeeded").await;
    assert_eq!(kept(&app).await, 0, "deleted with the job's end");
    let again = app.control.spec_of(2);
    // What it would have been without the crash.
    let fresh = TestApp::with(options()).await;
    done(&fresh, &asked).await;
    assert_eq!(again, fresh.control.spec_of(2));
}

#[tokio::test]
async fn an_image_that_is_lost_fails_its_job() {
    let app = with_card(nets).await;
    app.control.hold();
    app.submit(&image(1)).await;
    app.control.held().await;
    let job = app.submit(&body(2, &[of("input", ORANGE), of("mask", WHITE)])).await;
    let delete = "DELETE FROM job_images WHERE job_id = ? AND position = 1";
    sqlx::query(delete).bind(&job).execute(app.store.pool()).await.expect("lost");
    app.crash().await;
    let app = app.restart(Options { change_card: nets, ..Options::default() }).await;
    assert_eq!(app.until_status(&job, "failed").await["error"]["code"], "job_unreadable");
    assert_eq!(kept(&app).await, 0);
}

#[tokio::test]
async fn jobs_of_an_older_version_keep_their_image() {
    let app = TestApp::start().await;
    app.control.hold();
    app.submit(&image(1)).await;
    app.control.held().await;
    let job = app.submit(&body(2, &[of("input", ORANGE)])).await;
    // As it was stored before images had roles.
    let old = "UPDATE jobs SET request = json_set(json_remove(request, '$.images'), '$.input_images', 1) WHERE id = ?";
    sqlx::query(old).bind(&job).execute(app.store.pool()).await.expect("rewritten");
    let tables = "CREATE TABLE job_start_images (job_id TEXT NOT NULL PRIMARY KEY, picture BLOB NOT NULL) STRICT;
                  INSERT INTO job_start_images SELECT job_id, image FROM job_images;
                  DROP TABLE job_images;";
    let migration = include_str!("../../migrations/0019_job_images.sql");
    for statements in [tables, migration] {
        sqlx::raw_sql(statements).execute(app.store.pool()).await.expect("run");
    }
    assert_eq!(kept(&app).await, 1);
    app.crash().await;
    let app = app.restart(Options::default()).await;
    let view = app.until_status(&job, "succeeded").await;
    assert_eq!((&view["parameters"]["input_images"], &view["parameters"]["images"]), (&json!(1), &Value::Null));
    let spec = app.control.spec_of(2);
    assert_eq!((color(&spec.input_image().expect("one").image), spec.given_images().count()), (&ORANGE[..], 1));
    assert_eq!(spec.given_images().next().map(|(role, _, _)| role), Some(ImageRole::Input));
}

#[tokio::test]
async fn every_image_counts_against_the_memory() {
    let three = 3 * 64 * 64 * 3;
    let with_room = |bytes| Options { change_card: one_net, input_images_bytes_max: bytes, ..Options::default() };
    let images = [of("input", ORANGE), of("mask", WHITE), of("control", TEAL)];
    let app = TestApp::with(with_room(three - 1)).await;
    assert_eq!(app.post(&body(1, &images)).await.code(), "queue_full");
    app.submit(&body(1, &images[..2])).await;
    let app = TestApp::with(with_room(three)).await;
    app.submit(&body(1, &images)).await;
}

#[tokio::test]
async fn the_catalog_says_what_images_a_model_takes() {
    let app = with_card(nets).await;
    let models = app.get("/v1/inference/models").await.json();
    let models = models["models"].as_array().expect("a list").clone();
    let model = |id: &str| models.iter().find(|model| model["id"] == id).expect("known").clone();
    let shapes = model(MODEL);
    let expected = json!({
        "input": { "min": 0, "max": 1 }, "mask": { "min": 0, "max": 1 },
        "control": { "min": 0, "max": 4 }, "style": { "min": 0, "max": 8 },
    });
    assert_eq!(shapes["images"], expected);
    assert_eq!((&shapes["min_input_images"], &shapes["max_input_images"]), (&json!(0), &json!(1)));
    let nets = json!([{ "name": "lines", "modes": null }, { "name": "union", "modes": 7 }]);
    assert_eq!((&shapes["controlnets"], &shapes["preprocess"]), (&nets, &json!(["canny", "depth"])));
    let dev = model("black-forest-labs/FLUX.1-dev");
    assert_eq!((&dev["images"], &dev["controlnets"], &dev["preprocess"]), (&json!({}), &json!([]), &json!([])));
}
