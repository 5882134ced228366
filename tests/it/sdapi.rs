//! The routes of AUTOMATIC1111's API, with the bodies that its clients send.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluxserve::http::HttpSettings;
use serde_json::{Value, json};

use crate::app::{Answer, MODEL, Options, TestApp, decoded, image, managing, request};
use crate::edits::{data_url, halves, png};
use crate::fake_engine::{PREVIEW_RED_PER_STEP, colour};
use crate::loras::adapter;
use crate::management::Administrator;

const TXT2IMG: &str = "/sdapi/v1/txt2img";
const IMG2IMG: &str = "/sdapi/v1/img2img";
const PROGRESS: &str = "/sdapi/v1/progress";
const OPTIONS: &str = "/sdapi/v1/options";

const TEAL: [u8; 4] = [10, 120, 130, 255];
const WHITE: [u8; 4] = [255; 4];
const BLACK: [u8; 4] = [0, 0, 0, 255];

async fn post(app: &TestApp, path: &str, body: &Value) -> Answer {
    app.send(request("POST", path, Some(&app.keys.inference), Some(body))).await
}

/// A small image of this seed, with these fields more.
fn text(seed: u64, more: &Value) -> Value {
    let mut body = json!({ "prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": seed });
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// A change of an image, with these fields more.
fn change(seed: u64, more: &Value) -> Value {
    let mut body = json!({ "prompt": "a fox", "steps": 10, "seed": seed, "init_images": [STANDARD.encode(png(TEAL))] });
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

#[track_caller]
fn images(answer: &Answer) -> Vec<Vec<u8>> {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let body = answer.json();
    let images = body["images"].as_array().expect("images").iter();
    images.map(|image| STANDARD.decode(image.as_str().expect("base64")).expect("base64")).collect()
}

#[track_caller]
fn assert_refused(answer: &Answer, code: &str, words: &str) {
    assert_eq!(answer.sdapi_code(), code);
    let detail = answer.json()["detail"].as_str().expect("a text").to_owned();
    assert!(detail.contains(words), "{words:?} in {detail}");
}

#[tokio::test]
async fn without_the_switch_there_are_no_such_routes() {
    let http = HttpSettings { has_sdapi: false, ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    for (method, path) in [("POST", TXT2IMG), ("GET", PROGRESS), ("GET", OPTIONS), ("PUT", OPTIONS)] {
        for key in [None, Some(app.keys.inference.as_str())] {
            let answer = app.send(request(method, path, key, None)).await;
            assert_eq!((answer.status, answer.sdapi_code().as_str()), (StatusCode::NOT_FOUND, "not_found"), "{path}");
        }
    }
}

#[tokio::test]
async fn a_key_is_a_password_a_user_a_bearer_token_or_its_own_header() {
    let app = TestApp::start().await;
    let key = app.keys.inference.as_str();
    let status = async |authorization: &str, path: &str| {
        let request = Request::get(path).header("host", "worker.test").header("authorization", authorization);
        app.send(request.body(Body::empty()).expect("a request")).await.status
    };
    let basic = |pair: String| format!("Basic {}", STANDARD.encode(pair));
    for authorization in [basic(format!("me:{key}")), basic(format!("{key}:")), format!("Bearer {key}")] {
        assert_eq!(status(&authorization, OPTIONS).await, StatusCode::OK);
    }
    assert_eq!(status(&basic("me:wrong".to_owned()), OPTIONS).await, StatusCode::UNAUTHORIZED);
    let elsewhere = status(&basic(format!("me:{key}")), "/v1/inference/jobs").await;
    assert_eq!(elsewhere, StatusCode::UNAUTHORIZED, "a browser must not be able to send a key by itself");
    let refused = app.send(request("GET", OPTIONS, Some(&app.keys.kubernetes), None)).await;
    assert_eq!((refused.status, refused.sdapi_code().as_str()), (StatusCode::FORBIDDEN, "scope_forbidden"));
    let challenge = app.send(request("GET", OPTIONS, None, None)).await;
    assert!(challenge.header("www-authenticate").starts_with("Bearer"), "no browser shall ask for a password");
}

#[tokio::test]
async fn an_answer_has_the_images_and_what_they_were_made_of() {
    let app = TestApp::start().await;
    let more = json!({ "batch_size": 2, "n_iter": 2, "distilled_cfg_scale": 2.5 });
    let answer = post(&app, TXT2IMG, &text(7, &more)).await;
    let files = images(&answer);
    let colours: Vec<_> = files.iter().map(|file| decoded(file)).collect();
    let expected: Vec<_> = (7..11).map(|seed| (64, 64, colour(seed))).collect();
    assert_eq!(colours, expected);
    assert!(files.iter().all(|file| file.starts_with(b"\x89PNG")));
    let body = answer.json();
    let parameters = &body["parameters"];
    assert_eq!((&parameters["seed"], &parameters["batch_size"]), (&json!(7), &json!(2)));
    assert_eq!((&parameters["distilled_cfg_scale"], &parameters["cfg_scale"]), (&json!(2.5), &json!(1.0)));
    let info: Value = serde_json::from_str(body["info"].as_str().expect("a text")).expect("JSON in a text");
    assert_eq!((&info["seed"], &info["all_seeds"]), (&json!(7), &json!([7, 8, 9, 10])));
    let line = info["infotexts"][1].as_str().expect("a text");
    assert!(line.starts_with("a fox\nSteps: 2, Sampler: Euler") && line.contains("Seed: 8, Size: 64x64"), "{line}");
    for id in info["job_ids"].as_array().expect("ids") {
        let view = app.get(&format!("/v1/inference/jobs/{}", id.as_str().expect("an id"))).await.json();
        assert_eq!(view["status"], "succeeded");
    }
    let without = post(&app, TXT2IMG, &text(1, &json!({ "send_images": false }))).await;
    assert!(images(&without).is_empty());
}

#[tokio::test]
async fn what_sillytavern_and_open_webui_send_is_drawn() {
    let app = TestApp::start().await;
    let sillytavern = json!({
        "url": "http://127.0.0.1:8080", "auth": "me:secret", "prompt": "a fox", "negative_prompt": "rain",
        "sampler_name": "Euler a", "scheduler": "Automatic", "steps": 2, "cfg_scale": 7, "width": 64, "height": 64,
        "restore_faces": false, "enable_hr": false, "hr_upscaler": "Latent", "hr_scale": 2, "hr_additional_modules": [],
        "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": 3, "clip_skip": 1,
        "override_settings": { "CLIP_stop_at_last_layers": 1, "sd_vae": null }, "override_settings_restore_afterwards": true,
        "save_images": true, "send_images": true, "do_not_save_grid": false, "do_not_save_samples": false,
    });
    let answer = post(&app, TXT2IMG, &sillytavern).await;
    assert_eq!(images(&answer).len(), 1);
    let spec = app.control.spec_of(3);
    let negative = spec.negative().expect("a second pass");
    assert_eq!((negative.prompt.as_str(), negative.scale), ("rain", 7.0));
    assert!(!answer.text().contains("secret"), "what a client sends of itself is not repeated");
    let open_webui = json!({
        "prompt": "a fox", "batch_size": 1, "width": 64, "height": 64, "steps": 2, "negative_prompt": "", "seed": -1,
        "cfg_scale": 7, "sampler_name": "Euler", "scheduler": "Simple",
    });
    assert_eq!(images(&post(&app, TXT2IMG, &open_webui).await).len(), 1);
}

#[tokio::test]
async fn a_negative_prompt_without_a_scale_above_one_costs_nothing() {
    let app = TestApp::start().await;
    for (seed, more) in [
        (1, json!({ "negative_prompt": "rain", "cfg_scale": 1 })),
        (2, json!({ "negative_prompt": "", "cfg_scale": 7 })),
        (3, json!({ "cfg_scale": 7 })),
    ] {
        images(&post(&app, TXT2IMG, &text(seed, &more)).await);
        assert_eq!(app.control.spec_of(seed).negative(), None, "{more}");
    }
}

#[tokio::test]
async fn what_is_not_done_here_is_refused_by_name() {
    let app = TestApp::start().await;
    for (more, words) in [
        (json!({ "enable_hr": true }), "`enable_hr` is not supported"),
        (json!({ "tiling": true }), "`tiling`"),
        (json!({ "styles": ["anime"] }), "`styles`"),
        (json!({ "alwayson_scripts": { "ADetailer": {} } }), "`alwayson_scripts`"),
        (json!({ "script_name": "x/y plot" }), "`script_name`"),
        (json!({ "subseed_strength": 0.5 }), "`subseed_strength`"),
        (json!({ "override_settings": { "upscaler_for_img2img": "x" } }), "`override_settings.upscaler_for_img2img`"),
        (json!({ "bach_size": 2 }), "`bach_size`"),
        (json!({ "batch_size": 4, "n_iter": 3 }), "`batch_size` times `n_iter` must be at most 10"),
        (json!({ "n_iter": 0 }), "`n_iter` must be at least 1"),
        (json!({ "seed": -2 }), "`seed`"),
        (json!({ "seed": "7" }), "`seed`"),
        (json!({ "width": 63 }), "`width`"),
        (json!({ "distilled_cfg_scale": 1000 }), "`distilled_cfg_scale`"),
        (json!({ "negative_prompt": "x", "cfg_scale": 1000 }), "`cfg_scale`"),
        (json!({ "send_images": "no" }), "`send_images` must be true or false"),
    ] {
        assert_refused(&post(&app, TXT2IMG, &text(1, &more)).await, "invalid_request", words);
    }
    let off =
        json!({ "enable_hr": false, "tiling": null, "styles": [], "alwayson_scripts": {}, "script_name": "None" });
    images(&post(&app, TXT2IMG, &text(1, &off)).await);
    let unknown = text(1, &json!({ "override_settings": { "sd_model_checkpoint": "nobody/nothing" } }));
    assert_refused(&post(&app, TXT2IMG, &unknown).await, "model_not_found", "no such model");
    let mut not_json = request("POST", TXT2IMG, Some(&app.keys.inference), Some(&text(1, &json!({}))));
    not_json.headers_mut().insert("content-type", "text/plain".parse().expect("a value"));
    assert_refused(&app.send(not_json).await, "unsupported_media_type", "media type");
}

#[tokio::test]
async fn an_image_is_changed_as_far_as_its_strength_says() {
    let app = TestApp::start().await;
    let answer = post(&app, IMG2IMG, &change(1, &json!({}))).await;
    assert_eq!(decoded(&images(&answer)[0]), (64, 64, [10, 120, 130]), "the fake engine returns its input's color");
    let start = |seed| app.control.spec_of(seed).input_image().expect("an input image").strength;
    assert_eq!(start(1), 0.75);
    let more = json!({ "denoising_strength": 0.3, "init_images": [data_url(&png(TEAL))], "mask": "" });
    images(&post(&app, IMG2IMG, &change(2, &more)).await);
    assert_eq!((start(2), app.control.spec_of(2).mask()), (0.3, None));
    for (more, words) in [
        (json!({ "init_images": [] }), "`init_images` is required"),
        (json!({ "init_images": ["aGk", "aGk="] }), "`init_images` must be at most 1"),
        (json!({ "init_images": ["https://a.b/c.png"] }), "`init_images[0]`"),
        (json!({ "denoising_strength": 0 }), "`denoising_strength` must be above 0"),
        (json!({ "resize_mode": 1 }), "`resize_mode`"),
        (json!({ "mask": "x" }), "`mask`"),
        (json!({ "inpainting_mask_invert": 2 }), "`inpainting_mask_invert` must be true or false"),
    ] {
        assert_refused(&post(&app, IMG2IMG, &change(3, &more)).await, "invalid_request", words);
    }
}

#[tokio::test]
async fn white_is_repainted_and_black_if_the_mask_is_inverted() {
    let app = TestApp::start().await;
    let mask = STANDARD.encode(halves(WHITE, BLACK));
    for (seed, invert, expected) in [(1, json!(0), [255, 0]), (2, json!(1), [0, 255]), (3, json!(true), [0, 255])] {
        let more = json!({ "mask": mask, "mask_blur": 4, "inpainting_fill": 1, "inpaint_full_res": false,
                           "inpainting_mask_invert": invert });
        images(&post(&app, IMG2IMG, &change(seed, &more)).await);
        let spec = app.control.spec_of(seed);
        let pixels = spec.mask().expect("a mask").pixels();
        assert_eq!([pixels[0], pixels[32 * 3]], expected, "{invert}");
        assert!(spec.overlay().is_none());
    }
    let more =
        json!({ "mask": mask, "inpaint_full_res": true, "inpaint_full_res_padding": 8, "width": 64, "height": 64 });
    images(&post(&app, IMG2IMG, &change(4, &more)).await);
    assert_eq!(app.control.spec_of(4).overlay().map(|overlay| overlay.padding), Some(8));
}

#[tokio::test]
async fn progress_and_interrupt_are_of_the_keys_own_requests() {
    let app = TestApp::start().await;
    let idle = app.get(PROGRESS).await.json();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
    app.control.hold();
    // By another route: neither shown nor interrupted here.
    let other = app.submit(&image(99)).await;
    let body = text(1, &json!({ "batch_size": 2, "steps": 50 }));
    let (answer, ()) = tokio::join!(post(&app, TXT2IMG, &body), async {
        let shown = loop {
            let shown = app.get(&format!("{PROGRESS}?skip_current_image=true")).await.json();
            if shown["progress"] != 0.0 {
                break shown;
            }
            app.control.let_pass(1);
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        assert_eq!((&shown["state"]["job_count"], &shown["current_image"]), (&json!(2), &json!(null)));
        assert!(shown["progress"].as_f64().is_some_and(|progress| progress < 1.0), "{shown}");
        assert_eq!(shown["state"]["sampling_steps"], 50);
        let foreign = request("GET", PROGRESS, Some(&app.keys.other_inference), None);
        assert_eq!(app.send(foreign).await.json()["state"]["job_count"], 0);
        let foreign = request("POST", "/sdapi/v1/interrupt", Some(&app.keys.other_inference), None);
        assert_eq!(app.send(foreign).await.status, StatusCode::OK);
        assert_eq!(app.get(PROGRESS).await.json()["state"]["job_no"], 0);
        let stopped = app.send(request("POST", "/sdapi/v1/interrupt", Some(&app.keys.inference), None)).await;
        assert_eq!((stopped.status, stopped.json()), (StatusCode::OK, json!({})));
        app.control.release();
    });
    assert_refused(&answer, "job_canceled", "canceled");
    app.until_status(&other, "succeeded").await;
    assert_eq!(app.get(PROGRESS).await.json()["state"]["job_count"], 0);
    let unknown = app.get(&format!("{PROGRESS}?skip_current_image=perhaps")).await;
    assert_refused(&unknown, "invalid_request", "`skip_current_image` must be true or false");
}

#[tokio::test]
async fn progress_has_a_preview_once_one_was_asked_for() {
    let app = TestApp::start().await;
    app.control.hold();
    let body = text(1, &json!({}));
    let (answer, ()) = tokio::join!(post(&app, TXT2IMG, &body), async {
        app.control.held().await;
        while app.get(PROGRESS).await.json()["state"]["job_count"] == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        app.control.let_pass(1);
        let image = loop {
            let shown = app.get(PROGRESS).await.json();
            if let Some(image) = shown["current_image"].as_str() {
                break STANDARD.decode(image).expect("base64");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        assert_eq!(decoded(&image), (1, 1, [PREVIEW_RED_PER_STEP, 0, 0]));
        app.control.release();
    });
    images(&answer);
}

#[tokio::test]
async fn limits_are_those_of_the_key() {
    let app = TestApp::start().await;
    let cookie = app.sign_in().await;
    let new = json!({ "name": "a", "scope": { "inference": true }, "limits": { "requests_per_minute": 3 } });
    let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&new))).await.json();
    let ask = async |count: u32| {
        let body = text(1, &json!({ "batch_size": count }));
        app.send(request("POST", TXT2IMG, made["key"].as_str(), Some(&body))).await
    };
    assert_refused(&ask(4).await, "invalid_request", "`batch_size` must be at most 3");
    assert_eq!(images(&ask(2).await).len(), 2);
    let limited = ask(1).await;
    assert_eq!((limited.status, limited.sdapi_code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limited"));
    assert_ne!(limited.header("retry-after"), "");
}

#[tokio::test]
async fn the_options_are_the_model_and_what_has_no_effect() {
    let app = TestApp::start().await;
    assert_eq!(app.get(OPTIONS).await.json()["sd_model_checkpoint"], MODEL);
    for body in [
        json!({ "sd_model_checkpoint": MODEL }),
        json!({ "sd_model_checkpoint": format!("{MODEL} [0123abcd]") }),
        json!({ "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 2 }),
        // As clients do that change one of them.
        app.get(OPTIONS).await.json(),
    ] {
        let answer = post(&app, OPTIONS, &body).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!(null)), "{body}");
        assert_eq!(app.get(OPTIONS).await.json()["sd_model_checkpoint"], MODEL);
    }
    let refused = post(&app, OPTIONS, &json!({ "sd_model_checkpoint": "nobody/nothing" })).await;
    assert_refused(&refused, "model_not_found", "model");
    let dev = json!({ "sd_model_checkpoint": "black-forest-labs/FLUX.1-dev" });
    assert_refused(&post(&app, OPTIONS, &dev).await, "model_unavailable", "does not serve it");
    assert_refused(&post(&app, OPTIONS, &json!({ "upcast_attn": true })).await, "invalid_request", "`upcast_attn`");
}

#[tokio::test]
async fn the_lists_have_what_clients_read_of_them() {
    let app = TestApp::start().await;
    let list = async |name: &str| {
        let answer = app.get(&format!("/sdapi/v1/{name}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}: {}", answer.text());
        answer.json()
    };
    let models = list("sd-models").await;
    assert_eq!((&models[0]["title"], &models[0]["model_name"]), (&json!(MODEL), &json!(MODEL)));
    assert_eq!(models.as_array().map(Vec::len), Some(1));
    assert_eq!(list("samplers").await[0]["name"], "Euler");
    assert_eq!(list("schedulers").await[0]["label"], "Simple");
    assert_eq!(list("upscalers").await[0]["name"], "None");
    assert_eq!((list("latent-upscale-modes").await, list("sd-vae").await), (json!([]), json!([])));
    assert!(list("cmd-flags").await.is_object());
    assert_eq!(list("loras").await, json!([]));
    Administrator::of(&app).await.add_lora("pen", &adapter("d1_xlabs")).await;
    assert_eq!(list("loras").await[0]["name"], "pen");
}

#[tokio::test]
async fn a_prompt_names_loras_only_where_that_is_allowed() {
    let app = TestApp::start().await;
    Administrator::of(&app).await.add_lora("pen", &adapter("d1_xlabs")).await;
    let body = |seed| text(seed, &json!({ "prompt": "a fox <lora:pen:0.5>" }));
    images(&post(&app, TXT2IMG, &body(1)).await);
    assert_eq!((app.control.loras_of(1).len(), app.control.spec_of(1).prompt()), (0, "a fox <lora:pen:0.5>"));
    let http = HttpSettings { reads_loras_in_prompt: true, ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    Administrator::of(&app).await.add_lora("pen", &adapter("d1_xlabs")).await;
    images(&post(&app, TXT2IMG, &body(2)).await);
    assert_eq!((app.control.loras_of(2)[0].scale, app.control.spec_of(2).prompt()), (0.5, "a fox"));
    let missing = text(3, &json!({ "prompt": "a fox <lora:ink>" }));
    assert_refused(&post(&app, TXT2IMG, &missing).await, "lora_not_found", "`<lora:ink>`");
}
