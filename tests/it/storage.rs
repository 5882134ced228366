//! Full, missing and failing disks, and clock jumps: generated images are kept if possible, and only expired data is
//! deleted.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use fluxserve::jobs::rotate_link_secret;
use serde_json::Value;

use crate::app::{Options, TestApp, decoded, image};
use crate::fake_engine::{Call, colour};

/// Long enough for all retries.
const SOME_TIME: Duration = Duration::from_millis(600);

fn results(app: &TestApp) -> PathBuf {
    app.folder.path().join("results")
}

fn file_of(app: &TestApp, job: &str) -> PathBuf {
    results(app).join(format!("{job}.png"))
}

/// Replaces the results folder with a file: nothing can be written there, not even by root.
fn break_results(app: &TestApp) {
    fs::rename(results(app), app.folder.path().join("away")).expect("movable");
    fs::write(results(app), "in the way").expect("writable");
}

fn repair_results(app: &TestApp) {
    fs::remove_file(results(app)).expect("removable");
    fs::rename(app.folder.path().join("away"), results(app)).expect("movable");
}

async fn generated(app: &TestApp, seed: u64) -> String {
    let id = app.submit(&image(seed)).await;
    app.until_status(&id, "succeeded").await;
    id
}

async fn result_status(app: &TestApp, job: &str) -> StatusCode {
    app.get(&format!("/v1/inference/jobs/{job}/result")).await.status
}

async fn number(app: &TestApp, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(app.store.pool()).await.expect("a number")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_full_disk_the_oldest_images_make_room_for_the_newest() {
    let app = TestApp::start().await;
    let old = generated(&app, 1).await;
    app.clock.advance(time::Duration::seconds(1));
    let young = generated(&app, 2).await;
    app.control.hold();
    let id = app.submit(&image(3)).await;
    app.control.held().await;
    // Writes there fail for lack of space, as on a full disk.
    let unfinished = results(&app).join(format!("{id}.part"));
    std::os::unix::fs::symlink("/dev/full", &unfinished).expect("a link");
    app.control.release();
    app.until_status(&id, "succeeded").await;
    let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
    assert_eq!(decoded(&result.bytes), (64, 64, colour(3)));
    assert_eq!(result_status(&app, &old).await, StatusCode::GONE);
    assert!(!file_of(&app, &old).exists());
    let shed = number(&app, "SELECT COUNT(*) FROM jobs WHERE result_bytes = 0").await;
    assert!((1..=2).contains(&shed), "{shed}: as many as it takes");
    assert_eq!(file_of(&app, &young).exists(), shed == 1);
}

#[tokio::test]
async fn a_missing_results_folder_is_created_again() {
    let app = TestApp::start().await;
    fs::remove_dir_all(results(&app)).expect("removable");
    let id = generated(&app, 1).await;
    assert_eq!(result_status(&app, &id).await, StatusCode::OK);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(results(&app)).expect("there").permissions().mode() & 0o777, 0o700);
    }
    fs::remove_dir_all(results(&app)).expect("removable");
    assert_eq!(app.get("/readyz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_disk_that_comes_back_gets_the_image() {
    let app = TestApp::with(Options { jobs_max: 1, ..Options::default() }).await;
    break_results(&app);
    let id = app.submit(&image(1)).await;
    app.control.until_called(Call::Finish(1)).await;
    tokio::time::sleep(SOME_TIME).await;
    assert_eq!(app.get(&format!("/v1/inference/jobs/{id}")).await.json()["status"], "running");
    assert_eq!(app.post(&image(2)).await.code(), "queue_full", "it keeps its place");
    repair_results(&app);
    app.until_status(&id, "succeeded").await;
    assert_eq!(result_status(&app, &id).await, StatusCode::OK);
    let charged = number(&app, "SELECT SUM(images) FROM work_by_day").await;
    assert_eq!(charged, 1);
}

#[tokio::test]
async fn an_image_that_the_disk_never_accepts_fails_and_costs_its_owner_nothing() {
    let app = TestApp::with(Options { storage_patience: SOME_TIME, ..Options::default() }).await;
    break_results(&app);
    let id = app.submit(&image(1)).await;
    let view = app.until_status(&id, "failed").await;
    assert_eq!(view["error"]["code"], "storage_failed");
    assert_eq!(number(&app, "SELECT COALESCE(SUM(pixel_steps), 0) FROM work_by_day").await, 0);
    repair_results(&app);
    generated(&app, 2).await;
    assert_eq!(number(&app, "SELECT SUM(pixel_steps) FROM work_by_day").await, 64 * 64 * (2 + 4));
}

#[tokio::test]
async fn an_image_that_waits_for_the_disk_at_a_stop_is_retried_at_the_next_start() {
    let app = TestApp::start().await;
    break_results(&app);
    let id = app.submit(&image(1)).await;
    app.control.until_called(Call::Finish(1)).await;
    tokio::time::sleep(SOME_TIME).await;
    app.stop_cleanly().await;
    repair_results(&app);
    let app = app.restart(Options::default()).await;
    app.until_status(&id, "succeeded").await;
    assert_eq!(result_status(&app, &id).await, StatusCode::OK);
}

#[tokio::test]
async fn readiness_reports_that_images_cannot_be_stored() {
    let app = TestApp::start().await;
    assert_eq!(app.get("/readyz").await.status, StatusCode::OK);
    assert_eq!(fs::read_dir(results(&app)).expect("a folder").count(), 0, "the check leaves no file");
    break_results(&app);
    let until = async |status: StatusCode| {
        let started = Instant::now();
        loop {
            let answer = app.get("/readyz").await;
            if answer.status == status {
                return answer;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{}", answer.text());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let refusal = until(StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(refusal.code(), "not_ready");
    assert_eq!(refusal.json()["detail"], "the results folder does not accept images");
    repair_results(&app);
    until(StatusCode::OK).await;
}

#[tokio::test]
async fn readiness_reports_that_job_after_job_cannot_be_stored() {
    let app = TestApp::start().await;
    let outage = "CREATE TRIGGER outage BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'told to fail'); END";
    sqlx::query(outage).execute(app.store.pool()).await.expect("a trigger");
    for seed in 0..3 {
        assert_eq!(app.post(&image(seed)).await.code(), "storage_unavailable");
    }
    let answer = app.get("/readyz").await;
    assert_eq!(answer.code(), "not_ready", "although a check of the database succeeds");
    assert_eq!(answer.json()["detail"], "the database does not accept writes");
    sqlx::query("DROP TRIGGER outage").execute(app.store.pool()).await.expect("no trigger");
    generated(&app, 4).await;
    // The outcome is reused for a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(app.get("/readyz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn one_undeletable_file_does_not_keep_the_others() {
    let app = TestApp::with(Options { ended_jobs_per_owner_max: 1, ..Options::default() }).await;
    let stubborn = generated(&app, 1).await;
    fs::remove_file(file_of(&app, &stubborn)).expect("removable");
    fs::create_dir_all(file_of(&app, &stubborn).join("in the way")).expect("writable");
    app.clock.advance(time::Duration::seconds(1));
    let other = generated(&app, 2).await;
    app.clock.advance(time::Duration::hours(24));
    let beyond_share = generated(&app, 3).await;
    let young = generated(&app, 4).await;
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 2, "one by its age, one by its owner's limit");
    for gone in [&other, &beyond_share] {
        assert_eq!(app.get(&format!("/v1/inference/jobs/{gone}")).await.code(), "job_not_found");
        assert!(!file_of(&app, gone).exists());
    }
    assert_eq!(result_status(&app, &young).await, StatusCode::OK);
    app.until_status(&stubborn, "succeeded").await;
    fs::remove_dir_all(file_of(&app, &stubborn)).expect("removable");
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1, "it is deleted as soon as possible");
}

#[tokio::test]
async fn prompts_of_swept_jobs_remain_in_no_file() {
    let app = TestApp::start().await;
    let mut body = image(1);
    let prompt = "a fox that must not be found afterwards";
    body["prompt"] = Value::from(prompt);
    let id = app.submit(&body).await;
    app.until_status(&id, "succeeded").await;
    let is_readable = || {
        ["fluxserve.db", "fluxserve.db-wal"].iter().any(|name| {
            let bytes = fs::read(app.folder.path().join(name)).expect("readable");
            bytes.windows(prompt.len()).any(|window| window == prompt.as_bytes())
        })
    };
    assert!(is_readable());
    app.clock.advance(time::Duration::hours(25));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert!(!is_readable());
}

#[tokio::test]
async fn the_disk_budget_is_kept_although_one_image_cannot_be_deleted() {
    let app = TestApp::with(Options { results_bytes_max: 1, ..Options::default() }).await;
    let stubborn = generated(&app, 1).await;
    fs::remove_file(file_of(&app, &stubborn)).expect("removable");
    fs::create_dir_all(file_of(&app, &stubborn).join("in the way")).expect("writable");
    app.clock.advance(time::Duration::seconds(1));
    let other = generated(&app, 2).await;
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert_eq!(result_status(&app, &other).await, StatusCode::GONE);
}

#[tokio::test]
async fn only_images_without_a_job_are_deleted() {
    let app = TestApp::start().await;
    let kept = generated(&app, 1).await;
    app.control.hold();
    let unfinished = app.submit(&image(2)).await;
    app.control.held().await;
    let folder = results(&app);
    let fresh = folder.join("job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e60.png");
    let old = |name: &str| {
        let path = folder.join(name);
        let two_hours_ago = SystemTime::now() - Duration::from_hours(2);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).expect("writable");
        file.set_modified(two_hours_ago).expect("ours");
        path
    };
    fs::write(&fresh, "may become a job's").expect("writable");
    let orphan = old("job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f.png");
    let wrong_format = old(&format!("{kept}.jpg"));
    let mine = old(&format!("{kept}.png"));
    let foreign = old("notes.txt");
    let crashed = old(&format!("{unfinished}.png"));
    app.crash().await;
    let options = Options::default();
    options.control.hold();
    let app = app.restart(options).await;
    let started = Instant::now();
    while orphan.exists() || wrong_format.exists() {
        assert!(started.elapsed() < Duration::from_secs(20), "an orphan stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(fresh.exists() && mine.exists() && foreign.exists() && crashed.exists());
    assert_eq!(result_status(&app, &kept).await, StatusCode::OK);
    app.control.release();
    app.until_status(&unfinished, "succeeded").await;
}

#[tokio::test]
async fn a_clock_that_jumps_for_a_minute_deletes_no_jobs() {
    let app = TestApp::start().await;
    let id = generated(&app, 1).await;
    let leap = time::Duration::days(500);
    app.clock.set_by(leap);
    app.clock.advance(time::Duration::minutes(1));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0);
    app.clock.set_by(-leap);
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0);
    assert_eq!(result_status(&app, &id).await, StatusCode::OK);
    assert_eq!(number(&app, "SELECT COUNT(*) FROM work_by_day").await, 1);
    // A jump back deletes nothing either, and elapsed time counts.
    app.clock.set_by(-leap);
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0);
    app.clock.set_by(leap);
    app.clock.advance(time::Duration::minutes(1));
    app.jobs.sweep().await.expect("a sweep");
    app.clock.advance(time::Duration::hours(25));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
}

#[tokio::test]
async fn a_start_that_cannot_be_stored_is_stored_later_and_counts() {
    let app = TestApp::start().await;
    let outage = "CREATE TRIGGER outage BEFORE UPDATE ON jobs WHEN NEW.status = 'running'
                  BEGIN SELECT RAISE(ABORT, 'told to fail'); END";
    sqlx::query(outage).execute(app.store.pool()).await.expect("a trigger");
    app.control.hold();
    let id = app.submit(&image(1)).await;
    app.control.held().await;
    tokio::time::sleep(SOME_TIME).await;
    assert_eq!(app.get(&format!("/v1/inference/jobs/{id}")).await.json()["status"], "queued");
    sqlx::query("DROP TRIGGER outage").execute(app.store.pool()).await.expect("no trigger");
    app.until_status(&id, "running").await;
    assert_eq!(number(&app, "SELECT attempts FROM jobs").await, 1);

    sqlx::query(outage).execute(app.store.pool()).await.expect("a trigger");
    let next = app.submit(&image(2)).await;
    app.control.release();
    let view = app.until_status(&next, "succeeded").await;
    assert_ne!(view["started_at"], Value::Null, "the end includes the start");
}

#[tokio::test]
async fn clients_of_a_broken_database_are_told_when_to_retry() {
    let app = TestApp::start().await;
    let id = generated(&app, 1).await;
    sqlx::query("ALTER TABLE jobs RENAME TO elsewhere").execute(app.store.pool()).await.expect("renamed");
    for answer in [app.get(&format!("/v1/inference/jobs/{id}")).await, app.post(&image(2)).await] {
        assert_eq!(answer.code(), "storage_unavailable");
        assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    }
}

async fn link_of(app: &TestApp, job: &str) -> String {
    let view = app.get(&format!("/v1/inference/jobs/{job}")).await.json();
    view["result_url"].as_str().expect("a URL").trim_start_matches("http://worker.test").to_owned()
}

#[tokio::test]
async fn a_link_has_its_own_expiration_and_can_be_withdrawn() {
    let app = TestApp::start().await;
    let id = generated(&app, 1).await;
    let open = async |link: &str| app.send(crate::app::request("GET", link, None, None)).await;
    let first = link_of(&app, &id).await;
    app.clock.advance(time::Duration::minutes(59));
    assert_eq!(open(&first).await.status, StatusCode::OK);
    app.clock.advance(time::Duration::minutes(2));
    assert_eq!(open(&first).await.code(), "link_refused");
    let second = link_of(&app, &id).await;
    assert_eq!(open(&second).await.status, StatusCode::OK);
    rotate_link_secret(&app.folder.path().join("links.secret")).expect("writable");
    assert_eq!(open(&second).await.code(), "link_refused");
    assert_eq!(open(&link_of(&app, &id).await).await.status, StatusCode::OK);
    // Not longer than the image.
    app.clock.advance(time::Duration::hours(22));
    let last = link_of(&app, &id).await;
    app.clock.advance(time::Duration::minutes(60));
    assert_eq!(open(&last).await.code(), "link_refused");
}

#[tokio::test]
async fn no_copy_of_the_database_opens_images() {
    let app = TestApp::start().await;
    generated(&app, 1).await;
    let secret = fs::read(app.folder.path().join("links.secret")).expect("a secret");
    let copy = app.folder.path().join("copy.db");
    app.store.backup(&copy).await.expect("copied");
    for file in ["copy.db", "fluxserve.db", "fluxserve.db-wal"] {
        let bytes = fs::read(app.folder.path().join(file)).expect("there");
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{file}");
    }
    assert_eq!(number(&app, "SELECT COUNT(*) FROM result_link_secret").await, 0);
}
