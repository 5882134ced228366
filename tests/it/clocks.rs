//! The machine's clock is set forward and back while the worker runs: durations stay correct.

use axum::http::StatusCode;
use serde_json::json;
use time::Duration;

use crate::app::{TestApp, image};

const FAR: Duration = Duration::days(400);
/// A little longer than results are kept.
const RETENTION: Duration = Duration::hours(25);

async fn generated(app: &TestApp, seed: u64) -> String {
    let id = app.submit(&image(seed)).await;
    app.until_status(&id, "succeeded").await;
    id
}

async fn status_of(app: &TestApp, id: &str) -> StatusCode {
    app.get(&format!("/v1/inference/jobs/{id}")).await.status
}

async fn number(app: &TestApp, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(app.store.pool()).await.expect("a number")
}

#[tokio::test]
async fn jobs_finished_while_the_clock_was_ahead_are_deleted_on_time() {
    let app = TestApp::start().await;
    app.clock.set_by(FAR);
    let id = generated(&app, 1).await;
    app.clock.set_by(-FAR);
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0);
    // Only now it is known when the clock was wrong.
    app.clock.advance(Duration::HOUR);
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0);
    assert_eq!(status_of(&app, &id).await, StatusCode::OK);
    let days = "SELECT COUNT(*) FROM work_by_day WHERE day > (SELECT MAX(finished_at_ms) / 86400000 FROM jobs)";
    assert_eq!(number(&app, days).await, 0, "no future day has begun");
    assert_eq!(number(&app, "SELECT SUM(images) FROM work_by_day").await, 1, "the generated image counts");
    app.clock.advance(RETENTION);
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert_eq!(status_of(&app, &id).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_idempotency_key_lasts_a_day_whatever_the_clock_is_set_to() {
    for step in [FAR, -FAR, Duration::hours(30), Duration::hours(-30)] {
        let app = TestApp::start().await;
        let ask = async || {
            let answer = app.post_with(&image(1), &[("idempotency-key", "order-17")]).await;
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
            answer.json()["job_id"].as_str().expect("an id").to_owned()
        };
        let first = ask().await;
        app.clock.set_by(step);
        assert_eq!(ask().await, first, "{step}: set");
        app.clock.set_by(-step);
        assert_eq!(ask().await, first, "{step}: set back");
        app.clock.advance(Duration::HOUR);
        assert_eq!(ask().await, first, "{step}: in its day");
        app.clock.advance(RETENTION);
        assert_ne!(ask().await, first, "{step}: its day is over");
    }
}

#[tokio::test]
async fn the_last_hour_excludes_jobs_finished_while_the_clock_was_ahead() {
    let app = TestApp::start().await;
    app.clock.set_by(FAR);
    generated(&app, 1).await;
    app.clock.set_by(-FAR);
    generated(&app, 2).await;
    let statistics = app.jobs.statistics().await.expect("told");
    let images: u64 = statistics.minutes.iter().map(|minute| minute.images).sum();
    assert_eq!((images, statistics.latencies.len()), (1, 1));
}

#[tokio::test]
async fn a_deadline_keeps_its_distance_whatever_the_clock_is_set_to() {
    for step in [FAR, -FAR] {
        let app = TestApp::start().await;
        let mut wanted_soon = image(1);
        wanted_soon["deadline_seconds"] = json!(60);
        app.control.hold();
        let in_time = app.submit(&wanted_soon).await;
        app.control.held().await;
        let waiting = app.submit(&wanted_soon).await;
        wanted_soon["deadline_seconds"] = json!(1);
        let late = app.submit(&wanted_soon).await;
        app.clock.set_by(step);
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        app.control.release();
        app.until_status(&in_time, "succeeded").await;
        app.until_status(&waiting, "succeeded").await;
        assert_eq!(app.until_status(&late, "failed").await["error"]["code"], "deadline_passed", "{step}");
    }
}
