//! Images in a bucket: there before their jobs have succeeded, on the disk while it is down, and removed with their jobs.

mod refusing;
mod store;
mod uploads;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use fluxserve::jobs::ResultBucket;

use crate::app::{Answer, Options, TestApp, decoded, image, request};
use crate::fake_engine::colour;
use store::{PREFIX, TestStore};

const PATIENCE: Duration = Duration::from_secs(20);

fn options(bucket: ResultBucket) -> Options {
    Options { bucket: Some(bucket), ..Options::default() }
}

async fn start(store: &TestStore) -> TestApp {
    TestApp::with(options(store.bucket())).await
}

fn name_of(job: &str) -> String {
    format!("{PREFIX}/results/{job}.png")
}

fn file_of(app: &TestApp, job: &str) -> PathBuf {
    app.folder.path().join("results").join(format!("{job}.png"))
}

fn waiting(app: &TestApp) -> usize {
    fs::read_dir(app.folder.path().join("results")).expect("a folder").count()
}

async fn generated(app: &TestApp, seed: u64) -> String {
    let id = app.submit(&image(seed)).await;
    app.until_status(&id, "succeeded").await;
    id
}

async fn result(app: &TestApp, job: &str) -> Answer {
    app.get(&format!("/v1/inference/jobs/{job}/result")).await
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "not {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_ready(app: &TestApp, status: StatusCode) -> Answer {
    let started = Instant::now();
    loop {
        let answer = app.get("/readyz").await;
        if answer.status == status {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "{}", answer.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_image_is_in_the_bucket_when_its_job_has_succeeded() {
    let store = TestStore::default();
    let app = start(&store).await;
    let id = generated(&app, 1).await;
    let bytes = store.read(&name_of(&id)).await.expect("in the bucket");
    assert_eq!(decoded(&bytes), (64, 64, colour(1)));
    assert_eq!(waiting(&app), 0, "and not on the disk");
    let answer = result(&app, &id).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "image/png"));
    assert!(answer.bytes == bytes, "the same bytes");
    assert_eq!(app.get("/readyz").await.json(), serde_json::json!({ "status": "ready" }));
}

#[tokio::test]
async fn images_wait_on_the_disk_while_the_bucket_is_down() {
    let store = TestStore::default();
    let app = start(&store).await;
    let before = generated(&app, 1).await;
    store.set_down(true);
    let ids = [generated(&app, 2).await, generated(&app, 3).await, generated(&app, 4).await];
    assert_eq!(waiting(&app), ids.len());
    for (seed, id) in (2..).zip(&ids) {
        assert_eq!(decoded(&result(&app, id).await.bytes), (64, 64, colour(seed)));
    }
    let answer = app.get("/readyz").await;
    assert_eq!(answer.status, StatusCode::OK, "images can be generated and stored");
    assert_eq!(answer.json()["degraded"][0], "the bucket does not accept images: 3 wait on the disk");
    store.set_down(false);
    until("empty", || waiting(&app) == 0).await;
    let written = store.written();
    assert_eq!(written[..2], [name_of(&before), name_of(&ids[0])], "the oldest first");
    for (seed, id) in (1..).zip([&before].into_iter().chain(&ids)) {
        assert!(written.contains(&name_of(id)));
        assert_eq!(decoded(&result(&app, id).await.bytes), (64, 64, colour(seed)));
    }
    assert!(app.get("/readyz").await.json().get("degraded").is_none());
    generated(&app, 5).await;
    assert_eq!(waiting(&app), 0, "again without a way over the disk");
}

#[tokio::test]
async fn what_waits_survives_a_crash() {
    let store = TestStore::default();
    let app = start(&store).await;
    let before = generated(&app, 2).await;
    store.set_down(true);
    let id = generated(&app, 1).await;
    app.crash().await;
    let app = app.restart(options(store.bucket())).await;
    assert_eq!(decoded(&result(&app, &id).await.bytes), (64, 64, colour(1)), "still down, and readable");
    assert_eq!(result(&app, &before).await.code(), "storage_unavailable", "that one is in the bucket alone");
    store.set_down(false);
    until("empty", || waiting(&app) == 0).await;
    for (seed, id) in [(1, &id), (2, &before)] {
        assert_eq!(decoded(&result(&app, id).await.bytes), (64, 64, colour(seed)));
    }
    assert_eq!(store.written(), [name_of(&before), name_of(&id)]);
}

#[tokio::test]
async fn no_more_images_wait_than_may() {
    let store = TestStore::default();
    // One block of a disk.
    let app = TestApp::with(options(ResultBucket { waiting_bytes_max: 4096, ..store.bucket() })).await;
    store.set_down(true);
    let first = generated(&app, 1).await;
    let second = app.submit(&image(2)).await;
    let refusal = until_ready(&app, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(refusal.code(), "not_ready");
    let detail = "the bucket does not accept images, and no more of them can wait on the disk";
    assert_eq!(refusal.json()["detail"], detail);
    assert_eq!((waiting(&app), file_of(&app, &first).exists()), (1, true));
    store.set_down(false);
    app.until_status(&second, "succeeded").await;
    until("empty", || waiting(&app) == 0).await;
    for (seed, id) in (1..).zip([&first, &second]) {
        assert_eq!(decoded(&result(&app, id).await.bytes), (64, 64, colour(seed)));
    }
    until_ready(&app, StatusCode::OK).await;
}

#[tokio::test]
async fn images_are_removed_with_their_jobs_as_soon_as_the_bucket_allows() {
    let store = TestStore::default();
    let app = start(&store).await;
    let id = generated(&app, 1).await;
    app.clock.advance(time::Duration::hours(25));
    store.set_down(true);
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0);
    app.until_status(&id, "succeeded").await;
    store.set_down(false);
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1, "not forgotten");
    assert_eq!(store.read(&name_of(&id)).await, None);
    assert_eq!(app.get(&format!("/v1/inference/jobs/{id}")).await.code(), "job_not_found");
}

#[tokio::test]
async fn an_image_that_waits_is_removed_with_its_job() {
    let store = TestStore::default();
    let app = start(&store).await;
    store.set_down(true);
    let id = generated(&app, 1).await;
    app.clock.advance(time::Duration::hours(25));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0, "not while it is down: it may be in the bucket, too");
    assert!(file_of(&app, &id).exists());
    store.set_down(false);
    until("empty", || waiting(&app) == 0).await;
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert_eq!(store.read(&name_of(&id)).await, None);
}

#[tokio::test]
async fn the_limit_of_space_holds_for_the_bucket() {
    let store = TestStore::default();
    let app = TestApp::with(Options { results_bytes_max: 1, ..options(store.bucket()) }).await;
    let id = generated(&app, 1).await;
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert_eq!(store.read(&name_of(&id)).await, None);
    assert_eq!(result(&app, &id).await.code(), "picture_gone");
}

#[tokio::test]
async fn what_an_earlier_attempt_has_left_is_replaced() {
    let store = TestStore::default();
    let app = start(&store).await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    app.control.held().await;
    store.write(&name_of(&id), b"another image").await;
    fs::write(file_of(&app, &id), b"another one").expect("writable");
    app.control.release();
    app.until_status(&id, "succeeded").await;
    let bytes = store.read(&name_of(&id)).await.expect("in the bucket");
    assert_eq!(decoded(&bytes), (64, 64, colour(1)));
    assert!(result(&app, &id).await.bytes == bytes, "the same bytes");
    assert!(!file_of(&app, &id).exists(), "a file would be read first, and would replace it");
}

#[tokio::test]
async fn a_folder_of_images_moves_to_a_new_bucket() {
    let app = TestApp::start().await;
    let id = generated(&app, 1).await;
    assert!(file_of(&app, &id).exists());
    app.stop_cleanly().await;
    let store = TestStore::default();
    let app = app.restart(options(store.bucket())).await;
    until("moved", || waiting(&app) == 0).await;
    assert_eq!(store.written(), [name_of(&id)]);
    assert_eq!(decoded(&result(&app, &id).await.bytes), (64, 64, colour(1)));
}

#[tokio::test]
async fn links_lead_to_the_bucket_if_they_shall() {
    let store = TestStore::default();
    let bucket = ResultBucket { redirect_life: Some(Duration::from_secs(30)), ..store.bucket() };
    let app = TestApp::with(options(bucket)).await;
    let id = generated(&app, 1).await;
    let ask = async |method: &str, id: &str, key: Option<&str>| {
        let view = app.get(&format!("/v1/inference/jobs/{id}")).await.json();
        let link = view["result_url"].as_str().expect("a URL").trim_start_matches("http://worker.test").to_owned();
        app.send(request(method, &link, key, None)).await
    };
    let link = async |id: &str, key: Option<&str>| ask("GET", id, key).await;
    let answer = link(&id, None).await;
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(answer.header("location"), format!("https://bucket.test/{}?life=30", name_of(&id)));
    assert_eq!((answer.header("cache-control"), answer.header("x-job-id")), ("no-store", id.as_str()));
    assert_eq!(result(&app, &id).await.status, StatusCode::OK, "a key is not sent along to a bucket");
    let with_key = link(&id, Some(&app.keys.inference)).await;
    assert_eq!(with_key.status, StatusCode::OK, "neither is one that a client sends beside a link");
    assert_eq!(decoded(&with_key.bytes), (64, 64, colour(1)));
    assert_eq!(ask("HEAD", &id, None).await.status, StatusCode::OK, "the bucket's link is for GET alone");
    store.set_down(true);
    let waits = generated(&app, 2).await;
    assert_eq!(decoded(&link(&waits, None).await.bytes), (64, 64, colour(2)), "it is not in the bucket yet");
    let wrong = format!("/v1/inference/jobs/{id}/result?expires=1&signature=x");
    assert_eq!(app.send(request("GET", &wrong, None, None)).await.code(), "link_refused");
}
