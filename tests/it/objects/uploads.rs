//! Uploads in a bucket: there and not on the disk, read from there, and removed, whatever the bucket does meanwhile.

use axum::http::StatusCode;
use serde_json::json;
use time::Duration;

use super::store::{PREFIX, TestStore};
use super::{options, result, start};
use crate::app::{Answer, Options, TestApp, decoded, managing};
use crate::uploads::{files, flat_file, from_upload, upload, uploaded};

const UPLOADS: &str = "/v1/inference/uploads";

/// The ids of the key's uploads, as it is told.
async fn listed(app: &TestApp) -> Vec<String> {
    let list = app.get(UPLOADS).await.json();
    let list = list["data"].as_array().expect("a list");
    list.iter().map(|upload| upload["upload_id"].as_str().expect("an id").to_owned()).collect()
}

async fn remove(app: &TestApp, id: &str) -> StatusCode {
    app.delete(&format!("{UPLOADS}/{id}")).await.status
}

/// Generates from an upload of this gray.
async fn draw_with(app: &TestApp, id: &str, gray: u8) {
    let job = app.submit(&from_upload(id, gray.into())).await;
    app.until_status(&job, "succeeded").await;
    assert_eq!(decoded(&result(app, &job).await.bytes), (64, 64, [gray; 3]));
}

#[track_caller]
fn assert_unavailable(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "storage_unavailable"), "{}", answer.text());
    assert_ne!(answer.header("retry-after"), "");
    let detail = "the bucket does not take uploads, or does not give them";
    assert_eq!(answer.json()["detail"], detail, "and nothing of what the store said");
}

#[tokio::test]
async fn an_upload_is_in_the_bucket_alone_and_a_request_draws_with_it() {
    let store = TestStore::default();
    let app = start(&store).await;
    let id = uploaded(&app, flat_file(90)).await;
    let names = store.uploads().await;
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].starts_with(&format!("{PREFIX}/uploads/")) && names[0].ends_with(&format!("/{id}")), "{names:?}");
    assert_eq!(store.read(&names[0]).await, Some(flat_file(90)));
    assert!(files(&app).is_empty(), "{:?}", files(&app));
    draw_with(&app, &id, 90).await;
    upload(&app, &app.keys.other_inference, &flat_file(90)).await;
    assert_eq!(store.uploads().await.len(), 2, "another key's is another");
    assert_eq!(remove(&app, &id).await, StatusCode::NO_CONTENT);
    assert_eq!((store.read(&names[0]).await, store.uploads().await.len()), (None, 1));
    assert_eq!(app.post(&from_upload(&id, 1)).await.code(), "upload_not_found");
    assert_eq!((listed(&app).await.len(), remove(&app, &id).await), (0, StatusCode::NOT_FOUND));
}

#[tokio::test]
async fn what_the_bucket_does_not_take_is_refused_and_leaves_nothing() {
    let store = TestStore::default();
    let app = start(&store).await;
    store.set_down(true);
    assert_unavailable(&upload(&app, &app.keys.inference, &flat_file(1)).await);
    assert_eq!((listed(&app).await.len(), files(&app).len(), store.uploads().await.len()), (0, 0, 0));
    store.set_down(false);
    assert_eq!(upload(&app, &app.keys.inference, b"GIF89a").await.fields(), ["file"]);
    assert_eq!((files(&app).len(), store.uploads().await.len()), (0, 0));
    let id = uploaded(&app, flat_file(1)).await;
    assert_eq!(listed(&app).await, [id]);
}

#[tokio::test]
async fn what_the_bucket_does_not_give_can_be_used_later_unless_it_is_lost() {
    let store = TestStore::default();
    let app = start(&store).await;
    let id = uploaded(&app, flat_file(7)).await;
    store.set_down(true);
    assert_unavailable(&app.post(&from_upload(&id, 1)).await);
    store.set_down(false);
    draw_with(&app, &id, 7).await;
    let names = store.uploads().await;
    let name = &names[0];
    for other in [&b"short"[..], &[7; 10_000]] {
        store.write(name, other).await;
        let refused = app.post(&from_upload(&id, 2)).await;
        assert_eq!(refused.code(), "upload_not_found", "it is not the upload");
    }
    assert_eq!(uploaded(&app, flat_file(7)).await, id);
    assert_eq!(store.read(name).await, Some(flat_file(7)), "written again");
    draw_with(&app, &id, 7).await;
    store.remove(name).await;
    let refused = app.post(&from_upload(&id, 3)).await;
    assert_eq!(refused.code(), "upload_not_found");
    assert_eq!(refused.json()["errors"][0]["field"], "images[0].upload_id");
}

#[tokio::test]
async fn a_removal_that_fails_is_tried_again_unless_the_file_arrives_again() {
    let store = TestStore::default();
    let app = start(&store).await;
    let (gone, back) = (uploaded(&app, flat_file(1)).await, uploaded(&app, flat_file(2)).await);
    store.set_down(true);
    for id in [&gone, &back] {
        assert_eq!(remove(&app, id).await, StatusCode::NO_CONTENT);
        assert_eq!(app.post(&from_upload(id, 1)).await.code(), "upload_not_found", "out of use at once");
        assert_eq!(remove(&app, id).await, StatusCode::NOT_FOUND);
    }
    assert_eq!((listed(&app).await.len(), app.uploads.sweep().await.expect("swept")), (0, 0));
    assert_unavailable(&upload(&app, &app.keys.inference, &flat_file(2)).await);
    assert_eq!((listed(&app).await.len(), store.uploads().await.len()), (0, 2));
    // What is not removed yet is not forgotten by a restart.
    app.crash().await;
    let app = app.restart(options(store.bucket())).await;
    store.set_down(false);
    assert_eq!(uploaded(&app, flat_file(2)).await, back);
    assert_eq!(app.uploads.sweep().await.expect("swept"), 1);
    let names = store.uploads().await;
    assert!(names.len() == 1 && names[0].ends_with(&back), "{names:?}");
    assert_eq!(listed(&app).await, [back.as_str()]);
    draw_with(&app, &back, 2).await;
}

#[tokio::test]
async fn what_has_expired_or_belongs_to_a_revoked_key_leaves_the_bucket() {
    let store = TestStore::default();
    let app = start(&store).await;
    uploaded(&app, flat_file(1)).await;
    app.clock.advance(Duration::hours(20));
    let young = uploaded(&app, flat_file(2)).await;
    app.clock.advance(Duration::hours(5));
    assert_eq!((listed(&app).await, store.uploads().await.len()), (vec![young], 2));
    store.set_down(true);
    assert_eq!(app.uploads.sweep().await.expect("swept"), 0);
    store.set_down(false);
    assert_eq!(app.uploads.sweep().await.expect("swept"), 1);
    assert_eq!(store.uploads().await.len(), 1);

    let cookie = app.sign_in().await;
    for is_down in [false, true] {
        let body = json!({ "name": format!("test {is_down}"), "scope": { "inference": true } });
        let made = app.send(managing(&cookie, "POST", "/v1/api-keys", Some(&body))).await.json();
        for gray in [3, 4] {
            let answer = upload(&app, made["key"].as_str().expect("a value"), &flat_file(gray)).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        }
        assert_eq!(store.uploads().await.len(), 3);
        store.set_down(is_down);
        let path = format!("/v1/api-keys/{}", made["id"].as_str().expect("an id"));
        assert_eq!(app.send(managing(&cookie, "DELETE", &path, None)).await.status, StatusCode::OK);
        assert_eq!(store.uploads().await.len(), if is_down { 3 } else { 1 });
    }
    store.set_down(false);
    assert_eq!(app.uploads.sweep().await.expect("swept"), 2);
    assert_eq!((store.uploads().await.len(), listed(&app).await.len()), (1, 1));
}

#[tokio::test]
async fn an_upload_is_known_after_a_restart_as_long_as_its_place_is_configured() {
    let app = TestApp::start().await;
    let in_folder = uploaded(&app, flat_file(1)).await;
    app.crash().await;
    let store = TestStore::default();
    let app = app.restart(options(store.bucket())).await;
    draw_with(&app, &in_folder, 1).await;
    let in_bucket = uploaded(&app, flat_file(2)).await;
    assert_eq!((files(&app).len(), store.uploads().await.len()), (1, 1), "each where it was put");
    app.crash().await;
    let app = app.restart(options(store.bucket())).await;
    draw_with(&app, &in_bucket, 2).await;
    app.crash().await;
    let app = app.restart(Options::default()).await;
    assert_eq!(listed(&app).await, [in_folder.as_str()]);
    assert_eq!(app.post(&from_upload(&in_bucket, 3)).await.code(), "upload_not_found");
    assert_eq!(remove(&app, &in_bucket).await, StatusCode::NOT_FOUND);
    app.crash().await;
    let app = app.restart(options(store.bucket())).await;
    draw_with(&app, &in_bucket, 2).await;
    assert_eq!(uploaded(&app, flat_file(1)).await, in_folder);
    assert_eq!((files(&app).len(), store.uploads().await.len()), (0, 2), "what arrives again moves");
    draw_with(&app, &in_folder, 1).await;
}
