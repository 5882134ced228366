//! The urgency of a job: its priority among its key's jobs, and its deadline.

use serde_json::json;

use crate::app::{Options, TestApp, image};
use crate::fake_engine::Call;

/// As `image`, with additional fields.
fn urgent(seed: u64, more: &serde_json::Value) -> serde_json::Value {
    let mut body = image(seed);
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body
}

#[tokio::test]
async fn an_invalid_priority_or_deadline_is_refused_by_name() {
    let app = TestApp::start().await;
    let cases = [
        (json!({ "priority": "urgent" }), "priority"),
        (json!({ "priority": 1 }), "priority"),
        (json!({ "deadline_seconds": 0 }), "deadline_seconds"),
        (json!({ "deadline_seconds": 86_401 }), "deadline_seconds"),
        (json!({ "deadline_seconds": 1.5 }), "deadline_seconds"),
    ];
    for (more, field) in cases {
        let answer = app.post(&urgent(1, &more)).await;
        assert_eq!((answer.status.as_u16(), answer.json()["errors"][0]["field"].clone()), (400, json!(field)));
    }
}

#[tokio::test]
async fn a_high_priority_job_runs_before_the_others_of_its_key() {
    let app = TestApp::start().await;
    app.control.set_limits(fluxserve::domain::engine::EngineLimits { images_max: 1, step_tokens_max: 100_000 });
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    let mut all = vec![first];
    for (seed, priority) in [(2, "low"), (3, "normal"), (4, "high")] {
        all.push(app.submit(&urgent(seed, &json!({ "priority": priority }))).await);
    }
    let view = app.get(&format!("/v1/inference/jobs/{}", all[3])).await.json();
    assert_eq!((&view["priority"], &view["deadline_at"]), (&json!("high"), &json!(null)));
    app.control.release();
    for id in &all {
        app.until_status(id, "succeeded").await;
    }
    let finished: Vec<Call> = app.control.calls().into_iter().filter(|call| matches!(call, Call::Finish(_))).collect();
    assert_eq!(finished, [1, 4, 3, 2].map(Call::Finish));
}

#[tokio::test]
async fn a_job_whose_deadline_passes_fails_even_between_two_runs() {
    let app = TestApp::start().await;
    app.control.hold();
    let drawn = app.submit(&urgent(1, &json!({ "deadline_seconds": 1 }))).await;
    app.control.held().await;
    let waits = app.submit(&urgent(2, &json!({ "deadline_seconds": 1 }))).await;
    let patient = app.submit(&urgent(3, &json!({ "deadline_seconds": 3600 }))).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    app.control.release();
    for id in [&drawn, &waits] {
        let view = app.until_status(id, "failed").await;
        assert_eq!(view["error"]["code"], "deadline_passed", "{view}");
    }
    app.until_status(&patient, "succeeded").await;
    app.control.hold();
    let begun = app.submit(&urgent(4, &json!({ "deadline_seconds": 1 }))).await;
    app.control.held().await;
    app.crash().await;
    app.clock.advance(time::Duration::seconds(2));
    let app = app.restart(Options::default()).await;
    let view = app.until_status(&begun, "failed").await;
    assert_eq!(view["error"]["code"], "deadline_passed", "{view}");
}
