//! LoRAs: added, listed, asked for, limited to some keys, kept for jobs, and removed.

use std::path::Path;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use fluxserve::http::HttpSettings;
use futures_util::stream;
use serde_json::{Value, json};

use crate::app::{Answer, MODEL, Options, TestApp, image, request};
use crate::management::Administrator;

const LORAS: &str = "/v1/loras";

/// A recorded adapter, or a broken one.
pub(crate) fn adapter(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/lora/adapters");
    std::fs::read(folder.join(format!("{name}.safetensors"))).expect("a recorded file")
}

/// A form with a file, after its name if it has one.
fn form(name: Option<&str>, file_name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    if let Some(name) = name {
        let head = format!("--xyz\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\n{name}\r\n");
        body.extend_from_slice(head.as_bytes());
    }
    let disposition = format!("Content-Disposition: form-data; name=\"file\"; filename=\"{file_name}\"");
    body.extend_from_slice(format!("--xyz\r\n{disposition}\r\n\r\n").as_bytes());
    body.extend_from_slice(bytes);
    body.extend_from_slice(b"\r\n--xyz--\r\n");
    body
}

fn post(path: &str, content_type: &str, body: Body) -> Request<Body> {
    let request = Request::post(path).header("host", "worker.test").header("content-type", content_type);
    request.body(body).expect("a request")
}

impl Administrator<'_> {
    pub(crate) async fn upload(&self, name: Option<&str>, file_name: &str, bytes: &[u8]) -> Answer {
        let body = form(name, file_name, bytes);
        self.send(post(LORAS, "multipart/form-data; boundary=xyz", body.into())).await
    }

    /// Adds a LoRA and returns its id.
    pub(crate) async fn add_lora(&self, name: &str, bytes: &[u8]) -> String {
        let answer = self.upload(Some(name), "x.safetensors", bytes).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.json()["id"].as_str().expect("an id").to_owned()
    }
}

/// A small image with these LoRAs.
fn with_loras(seed: u64, loras: &Value) -> Value {
    let mut body = image(seed);
    body["loras"] = loras.clone();
    body
}

fn files(app: &TestApp) -> Vec<String> {
    let folder = app.folder.path().join("loras");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.expect("one").file_name().into_string().expect("UTF-8")).collect()
}

#[tokio::test]
async fn a_lora_is_added_listed_used_and_removed() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let bytes = adapter("c1_ai_toolkit");
    let added = administrator.upload(None, "Pen & ink.safetensors", &bytes).await;
    assert_eq!(added.status, StatusCode::CREATED, "{}", added.text());
    let lora = added.json();
    let (name, length) = (json!("Pen - ink"), json!(bytes.len()));
    assert_eq!((&lora["name"], &lora["bytes"], &lora["base"]), (&name, &length, &json!("FLUX.1")));
    assert_eq!(lora["added_by"], "administrator");
    let id = lora["id"].as_str().expect("an id");
    assert_eq!(files(&app), [format!("{id}.safetensors")]);
    assert_eq!(administrator.get(LORAS).await, json!({ "data": [lora] }));
    assert_eq!(administrator.get(&format!("{LORAS}/{id}")).await, lora);
    assert_eq!(administrator.get(&format!("{LORAS}/Pen%20-%20ink")).await, lora);
    let usable = app.get("/v1/inference/loras").await.json();
    assert_eq!((&usable["loras"][0]["id"], &usable["loras"][0]["name"]), (&json!(id), &json!("Pen - ink")));

    let body = with_loras(5, &json!([{ "id": id, "scale": -0.25 }, { "id": "Pen - ink" }]));
    let done = app.post_with(&body, &[("prefer", "wait=20")]).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text());
    let told = json!([{ "id": id, "scale": -0.25 }, { "id": id, "scale": 1.0 }]);
    assert_eq!(done.json()["parameters"]["loras"], told);
    let uses = app.control.loras_of(5);
    assert_eq!(uses.iter().map(|lora| lora.scale).collect::<Vec<_>>(), [-0.25, 1.0]);
    for lora in &uses {
        assert_eq!((lora.id.as_str(), std::fs::read(&lora.file).expect("a file") == bytes), (id, true));
    }

    let removed = administrator.ask("DELETE", &format!("{LORAS}/{id}"), None).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{}", removed.text());
    assert!(files(&app).is_empty());
    assert_eq!(administrator.ask("DELETE", &format!("{LORAS}/{id}"), None).await.code(), "lora_not_found");
    let log = administrator.get("/v1/audit?limit=2").await;
    let told = |at: usize| (log["data"][at]["action"].clone(), log["data"][at]["detail"]["lora_id"].clone());
    assert_eq!([told(0), told(1)], [(json!("lora_removed"), json!(id)), (json!("lora_added"), json!(id))]);
}

#[tokio::test]
async fn a_file_is_added_once_by_itself_or_in_a_form() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let bytes = adapter("d1_xlabs");
    let raw = async |path: &str| {
        let answer = administrator.send(post(path, "application/octet-stream", bytes.clone().into())).await;
        (answer.status.as_u16(), answer.json()["name"].as_str().expect("a name").to_owned())
    };
    assert_eq!(raw("/v1/loras?name=pen").await, (201, "pen".to_owned()));
    assert_eq!(raw("/v1/loras?name=other").await, (200, "pen".to_owned()), "it is there already");
    assert_eq!(administrator.upload(None, "ink.safetensors", &bytes).await.status, StatusCode::OK);
    assert_eq!(files(&app).len(), 1);
    let log = administrator.get("/v1/audit?limit=100").await;
    let entries = log["data"].as_array().expect("a list").iter();
    assert_eq!(entries.filter(|entry| entry["action"] == "lora_added").count(), 1);
    let second = administrator.upload(None, "pen.safetensors", &adapter("d2_xlabs_prefixed")).await;
    assert_eq!(second.json()["name"], "pen-2", "a file's own name may get a number");
}

#[tokio::test]
async fn a_lora_is_added_from_the_hub() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let add = async |body: Value| administrator.ask("POST", LORAS, Some(body)).await;
    let added = add(json!({ "repository": "test/loras", "file": "d1_xlabs.safetensors", "name": "pen" })).await;
    assert_eq!((added.status, &added.json()["name"]), (StatusCode::CREATED, &json!("pen")), "{}", added.text());
    let again = add(json!({ "repository": "test/loras", "file": "d1_xlabs.safetensors" })).await;
    assert_eq!(again.status, StatusCode::OK);
    let named = add(json!({ "repository": "test/loras", "file": "b1_kohya.safetensors" })).await;
    assert_eq!(named.json()["name"], "b1_kohya", "by its file");
    let unknown = add(json!({ "repository": "nobody/nothing" })).await;
    assert_eq!((unknown.status.as_u16(), unknown.code()), (400, "lora_rejected".to_owned()));
    let expected = json!([{ "field": "repository", "reason": "`nobody/nothing` is not on the hub" }]);
    assert_eq!(unknown.json()["errors"], expected);
    assert_eq!(add(json!({ "file": 7, "size": 1 })).await.fields(), ["repository", "file", "size"]);
    assert_eq!(files(&app).len(), 2);
}

#[tokio::test]
async fn broken_files_are_refused_with_their_own_words_and_leave_nothing() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    for (file, words) in [
        ("j1_wrong_shape", "has shape [4, 72]"),
        ("j2_wrong_shape_out", "has shape [376, 4]"),
        ("j3_rank_mismatch", "has rank 6"),
        ("j4_missing_up", "has a down factor, and no up factor"),
        ("j5_unknown_only", "nothing in it is a change of FLUX.1"),
        ("j7_nan", "has NaN in it"),
        ("j8_inf", "has inf in it"),
        ("j9_rank0", "has rank 0"),
        ("j10_sdxl", "an adapter for Stable Diffusion XL, not for FLUX.1"),
        ("j11_no_lora_keys", "a weight of a model, not of an adapter"),
        ("j12_alpha_nan", "has NaN in it"),
        ("j13_empty", "it has no tensors"),
        ("j14_truncated", "not a complete safetensors file"),
        ("j15_integer", "has type I8"),
        ("j16_dim3", "has shape [4, 64, 1]"),
    ] {
        let refused = administrator.upload(None, "mine.safetensors", &adapter(file)).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "lora_rejected".to_owned()), "{file}");
        let error = refused.json()["errors"][0].clone();
        let reason = error["reason"].as_str().expect("a reason");
        assert!(error["field"] == "file" && reason.contains(words), "{file}: {reason}");
        let folder = app.folder.path().display().to_string();
        assert!(!refused.text().contains(&folder) && !refused.text().contains(".part"), "{file}: {reason}");
    }
    assert!(files(&app).is_empty(), "{:?}", files(&app));
    assert_eq!(administrator.get(LORAS).await, json!({ "data": [] }));
}

#[tokio::test]
async fn what_is_no_upload_is_refused() {
    let app = TestApp::with(Options { lora_bytes_max: 1000, ..Options::default() }).await;
    let administrator = Administrator::of(&app).await;
    let large = vec![0; 1001];
    let at_once = post(LORAS, "application/octet-stream", large.clone().into());
    assert_eq!(administrator.send(at_once).await.code(), "body_too_large");
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        large.chunks(100).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let in_pieces = post(LORAS, "application/octet-stream", Body::from_stream(stream::iter(pieces)));
    assert_eq!(administrator.send(in_pieces).await.code(), "body_too_large");
    let around: Vec<Result<Bytes, std::io::Error>> = (0..10).map(|_| Ok(Bytes::from(vec![b'x'; 10_000]))).collect();
    let around = post(LORAS, "multipart/form-data; boundary=xyz", Body::from_stream(stream::iter(around)));
    assert_eq!(administrator.send(around).await.code(), "body_too_large", "also what is not of the file");
    let mut huge = post(LORAS, "multipart/form-data; boundary=xyz", Body::from("x"));
    huge.headers_mut().insert("content-length", 100_000_u32.into());
    assert_eq!(administrator.send(huge).await.code(), "body_too_large");

    for (content_type, code) in [
        ("text/plain", "unsupported_media_type"),
        ("multipart/form-data", "unsupported_media_type"),
        ("multipart/form-data; boundary=other", "invalid_request"),
    ] {
        let answer = administrator.send(post(LORAS, content_type, form(None, "x", b"x").into())).await;
        assert_eq!(answer.code(), code, "{content_type}");
    }
    let twice = form(Some("pen"), "x", b"x");
    let twice = post("/v1/loras?name=ink", "multipart/form-data; boundary=xyz", twice.into());
    assert_eq!(administrator.send(twice).await.fields(), ["name"]);
    let nothing = b"--xyz\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\npen\r\n--xyz--";
    let nothing = post(LORAS, "multipart/form-data; boundary=xyz", Body::from(&nothing[..]));
    assert_eq!(administrator.send(nothing).await.fields(), ["file"]);
    assert_eq!(administrator.upload(Some("a:b"), "x", b"x").await.fields(), ["name"]);
    let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    assert_eq!(administrator.send(post(LORAS, "application/octet-stream", stalled)).await.code(), "body_timeout");
    let mut foreign = post(LORAS, "application/octet-stream", Body::from("x"));
    foreign.headers_mut().insert("origin", "http://evil.test".parse().expect("a value"));
    assert_eq!(administrator.send(foreign).await.code(), "foreign_origin");
}

#[tokio::test]
async fn all_mistakes_are_told_at_once() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    administrator.add_lora("pen", &adapter("d1_xlabs")).await;
    let unknown = app.post(&with_loras(1, &json!([{ "id": "pen" }, { "id": "ink" }]))).await;
    assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "lora_not_found"));
    let expected = json!([{ "field": "loras[1].id", "reason": "there is no such LoRA" }]);
    assert_eq!(unknown.json()["errors"], expected);
    let mut body = with_loras(1, &json!([{ "id": "ink" }, { "id": "pen", "scale": 11 }]));
    body["steps"] = json!(0);
    assert_eq!(app.post(&body).await.fields(), ["steps", "loras[1].scale", "loras[0].id"]);
    for (loras, fields) in [
        (json!("pen"), vec!["loras"]),
        (json!(["pen"]), vec!["loras"]),
        (json!([{}]), vec!["loras[0].id"]),
        (json!([{ "id": "pen", "scale": "1" }]), vec!["loras[0].scale"]),
        (json!([{ "id": "pen", "strength": 1 }]), vec!["loras[0].strength"]),
        (json!(vec![json!({ "id": "pen" }); 9]), vec!["loras"]),
    ] {
        assert_eq!(app.post(&with_loras(1, &loras)).await.fields(), fields, "{loras}");
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
    let most = with_loras(2, &json!(vec![json!({ "id": "pen", "scale": 10 }); 8]));
    assert_eq!(app.post_with(&most, &[("prefer", "wait=20")]).await.status, StatusCode::OK);
    assert_eq!(app.control.loras_of(2).len(), 8);
}

#[tokio::test]
async fn openais_route_and_the_playground_take_loras() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    administrator.add_lora("pen", &adapter("d1_xlabs")).await;
    let generate = async |loras: Value| {
        let mut body = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2, "seed": 7, "n": 2 });
        body["loras"] = loras;
        app.send(request("POST", "/v1/images/generations", Some(&app.keys.inference), Some(&body))).await
    };
    assert_eq!(generate(json!([{ "id": "pen", "scale": 0.5 }])).await.status, StatusCode::OK);
    assert_eq!([app.control.loras_of(7)[0].scale, app.control.loras_of(8)[0].scale], [0.5, 0.5]);
    let unknown = generate(json!([{ "id": "ink" }])).await;
    assert_eq!((unknown.status.as_u16(), &unknown.openai_error()["code"]), (404, &json!("lora_not_found")));
    let body = with_loras(9, &json!([{ "id": "pen" }]));
    let accepted = administrator.ask("POST", "/v1/playground/image", Some(body)).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text());
    assert_eq!(app.jobs.wait_until_idle(std::time::Duration::from_secs(20)).await, 0);
    assert_eq!(app.control.loras_of(9).len(), 1);
}

#[tokio::test]
async fn a_key_uses_only_the_loras_that_it_is_limited_to() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let pen = administrator.add_lora("pen", &adapter("d1_xlabs")).await;
    administrator.add_lora("ink", &adapter("b1_kohya")).await;
    let limits = json!({ "name": "limited", "scope": { "inference": true }, "limits": { "loras": [pen] } });
    let (path, key) = administrator.create(limits).await;
    let status = async |lora: &str| {
        let body = with_loras(1, &json!([{ "id": lora }]));
        app.send(request("POST", "/v1/inference/image", Some(&key), Some(&body))).await
    };
    let names = async || {
        let list = app.send(request("GET", "/v1/inference/loras", Some(&key), None)).await.json();
        let loras = list["loras"].as_array().expect("a list").iter();
        loras.map(|lora| lora["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((status("pen").await.status.as_u16(), names().await), (202, vec!["pen".to_owned()]));
    let refused = status("ink").await;
    assert_eq!((refused.status.as_u16(), refused.code()), (403, "lora_forbidden".to_owned()));
    assert_eq!(refused.json()["errors"][0]["field"], "loras[0].id");
    // It cannot find out which others there are.
    let unknown = status("chalk").await;
    assert_eq!((unknown.status, unknown.code()), (refused.status, refused.code()));
    assert_eq!(unknown.json()["errors"], refused.json()["errors"]);
    for lora in ["ink", "chalk"] {
        let mut body = with_loras(1, &json!([{ "id": lora }]));
        body["steps"] = json!(0);
        let mistakes = app.send(request("POST", "/v1/inference/image", Some(&key), Some(&body))).await;
        assert_eq!(mistakes.json()["errors"][1]["reason"], "is not one of the key's LoRAs", "{lora}");
    }
    let edit = async |loras: Value| {
        let edited = administrator.ask("PATCH", &path, Some(json!({ "limits": { "loras": loras } }))).await;
        assert_eq!(edited.status, StatusCode::OK, "{}", edited.text());
        edited.json()["limits"]["loras"].clone()
    };
    assert_eq!(edit(json!(["ink", "later"])).await, json!(["ink", "later"]));
    assert_eq!((status("pen").await.status.as_u16(), status("ink").await.status.as_u16()), (403, 202));
    assert_eq!(status("later").await.code(), "lora_not_found", "its list names it");
    assert_eq!(edit(json!([])).await, json!([]));
    assert_eq!((status("ink").await.status.as_u16(), names().await), (403, Vec::new()));
    assert_eq!(edit(Value::Null).await, Value::Null);
    assert_eq!((status("ink").await.status.as_u16(), names().await.len()), (202, 2));
    let wrong = administrator.ask("PATCH", &path, Some(json!({ "limits": { "loras": [""] } }))).await;
    assert_eq!(wrong.fields(), ["limits.loras"]);
}

#[tokio::test]
async fn a_lora_in_use_stays_and_a_waiting_job_keeps_it_over_a_crash() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let id = administrator.add_lora("pen", &adapter("d1_xlabs")).await;
    app.control.hold();
    let running = app.submit(&image(1)).await;
    app.control.held().await;
    app.until_status(&running, "running").await;
    let twice = json!([{ "id": "pen", "scale": 0.1 }, { "id": "pen", "scale": 0.2 }]);
    let waiting = app.submit(&with_loras(2, &twice)).await;
    let refused = administrator.ask("DELETE", "/v1/loras/pen", None).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (409, "lora_in_use".to_owned()));
    app.crash().await;
    // What an upload has left that was interrupted by the crash.
    let left = app.folder.path().join("loras");
    for name in ["left.part", &format!("{}.safetensors", "a5".repeat(32))] {
        std::fs::write(left.join(name), "half").expect("written");
    }

    let options = Options::default();
    options.control.hold();
    let app = app.restart(options).await;
    let administrator = Administrator::of(&app).await;
    assert_eq!(files(&app), [format!("{id}.safetensors")]);
    assert_eq!(administrator.ask("DELETE", "/v1/loras/pen", None).await.code(), "lora_in_use");
    app.control.release();
    let view = app.until_status(&waiting, "succeeded").await;
    assert_eq!(view["parameters"]["loras"][1], json!({ "id": id, "scale": 0.2 }));
    let uses = app.control.loras_of(2);
    assert_eq!(uses.iter().map(|lora| lora.scale).collect::<Vec<_>>(), [0.1, 0.2]);
    let removed = administrator.ask("DELETE", "/v1/loras/pen", None).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{}", removed.text());
}

#[tokio::test]
async fn a_job_whose_lora_has_vanished_fails_with_a_reason() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let id = administrator.add_lora("pen", &adapter("d1_xlabs")).await;
    app.control.hold();
    app.submit(&image(1)).await;
    app.control.held().await;
    let waiting = app.submit(&with_loras(2, &json!([{ "id": "pen" }]))).await;
    app.crash().await;
    std::fs::remove_file(app.folder.path().join(format!("loras/{id}.safetensors"))).expect("there");
    let app = app.restart(Options::default()).await;
    let view = app.until_status(&waiting, "failed").await;
    assert_eq!(view["error"]["code"], "lora_missing");
    let refused = app.post(&with_loras(3, &json!([{ "id": "pen" }]))).await;
    assert_eq!(refused.code(), "lora_not_found", "its file is missing");
    let administrator = Administrator::of(&app).await;
    assert_eq!(administrator.upload(None, "x", &adapter("d1_xlabs")).await.status, StatusCode::OK);
    let body = with_loras(3, &json!([{ "id": "pen" }]));
    assert_eq!(app.post_with(&body, &[("prefer", "wait=20")]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_prompt_names_loras_only_where_the_operator_allows_it() {
    let mut body = image(4);
    body["prompt"] = json!("a fox <lora:pen:0.8> in snow");
    let plain = TestApp::start().await;
    let done = plain.post_with(&body, &[("prefer", "wait=20")]).await.json();
    assert_eq!((&done["parameters"]["prompt"], &done["parameters"]["loras"]), (&body["prompt"], &Value::Null));

    let http = HttpSettings { reads_loras_in_prompt: true, ..Options::default().http };
    let app = TestApp::with(Options { http, ..Options::default() }).await;
    let unknown = app.post(&body).await;
    assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "lora_not_found"));
    let reason = "`<lora:pen>`: there is no such LoRA";
    assert_eq!(unknown.json()["errors"], json!([{ "field": "prompt", "reason": reason }]));
    let administrator = Administrator::of(&app).await;
    let id = administrator.add_lora("pen", &adapter("d1_xlabs")).await;
    body["loras"] = json!([{ "id": id, "scale": 2 }]);
    let done = app.post_with(&body, &[("prefer", "wait=20")]).await.json();
    assert_eq!(done["parameters"]["prompt"], "a fox in snow");
    assert_eq!(done["parameters"]["loras"], json!([{ "id": id, "scale": 2.0 }, { "id": id, "scale": 0.8 }]));
    for (prompt, fields) in [("<lora:pen:1>", vec!["prompt"]), ("a fox <lora:pen:strong>", vec!["prompt"])] {
        body["prompt"] = json!(prompt);
        assert_eq!(app.post(&body).await.fields(), fields, "{prompt}");
    }
}
