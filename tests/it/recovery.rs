//! A job that was accepted is drawn, whatever happens to the process.

use crate::app::{Options, TestApp, decoded, picture};
use crate::fake_engine::colour;

#[tokio::test]
async fn jobs_that_a_crash_left_are_drawn_again_with_the_same_seed() {
    let app = TestApp::start().await;
    let done = app.submit(&picture(1)).await;
    app.until_status(&done, "succeeded").await;
    app.control.hold();
    let running = app.submit(&picture(2)).await;
    app.control.held().await;
    app.until_status(&running, "running").await;
    let queued = app.submit(&picture(3)).await;
    app.crash().await;
    assert_eq!(app.get(&format!("/v1/inference/jobs/{queued}")).await.json()["status"], "queued");

    let app = app.restart(Options::default()).await;
    for (id, seed) in [(done, 1), (running, 2), (queued, 3)] {
        app.until_status(&id, "succeeded").await;
        let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
        assert_eq!(decoded(&result.bytes), (64, 64, colour(seed)));
    }
}

#[tokio::test]
async fn a_link_survives_a_restart() {
    let app = TestApp::start().await;
    let job = app.post_with(&picture(2), &[("prefer", "wait=20")]).await.json();
    let url = job["result_url"].as_str().expect("a URL").trim_start_matches("http://worker.test").to_owned();
    let app = app.restart(Options::default()).await;
    assert_eq!(app.get(&url).await.status, axum::http::StatusCode::OK);
}

#[tokio::test]
async fn a_job_that_takes_the_worker_down_each_time_is_given_up() {
    let mut app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&picture(1)).await;
    for _ in 0..3 {
        app.control.held().await;
        app.until_status(&id, "running").await;
        app.crash().await;
        let options = Options::default();
        // The warm-up picture has one step; the job's first is held.
        options.control.hold_after(1);
        app = app.restart(options).await;
    }
    let view = app.until_status(&id, "failed").await;
    assert_eq!(view["error"]["code"], "worker_crashed");
}

#[tokio::test]
async fn a_smaller_queue_gives_up_what_has_no_place() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&picture(1)).await;
    let second = app.submit(&picture(2)).await;
    app.crash().await;
    let options = Options { jobs_max: 1, ..Options::default() };
    // The first job keeps its place until the second one has asked for one.
    options.control.hold_after(1);
    let app = app.restart(options).await;
    app.control.release();
    app.until_status(&first, "succeeded").await;
    let view = app.until_status(&second, "failed").await;
    assert_eq!(view["error"]["code"], "queue_full");
}
