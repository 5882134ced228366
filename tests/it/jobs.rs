//! Jobs after their acceptance: status, result, links, lists, cancellation, batched steps, deletion.

use axum::http::StatusCode;
use fluxserve::domain::engine::EngineError;
use serde_json::json;
use time::Duration;

use crate::app::{Options, TestApp, decoded, image, request};
use crate::fake_engine::{Call, Fault, colour};

#[tokio::test]
async fn progress_is_reported_while_a_job_runs() {
    let app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(1)).await;
    app.control.held().await;
    let view = app.until_status(&id, "running").await;
    assert_eq!((&view["queue_position"], &view["progress"]), (&json!(0), &json!({ "step": 0, "steps": 2 })));
    let early = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
    assert_eq!((early.status, early.code().as_str()), (StatusCode::CONFLICT, "no_picture"));
    app.control.release();
    app.until_status(&id, "succeeded").await;
    let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
    assert_eq!(result.header("content-type"), "image/png");
    assert_eq!(decoded(&result.bytes), (64, 64, colour(1)));
}

#[tokio::test]
async fn a_result_link_needs_no_key_and_expires() {
    let app = TestApp::start().await;
    let job = app.post_with(&image(2), &[("prefer", "wait=20")]).await.json();
    let url = job["result_url"].as_str().expect("a URL").trim_start_matches("http://worker.test").to_owned();
    let open = async |path: &str| app.send(request("GET", path, None, None)).await;
    let answer = open(&url).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(decoded(&answer.bytes), (64, 64, colour(2)));

    let longer = url.replace("expires=", "expires=1");
    assert_eq!(open(&longer).await.code(), "link_refused");
    let other = app.submit(&image(3)).await;
    let id = job["job_id"].as_str().expect("an id");
    assert_eq!(open(&url.replace(id, &other)).await.code(), "link_refused");
    assert_eq!(open(&format!("/v1/inference/jobs/{id}/result?expires=1")).await.code(), "link_refused");
    app.clock.advance(Duration::hours(25));
    assert_eq!(open(&url).await.code(), "link_refused");
}

#[tokio::test]
async fn a_result_link_lasts_from_the_response_that_returned_it() {
    let app = TestApp::start().await;
    app.control.hold();
    let id = app.submit(&image(2)).await;
    app.control.held().await;
    // Longer than a link is valid.
    app.clock.advance(Duration::hours(24));
    app.control.release();
    let job = app.until_status(&id, "succeeded").await;
    let url = job["result_url"].as_str().expect("a URL").trim_start_matches("http://worker.test").to_owned();
    let open = async || app.send(request("GET", &url, None, None)).await;
    app.clock.advance(Duration::minutes(59));
    assert_eq!(open().await.status, StatusCode::OK);
    app.clock.advance(Duration::minutes(2));
    assert_eq!(open().await.code(), "link_refused");
}

#[tokio::test]
async fn lists_are_paged_newest_first_and_of_the_calling_key() {
    let app = TestApp::start().await;
    let mut ids = Vec::new();
    for seed in 0..5 {
        ids.push(app.submit(&image(seed)).await);
    }
    for id in &ids {
        app.until_status(id, "succeeded").await;
    }
    ids.reverse();
    let page = async |query: &str| {
        let body = app.get(&format!("/v1/inference/jobs{query}")).await.json();
        let jobs = body["data"].as_array().expect("a list").iter();
        let listed: Vec<String> = jobs.map(|job| job["job_id"].as_str().expect("an id").to_owned()).collect();
        (listed, body["next_cursor"].as_str().map(str::to_owned))
    };
    let (first, cursor) = page("?limit=3").await;
    assert_eq!(first, ids[..3]);
    let (second, end) = page(&format!("?limit=3&cursor={}", cursor.expect("more"))).await;
    assert_eq!((second.as_slice(), end), (&ids[3..], None));
    assert_eq!(page("").await.0, ids);
    assert!(page("?status=failed").await.0.is_empty());
    assert_eq!(page("?status=succeeded&limit=100").await.0.len(), 5);
    let others = app.send(request("GET", "/v1/inference/jobs", Some(&app.keys.other_inference), None)).await.json();
    assert_eq!(others, json!({ "data": [], "next_cursor": null }));
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("status=done", "status"),
        ("cursor=x", "cursor"),
        ("page=2", "page"),
        ("limit=1&limit=2", "limit"),
    ] {
        assert_eq!(app.get(&format!("/v1/inference/jobs?{query}")).await.fields(), [field], "{query}");
    }
}

#[tokio::test]
async fn a_queued_job_is_canceled_at_once() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    let second = app.submit(&image(2)).await;
    let answer = app.delete(&format!("/v1/inference/jobs/{second}")).await;
    assert_eq!((answer.status, &answer.json()["status"]), (StatusCode::OK, &json!("canceled")));
    app.control.release();
    app.until_status(&first, "succeeded").await;
    assert!(!app.control.calls().contains(&Call::Admit(2)));
    let result = app.get(&format!("/v1/inference/jobs/{second}/result")).await;
    assert_eq!(result.code(), "no_picture");
}

#[tokio::test]
async fn a_running_job_is_canceled_before_the_next_step() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    let second = app.submit(&image(2)).await;
    let path = format!("/v1/inference/jobs/{first}");
    let (canceled, ()) = tokio::join!(app.delete(&path), async {
        // The request arrives before the step is over.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        app.control.release();
    });
    assert_eq!(canceled.json()["status"], "canceled");
    app.until_status(&second, "succeeded").await;
    let calls = app.control.calls();
    assert_eq!(calls.iter().filter(|call| matches!(call, Call::Step(seeds) if seeds.contains(&1))).count(), 1);
    assert!(calls.contains(&Call::Release(1)));
}

#[tokio::test]
async fn canceling_an_ended_job_changes_nothing() {
    let app = TestApp::start().await;
    let id = app.submit(&image(1)).await;
    app.until_status(&id, "succeeded").await;
    let answer = app.delete(&format!("/v1/inference/jobs/{id}")).await;
    assert_eq!((answer.status, &answer.json()["status"]), (StatusCode::OK, &json!("succeeded")));
}

#[tokio::test]
async fn a_later_job_shares_the_steps_of_an_earlier_one() {
    let app = TestApp::start().await;
    app.control.hold();
    let mut long = image(1);
    long["steps"] = json!(4);
    let first = app.submit(&long).await;
    app.control.held().await;
    let mut wide = image(2);
    wide["width"] = json!(128);
    let second = app.submit(&wide).await;
    app.control.release();
    app.until_status(&first, "succeeded").await;
    app.until_status(&second, "succeeded").await;
    let calls = app.control.calls();
    let expected = [Call::Admit(1), Call::Step(vec![1]), Call::Admit(2), Call::Step(vec![1, 2])];
    assert_eq!(calls[..4], expected, "{calls:?}");
    let result = app.get(&format!("/v1/inference/jobs/{second}/result")).await;
    assert_eq!(decoded(&result.bytes), (128, 64, colour(2)));
}

#[tokio::test]
async fn an_unknown_job_is_not_found() {
    let app = TestApp::start().await;
    for id in ["job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f", "x", "job_", "%FF"] {
        for path in [format!("/v1/inference/jobs/{id}"), format!("/v1/inference/jobs/{id}/result")] {
            assert_eq!(app.get(&path).await.code(), "job_not_found", "{path}");
        }
    }
}

#[tokio::test]
async fn jobs_are_deleted_after_their_retention() {
    let app = TestApp::start().await;
    let old = app.submit(&image(1)).await;
    app.until_status(&old, "succeeded").await;
    app.clock.advance(Duration::hours(23));
    let young = app.submit(&image(2)).await;
    app.until_status(&young, "succeeded").await;
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0);
    app.clock.advance(Duration::hours(2));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert_eq!(app.get(&format!("/v1/inference/jobs/{old}")).await.code(), "job_not_found");
    assert_eq!(app.get(&format!("/v1/inference/jobs/{young}/result")).await.status, StatusCode::OK);
    let files = std::fs::read_dir(app.folder.path().join("results")).expect("a folder").count();
    assert_eq!(files, 1);
}

#[tokio::test]
async fn what_a_reader_keeps_in_the_log_leaves_it_with_a_later_sweep() {
    let app = TestApp::start().await;
    let id = app.submit(&image(1)).await;
    app.until_status(&id, "succeeded").await;
    let log = app.folder.path().join("fluxserve.db-wal");
    let log_bytes = || std::fs::metadata(&log).expect("a log").len();
    let mut reading = app.store.pool().begin().await.expect("begins");
    sqlx::query("SELECT count(*) FROM jobs").fetch_one(&mut *reading).await.expect("read");
    app.clock.advance(Duration::hours(25));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert_ne!(log_bytes(), 0, "as a backup does, it reads what was before");
    reading.rollback().await.expect("ends");
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0, "nothing is deleted any more");
    assert_eq!(log_bytes(), 0);
}

#[tokio::test]
async fn the_oldest_images_are_deleted_when_the_disk_budget_is_used_up() {
    let app = TestApp::with(Options { results_bytes_max: 1, ..Options::default() }).await;
    app.control.on_next_admit(Fault::Error(EngineError::Request("told to".into())));
    let failed = app.submit(&image(1)).await;
    app.until_status(&failed, "failed").await;
    let id = app.submit(&image(2)).await;
    app.until_status(&id, "succeeded").await;
    app.clock.advance(Duration::seconds(1));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 0);
    // Deleting a job without an image frees nothing; the other one reports that its image is deleted.
    app.until_status(&failed, "failed").await;
    app.until_status(&id, "succeeded").await;
    let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
    assert_eq!((result.status, result.code().as_str()), (StatusCode::GONE, "picture_gone"));
    assert_eq!(std::fs::read_dir(app.folder.path().join("results")).expect("a folder").count(), 0);
}

#[tokio::test]
async fn ended_jobs_of_one_owner_are_bounded() {
    let app = TestApp::with(Options { ended_jobs_per_owner_max: 2, ..Options::default() }).await;
    let mut ids = Vec::new();
    for seed in 0..3 {
        let id = app.submit(&image(seed)).await;
        app.until_status(&id, "succeeded").await;
        ids.push(id);
    }
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 1);
    assert_eq!(app.get(&format!("/v1/inference/jobs/{}", ids[0])).await.code(), "job_not_found");
    assert_eq!(app.get(&format!("/v1/inference/jobs/{}/result", ids[1])).await.status, StatusCode::OK);
    assert_eq!(std::fs::read_dir(app.folder.path().join("results")).expect("a folder").count(), 2);
}
