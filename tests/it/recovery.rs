//! An accepted job is generated whatever happens to the process.

use serde_json::json;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnectOptions;

use crate::app::{Options, TestApp, decoded, image, request};
use crate::fake_engine::{Call, colour};

#[tokio::test]
async fn jobs_left_by_a_crash_are_retried_with_the_same_seed() {
    let app = TestApp::start().await;
    let done = app.submit(&image(1)).await;
    app.until_status(&done, "succeeded").await;
    app.control.hold();
    let running = app.submit(&image(2)).await;
    app.control.held().await;
    app.until_status(&running, "running").await;
    let queued = app.submit(&image(3)).await;
    app.crash().await;
    let app = app.restart(Options::default()).await;
    for (id, seed) in [(done, 1), (running, 2), (queued, 3)] {
        app.until_status(&id, "succeeded").await;
        let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
        assert_eq!(decoded(&result.bytes), (64, 64, colour(seed)));
    }
}

#[tokio::test]
async fn a_cancellation_survives_a_crash_within_the_jobs_step() {
    let app = TestApp::start().await;
    app.control.hold();
    let canceled = app.submit(&image(1)).await;
    app.control.held().await;
    let other = app.submit(&image(2)).await;
    let path = format!("/v1/inference/jobs/{canceled}");
    let answer = app.send(request("DELETE", &path, Some(&app.keys.inference), None)).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("running")), "its step takes long");
    app.crash().await;
    let app = app.restart(Options::default()).await;
    assert_eq!(app.get(&path).await.json()["status"], "canceled");
    app.until_status(&other, "succeeded").await;
    assert!(app.control.calls().iter().all(|call| *call != Call::Admit(1)), "{:?}", app.control.calls());
}

#[tokio::test]
async fn a_link_survives_a_restart() {
    let app = TestApp::start().await;
    let job = app.post_with(&image(2), &[("prefer", "wait=20")]).await.json();
    let url = job["result_url"].as_str().expect("a URL").trim_start_matches("http://worker.test").to_owned();
    let app = app.restart(Options::default()).await;
    assert_eq!(app.get(&url).await.status, axum::http::StatusCode::OK);
}

#[tokio::test]
async fn a_job_that_crashes_the_worker_each_time_is_given_up() {
    let mut app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    for _ in 0..3 {
        app.control.held().await;
        app.until_status(&id, "running").await;
        app.crash().await;
        let options = Options::default();
        options.control.hold();
        app = app.restart(options).await;
    }
    let view = app.until_status(&id, "failed").await;
    assert_eq!(view["error"]["code"], "worker_crashed");
}

#[tokio::test]
async fn a_smaller_queue_gives_up_jobs_without_a_place() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    let second = app.submit(&image(2)).await;
    app.crash().await;
    let options = Options { jobs_max: 1, ..Options::default() };
    // The first job keeps its place until the second one needs one.
    options.control.hold();
    let app = app.restart(options).await;
    app.control.release();
    app.until_status(&first, "succeeded").await;
    let view = app.until_status(&second, "failed").await;
    assert_eq!(view["error"]["code"], "queue_full");
}

#[tokio::test]
async fn a_clean_restart_is_not_counted_against_a_job() {
    let mut app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    for _ in 0..4 {
        app.control.held().await;
        app.until_status(&id, "running").await;
        app.stop_cleanly().await;
        let options = Options::default();
        options.control.hold();
        app = app.restart(options).await;
    }
    app.control.release();
    app.until_status(&id, "succeeded").await;
}

#[tokio::test]
async fn a_clean_restart_does_not_forgive_a_crash() {
    let mut app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    for is_clean in [false, true, false, true, false] {
        app.control.held().await;
        app.until_status(&id, "running").await;
        if is_clean {
            app.stop_cleanly().await;
        } else {
            app.crash().await;
        }
        let options = Options::default();
        options.control.hold();
        app = app.restart(options).await;
    }
    assert_eq!(app.until_status(&id, "failed").await["error"]["code"], "worker_crashed");
}

#[tokio::test]
async fn an_unreadable_row_stops_neither_the_start_nor_lists_nor_the_sweep() {
    let app = TestApp::start().await;
    app.control.hold();
    let damaged = app.submit(&image(1)).await;
    app.control.held().await;
    let whole = app.submit(&image(2)).await;
    let last = app.submit(&image(3)).await;
    sqlx::query("UPDATE jobs SET request = 'no request' WHERE id = ?")
        .bind(&damaged)
        .execute(app.store.pool())
        .await
        .expect("damaged");
    app.crash().await;

    let app = app.restart(Options::default()).await;
    app.until_status(&whole, "succeeded").await;
    app.until_status(&last, "succeeded").await;
    let ending: (String, String) = sqlx::query_as("SELECT status, error_code FROM jobs WHERE id = ?")
        .bind(&damaged)
        .fetch_one(app.store.pool())
        .await
        .expect("its row");
    assert_eq!(ending, ("failed".into(), "job_unreadable".into()));

    let page = async |query: &str| app.get(&format!("/v1/inference/jobs{query}")).await.json();
    let all = page("").await;
    let listed: Vec<_> = all["data"].as_array().expect("a list").iter().map(|job| job["job_id"].clone()).collect();
    assert_eq!(listed, [json!(last), json!(whole)]);
    let first = page("?limit=1").await;
    assert_eq!((&first["data"][0]["job_id"], &first["next_cursor"]), (&json!(last), &json!(last)));
    let end = page(&format!("?limit=2&cursor={last}")).await;
    assert_eq!((&end["data"][0]["job_id"], &end["next_cursor"]), (&json!(whole), &json!(null)));
    let others = app.send(request("GET", "/v1/inference/jobs", Some(&app.keys.other_inference), None)).await;
    assert_eq!(others.json()["data"], json!([]));

    app.clock.advance(time::Duration::hours(25));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 3);
}

/// From now on no job's end can be stored, until the table `outage` is removed.
async fn break_ends(app: &TestApp, by: &str) {
    let outage = format!(
        "DROP TRIGGER IF EXISTS outage;
         CREATE TRIGGER outage BEFORE UPDATE ON jobs WHEN NEW.finished_at_ms IS NOT NULL BEGIN {by}; END"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(outage)).execute(app.store.pool()).await.expect("a trigger");
}

#[tokio::test]
async fn a_finished_job_survives_an_outage_of_the_database() {
    let app = TestApp::with(Options { jobs_max: 1, ..Options::default() }).await;
    let outages =
        "CREATE TABLE outages (parent INTEGER REFERENCES write_checks (only_row) DEFERRABLE INITIALLY DEFERRED)";
    sqlx::query(outages).execute(app.store.pool()).await.expect("a table");
    // The transaction is rolled back silently, as when SQLite finds the disk full at a COMMIT; a COMMIT fails and the
    // transaction stays open; a statement fails.
    let by_rollback = "SELECT RAISE(ROLLBACK, 'told to fail')";
    let by_commit = "INSERT INTO outages VALUES (2)";
    let by_statement = "SELECT RAISE(ABORT, 'told to fail')";
    break_ends(&app, by_rollback).await;
    let id = app.submit(&image(1)).await;
    app.control.until_called(Call::Finish(1)).await;
    for by in [by_commit, by_rollback, by_commit, by_statement] {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        break_ends(&app, by).await;
    }
    let view = app.get(&format!("/v1/inference/jobs/{id}")).await.json();
    assert_eq!(view["status"], "running");
    assert_eq!(app.post(&image(2)).await.code(), "queue_full", "it keeps its place");
    sqlx::query("DROP TRIGGER outage").execute(app.store.pool()).await.expect("no trigger");
    let view = app.until_status(&id, "succeeded").await;
    assert_eq!(view["progress"]["step"], 2);
    assert_eq!(app.jobs.wait_until_idle(std::time::Duration::from_secs(5)).await, 0);
    assert!(!app.control.calls().contains(&Call::Admit(2)));
    // The outcome is visible to others, too, and after a restart.
    let path = app.folder.path().join("fluxserve.db");
    let mut other =
        sqlx::SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(path)).await.expect("opens");
    let seen: String = sqlx::query_scalar("SELECT status FROM jobs").fetch_one(&mut other).await.expect("a row");
    assert_eq!(seen, "succeeded");
    sqlx::query("PRAGMA user_version = 1").execute(&mut other).await.expect("others can write");
    other.close().await.expect("closes");
    app.crash().await;
    let app = app.restart(Options::default()).await;
    app.until_status(&id, "succeeded").await;
    assert!(!app.control.calls().contains(&Call::Admit(1)), "it was generated once");
}

#[tokio::test]
async fn a_crash_counts_even_if_the_next_run_did_not_start_the_job() {
    let mut app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    for _ in 0..3 {
        app.control.held().await;
        app.until_status(&id, "running").await;
        app.crash().await;
        let options = Options { waits_for_ready: false, ..Options::default() };
        // The engine does not get beyond its warm-up image.
        options.control.hold();
        app = app.restart(options).await;
        app.stop_cleanly().await;
        let options = Options::default();
        options.control.hold();
        app = app.restart(options).await;
    }
    assert_eq!(app.until_status(&id, "failed").await["error"]["code"], "worker_crashed");
}
