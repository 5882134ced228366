//! Uploads: sent, listed, named in requests, limited, and removed; and that each belongs to the key that sent it.

use std::path::PathBuf;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use fluxserve::domain::format::OutputFormat;
use fluxserve::domain::image::RgbImage;
use fluxserve::encode::encode;
use futures_util::stream;
use serde_json::{Value, json};
use time::Duration;

use crate::app::{Answer, Options, TestApp, decoded, image, managing, request};

const UPLOADS: &str = "/v1/inference/uploads";

/// A small PNG of one gray.
pub(crate) fn flat_file(gray: u8) -> Vec<u8> {
    let image = RgbImage::new(64, 48, vec![gray; 64 * 48 * 3]).expect("three bytes per pixel");
    encode(&image, OutputFormat::Png).expect("encodes")
}

/// A form with one part.
fn form(field: &str, bytes: &[u8]) -> Vec<u8> {
    let disposition = format!("Content-Disposition: form-data; name=\"{field}\"; filename=\"a.png\"");
    let head = format!("--xyz\r\n{disposition}\r\nContent-Type: image/png\r\n\r\n");
    [head.as_bytes(), bytes, b"\r\n--xyz--\r\n"].concat()
}

fn post(key: &str, content_type: &str, body: Body) -> Request<Body> {
    let request = Request::post(UPLOADS).header("host", "worker.test").header("x-api-key", key);
    request.header("content-type", content_type).body(body).expect("a request")
}

/// Uploads a file in a form.
pub(crate) async fn upload(app: &TestApp, key: &str, bytes: &[u8]) -> Answer {
    app.send(post(key, "multipart/form-data; boundary=xyz", form("file", bytes).into())).await
}

/// Uploads a file by itself, and returns its id.
pub(crate) async fn uploaded(app: &TestApp, bytes: Vec<u8>) -> String {
    let answer = app.send(post(&app.keys.inference, "image/png", bytes.into())).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    answer.json()["upload_id"].as_str().expect("an id").to_owned()
}

/// A small image that starts from an upload.
pub(crate) fn from_upload(id: &str, seed: u64) -> Value {
    let mut body = image(seed);
    body["images"] = json!([{ "role": "input", "upload_id": id }]);
    body
}

/// The files of uploads on the disk.
pub(crate) fn files(app: &TestApp) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(app.folder.path().join("uploads")) else { return Vec::new() };
    entries.map(|entry| entry.expect("one").path()).collect()
}

#[tokio::test]
async fn an_upload_is_kept_once_listed_and_removed() {
    let app = TestApp::start().await;
    assert_eq!(app.get(UPLOADS).await.json(), json!({ "data": [] }));
    let kept = upload(&app, &app.keys.inference, &flat_file(7)).await;
    assert_eq!(kept.status, StatusCode::CREATED, "{}", kept.text());
    let first = kept.json();
    let id = first["upload_id"].as_str().expect("an id").to_owned();
    assert_eq!(id.len(), 64);
    assert_eq!((&first["width"], &first["height"], &first["format"]), (&json!(64), &json!(48), &json!("png")));
    assert_eq!(first["bytes"], json!(flat_file(7).len()));
    app.clock.advance(Duration::HOUR);
    assert_eq!(uploaded(&app, flat_file(7)).await, id, "the same file");
    let list = app.get(UPLOADS).await.json();
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
    assert_ne!(list["data"][0]["expires_at"], first["expires_at"], "its day has begun again");
    let path = format!("{UPLOADS}/{id}");
    let others = Some(app.keys.other_inference.as_str());
    assert_eq!(app.send(request("GET", UPLOADS, others, None)).await.json(), json!({ "data": [] }));
    assert_eq!(app.send(request("DELETE", &path, others, None)).await.code(), "upload_not_found");
    assert_eq!(files(&app).len(), 1);
    let removed = app.delete(&path).await;
    assert_eq!((removed.status, removed.bytes.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!((app.get(UPLOADS).await.json(), files(&app).len()), (json!({ "data": [] }), 0));
    for path in [path.as_str(), "/v1/inference/uploads/a5", "/v1/inference/uploads/..%2Ffluxserve.db"] {
        assert_eq!(app.delete(path).await.code(), "upload_not_found", "{path}");
    }
}

#[tokio::test]
async fn a_request_names_an_upload_of_its_key_and_the_job_has_a_copy() {
    let app = TestApp::start().await;
    let id = uploaded(&app, flat_file(90)).await;
    app.control.hold();
    app.submit(&image(1)).await;
    app.control.held().await;
    let job = app.submit(&from_upload(&id, 2)).await;
    assert_eq!(app.delete(&format!("{UPLOADS}/{id}")).await.status, StatusCode::NO_CONTENT);
    app.crash().await;
    let app = app.restart(Options::default()).await;
    app.until_status(&job, "succeeded").await;
    let result = app.get(&format!("/v1/inference/jobs/{job}/result")).await;
    assert_eq!(decoded(&result.bytes), (64, 64, [90, 90, 90]));

    let missing = app.post(&from_upload(&id, 3)).await;
    assert_eq!((missing.status.as_u16(), missing.code().as_str()), (404, "upload_not_found"));
    assert_eq!(missing.json()["errors"][0]["field"], "images[0].upload_id");
    let mut also = from_upload(&id, 3);
    also["steps"] = json!(0);
    assert_eq!(app.post(&also).await.fields(), ["steps", "images[0].upload_id"]);
    let id = uploaded(&app, flat_file(91)).await;
    let other = request("POST", "/v1/inference/image", Some(&app.keys.all), Some(&from_upload(&id, 4)));
    assert_eq!(app.send(other).await.code(), "upload_not_found", "it belongs to another key");
    let cookie = app.sign_in().await;
    let playground = managing(&cookie, "POST", "/v1/playground/image", Some(&from_upload(&id, 5)));
    assert_eq!(app.send(playground).await.code(), "upload_not_found", "the administrator has none");
    let gone = files(&app);
    std::fs::remove_file(&gone[0]).expect("a file");
    assert_eq!(app.post(&from_upload(&id, 6)).await.code(), "upload_not_found", "its file is lost");
}

#[tokio::test]
async fn what_is_no_upload_is_refused_and_leaves_nothing() {
    let app = TestApp::start().await;
    let key = app.keys.inference.clone();
    let multipart = "multipart/form-data; boundary=xyz";
    for bytes in [&b""[..], b"GIF89a", &flat_file(1)[..20]] {
        assert_eq!(upload(&app, &key, bytes).await.fields(), ["file"]);
    }
    let large = vec![0; 16 * 1024 * 1024 + 1];
    let at_once = app.send(post(&key, "image/webp", large.clone().into())).await;
    assert_eq!(at_once.code(), "body_too_large", "{}", at_once.text());
    assert!(at_once.text().contains("16777216"), "{}", at_once.text());
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        large.chunks(1 << 20).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let in_pieces = post(&key, "image/png", Body::from_stream(stream::iter(pieces)));
    assert_eq!(app.send(in_pieces).await.code(), "body_too_large");
    let mut announced = post(&key, multipart, Body::from("x"));
    announced.headers_mut().insert("content-length", 17_000_000_u32.into());
    assert_eq!(app.send(announced).await.code(), "body_too_large");
    for (content_type, code) in [
        ("text/plain", "unsupported_media_type"),
        ("application/json", "unsupported_media_type"),
        ("multipart/form-data", "unsupported_media_type"),
        ("multipart/form-data; boundary=other", "invalid_request"),
    ] {
        let answer = app.send(post(&key, content_type, form("file", &flat_file(1)).into())).await;
        assert_eq!(answer.code(), code, "{content_type}");
    }
    let other = post(&key, multipart, form("image", &flat_file(1)).into());
    assert_eq!(app.send(other).await.fields(), ["image"]);
    let once = form("file", &flat_file(1));
    let twice = [&once[..once.len() - "--xyz--\r\n".len()], &once[..]].concat();
    assert_eq!(app.send(post(&key, multipart, twice.into())).await.fields(), ["file"]);
    assert_eq!(app.send(post(&key, multipart, Body::from("--xyz--"))).await.fields(), ["file"]);
    let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    assert_eq!(app.send(post(&key, "image/png", stalled)).await.code(), "body_timeout");
    assert_eq!(app.get(UPLOADS).await.json(), json!({ "data": [] }));
    // The threads that write notice it by themselves.
    for _ in 0..10_000 {
        if files(&app).is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert!(files(&app).is_empty(), "{:?}", files(&app));
}

#[tokio::test]
async fn uploads_expire_after_a_day() {
    let app = TestApp::start().await;
    let old = uploaded(&app, flat_file(1)).await;
    app.clock.advance(Duration::hours(20));
    uploaded(&app, flat_file(2)).await;
    app.clock.advance(Duration::hours(4));
    assert_eq!(app.post(&from_upload(&old, 1)).await.code(), "upload_not_found", "also before the sweep");
    assert_eq!(app.get(UPLOADS).await.json()["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(files(&app).len(), 2);
    assert_eq!(app.uploads.sweep().await.expect("swept"), 1);
    assert_eq!(files(&app).len(), 1);
}

#[tokio::test]
async fn the_uploads_of_a_revoked_key_go() {
    let app = TestApp::start().await;
    let cookie = app.sign_in().await;
    let body = json!({ "name": "test", "scope": { "inference": true } });
    let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&body))).await.json();
    let key = made["key"].as_str().expect("a value");
    assert_eq!(upload(&app, key, &flat_file(1)).await.status, StatusCode::CREATED);
    uploaded(&app, flat_file(1)).await;
    assert_eq!(files(&app).len(), 2);
    let path = format!("/v1/api-keys/{}", made["id"].as_str().expect("an id"));
    assert_eq!(app.send(managing(&cookie, "DELETE", &path, None)).await.status, StatusCode::OK);
    assert_eq!(files(&app).len(), 1);
}

#[tokio::test]
async fn a_restart_keeps_uploads_and_removes_what_a_kill_has_left() {
    let app = TestApp::start().await;
    let id = uploaded(&app, flat_file(1)).await;
    let kept = files(&app);
    let folder = app.folder.path().join("uploads");
    let orphan = format!("018f3c1e-9d5b-7a2c-8e4f-000000000001_{}", "a5".repeat(32));
    for name in ["018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f.part", &orphan] {
        std::fs::write(folder.join(name), "half").expect("written");
    }
    app.crash().await;
    let app = app.restart(Options::default()).await;
    assert_eq!(files(&app), kept);
    assert_eq!(app.get(UPLOADS).await.json()["data"][0]["upload_id"], json!(id));
    app.submit(&from_upload(&id, 1)).await;
}
