//! Faults of the engine cost its images, not the worker.

use std::time::Duration;

use axum::http::StatusCode;
use fluxserve::catalog::Availability;
use fluxserve::domain::engine::{EngineError, EngineLimits};
use serde_json::json;

use crate::app::{MODEL, Options, TestApp, decoded, image, request};
use crate::fake_engine::{Call, EngineControl, Fault, colour};

async fn error_code(app: &TestApp, id: &str) -> String {
    let view = app.until_status(id, "failed").await;
    view["error"]["code"].as_str().expect("a code").to_owned()
}

/// Waits until the next engine has warmed up, with an image of seed 0.
async fn rebuilt(app: &TestApp) {
    app.control.until_called(Call::Finish(0)).await;
    app.control.forget_calls();
    app.until_availability(Availability::Ready).await;
}

#[tokio::test]
async fn after_a_panic_the_engine_is_rebuilt_and_its_images_are_retried() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    let second = app.submit(&image(2)).await;
    app.control.on_next_step(Fault::Panic);
    app.control.release();
    rebuilt(&app).await;
    for (id, seed) in [(&first, 1), (&second, 2)] {
        app.until_status(id, "succeeded").await;
        let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
        assert_eq!(decoded(&result.bytes), (64, 64, colour(seed)));
    }
    assert_eq!(app.get("/readyz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_image_that_breaks_every_engine_fails_without_others() {
    let app = TestApp::start().await;
    app.control.panic_at_every_step_of(1);
    app.control.hold();
    let others = [app.submit(&image(2)).await, app.submit(&image(3)).await];
    app.control.held().await;
    let poison = app.submit(&image(1)).await;
    app.control.release();
    assert_eq!(error_code(&app, &poison).await, "engine_failed");
    let view = app.get(&format!("/v1/inference/jobs/{poison}")).await.text();
    assert!(!view.contains("told to panic"), "internals are not exposed: {view}");
    for id in &others {
        app.until_status(id, "succeeded").await;
    }
}

#[tokio::test]
async fn non_finite_numbers_have_an_error_code() {
    let app = TestApp::start().await;
    app.control.on_next_finish(Fault::Error(EngineError::NotFinite));
    let first = app.submit(&image(1)).await;
    assert_eq!(error_code(&app, &first).await, "not_finite");
    app.control.on_next_finish(Fault::Black);
    let second = app.submit(&image(2)).await;
    assert_eq!(error_code(&app, &second).await, "black_picture");
    let third = app.submit(&image(3)).await;
    app.until_status(&third, "succeeded").await;
}

#[tokio::test]
async fn a_fatal_error_while_admitting_or_decoding_is_handled_the_same() {
    let app = TestApp::start().await;
    let fatal = || Fault::Error(EngineError::Fatal("the device fell off the bus".into()));
    app.control.on_next_admit(fatal());
    let first = app.submit(&image(1)).await;
    rebuilt(&app).await;
    app.until_status(&first, "succeeded").await;
    app.control.on_next_finish(fatal());
    let second = app.submit(&image(2)).await;
    rebuilt(&app).await;
    app.until_status(&second, "succeeded").await;
}

#[tokio::test]
async fn an_engine_that_cannot_be_built_takes_no_jobs() {
    let control = EngineControl::default();
    control.fail_builds(u32::MAX);
    let app = TestApp::with(Options { control, waits_for_ready: false, ..Options::default() }).await;
    app.until_availability(Availability::Failed).await;
    let answer = app.post(&image(1)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "model_unavailable"));
    assert_ne!(answer.header("retry-after"), "");
    assert_eq!(app.get("/readyz").await.code(), "not_ready");
    let models = app.send(request("GET", "/v1/inference/runtime/models", None, None)).await.json();
    let random =
        json!({ "id": "fluxserve/flux-shapes", "available": false, "ready_replicas": 0, "desired_replicas": 1 });
    assert_eq!(models["models"][0], random);
}

#[tokio::test]
async fn the_state_of_a_model_is_correct_at_every_moment() {
    let control = EngineControl::default();
    control.hold_from_the_start();
    let app = TestApp::with(Options { control, waits_for_ready: false, ..Options::default() }).await;
    let said = async || {
        let models = app.send(request("GET", "/v1/inference/runtime/models", None, None)).await.json();
        let models = models["models"].as_array().expect("a list").clone();
        let model = models.into_iter().find(|model| model["id"] == MODEL).expect("served");
        let fields = ["available", "ready_replicas", "desired_replicas"].map(|field| model[field].clone());
        (fields, app.post(&image(1)).await.status.as_u16(), app.get("/readyz").await.status.as_u16())
    };
    let (drawing, not_drawing) = ([json!(true), json!(1), json!(1)], [json!(false), json!(0), json!(1)]);
    // From before loading up to the last step of the first image.
    assert_eq!(said().await, (not_drawing.clone(), 503, 503));
    app.control.held().await;
    assert_eq!(said().await, (not_drawing.clone(), 503, 503));
    app.control.release();
    app.until_availability(Availability::Ready).await;
    assert_eq!(said().await, (drawing.clone(), 202, 200));
    // After a failure until it is rebuilt.
    app.control.fail_builds(u32::MAX);
    app.control.on_next_step(Fault::Error(EngineError::Fatal("the device fell off the bus".into())));
    app.post(&image(2)).await;
    app.until_availability(Availability::Failed).await;
    assert_eq!(said().await, (not_drawing, 503, 503));
    app.control.fail_builds(0);
    app.until_availability(Availability::Ready).await;
    assert_eq!(said().await, (drawing, 202, 200));
}

#[tokio::test]
async fn a_second_attempt_to_build_may_succeed() {
    let control = EngineControl::default();
    control.fail_builds(2);
    let app = TestApp::with(Options { control, ..Options::default() }).await;
    let id = app.submit(&image(1)).await;
    app.until_status(&id, "succeeded").await;
}

#[tokio::test]
async fn a_step_that_does_not_fit_is_halved() {
    let app = TestApp::start().await;
    app.control.set_step_images_max(1);
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    let second = app.submit(&image(2)).await;
    app.control.release();
    app.until_status(&first, "succeeded").await;
    app.until_status(&second, "succeeded").await;
    let calls = app.control.calls();
    assert!(calls.contains(&Call::Step(vec![1, 2])) && calls.contains(&Call::Step(vec![2])), "{calls:?}");
}

#[tokio::test]
async fn an_image_that_never_fits_fails_without_others() {
    let app = TestApp::start().await;
    app.control.set_step_images_max(0);
    let first = app.submit(&image(1)).await;
    assert_eq!(error_code(&app, &first).await, "out_of_memory");
    app.control.set_limits(EngineLimits { images_max: 4, step_tokens_max: 30 });
    let second = app.submit(&image(2)).await;
    assert_eq!(error_code(&app, &second).await, "out_of_memory");
    assert!(!app.control.calls().contains(&Call::Admit(2)), "it is not attempted");
}

#[tokio::test]
async fn a_new_image_that_does_not_fit_now_is_admitted_later() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    app.control.on_next_admit(Fault::Error(EngineError::OutOfMemory("full".into())));
    let second = app.submit(&image(2)).await;
    app.control.release();
    app.until_status(&first, "succeeded").await;
    app.until_status(&second, "succeeded").await;
    let order: Vec<Call> =
        app.control.calls().into_iter().filter(|call| matches!(call, Call::Admit(_) | Call::Finish(_))).collect();
    assert_eq!(order, [Call::Admit(1), Call::Admit(2), Call::Finish(1), Call::Admit(2), Call::Finish(2)]);
}

#[tokio::test]
async fn one_bad_request_in_a_batched_step_fails_without_others() {
    let app = TestApp::start().await;
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    app.control.on_next_finish(Fault::Error(EngineError::Request("not a finite image".into())));
    let second = app.submit(&image(2)).await;
    app.control.release();
    assert_eq!(error_code(&app, &first).await, "refused_by_engine");
    app.until_status(&second, "succeeded").await;
    assert!(!app.control.calls().contains(&Call::Build));
}

fn impatient() -> Options {
    Options { stall_min: Duration::from_millis(50), ..Options::default() }
}

#[tokio::test]
async fn a_worker_with_a_stalled_engine_reports_it_and_leaves_its_jobs_to_the_next_start() {
    let app = TestApp::with(impatient()).await;
    // An idle engine may be silent for any time.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(app.get("/healthz").await.status, StatusCode::OK);
    app.control.hold();
    let first = app.submit(&image(1)).await;
    app.control.held().await;
    let second = app.submit(&image(2)).await;
    let answer = app.until_alive(503).await;
    assert_eq!(answer.code(), "engine_stalled");
    let detail = answer.json()["detail"].as_str().expect("a reason").to_owned();
    assert!(detail.starts_with(&format!("`{MODEL}`: engine 0 has been busy with a step for ")), "{detail}");
    // It may still recover.
    app.control.release();
    app.until_alive(200).await;
    app.until_status(&first, "succeeded").await;
    app.until_status(&second, "succeeded").await;

    app.control.hold();
    let first = app.submit(&image(3)).await;
    app.control.held().await;
    let second = app.submit(&image(4)).await;
    app.until_alive(503).await;
    app.crash().await;
    let app = app.restart(impatient()).await;
    assert_eq!(app.get("/healthz").await.status, StatusCode::OK);
    for (id, seed) in [(&first, 3), (&second, 4)] {
        app.until_status(id, "succeeded").await;
        let result = app.get(&format!("/v1/inference/jobs/{id}/result")).await;
        assert_eq!(decoded(&result.bytes), (64, 64, colour(seed)));
    }
}

#[tokio::test]
async fn a_worker_that_rebuilds_its_engine_in_vain_reports_it_and_keeps_its_jobs() {
    let app = TestApp::start().await;
    let fatal = || Fault::Error(EngineError::Fatal("the device fell off the bus".into()));
    // Once, and it generates again.
    app.control.on_next_step(fatal());
    let first = app.submit(&image(1)).await;
    rebuilt(&app).await;
    app.until_status(&first, "succeeded").await;
    assert_eq!(app.get("/healthz").await.status, StatusCode::OK);

    app.control.fail_builds(2);
    app.control.on_next_step(fatal());
    let second = app.submit(&image(2)).await;
    rebuilt(&app).await;
    app.until_status(&second, "succeeded").await;
    assert_eq!(app.get("/healthz").await.status, StatusCode::OK, "the third engine generated an image");

    app.control.fail_builds(u32::MAX);
    app.control.on_next_step(fatal());
    let third = app.submit(&image(3)).await;
    let answer = app.until_alive(503).await;
    assert_eq!(answer.code(), "engine_stalled");
    let detail = answer.json()["detail"].as_str().expect("a reason").to_owned();
    assert!(detail.contains("was rebuilt 3 times and has finished no image in between"), "{detail}");
    let status = app.get(&format!("/v1/inference/jobs/{third}")).await.json()["status"].clone();
    assert!(status == "running" || status == "queued", "{status}");
    app.crash().await;
    let app = app.restart(Options::default()).await;
    app.until_status(&third, "succeeded").await;
    assert_eq!(app.get("/healthz").await.status, StatusCode::OK);
}
