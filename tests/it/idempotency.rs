//! `Idempotency-Key`: a retry gives the same job, never a second one.

use axum::http::StatusCode;
use fluxserve::auth::{Actor, NewKey};
use fluxserve::domain::limits::KeyLimits;
use fluxserve::domain::scope::Scope;
use futures_util::future::join_all;
use serde_json::{Value, json};
use time::Duration;
use tower::ServiceExt;

use crate::app::{Answer, Options, TestApp, decoded, image};
use crate::fake_engine::{Call, colour};
use crate::loras::adapter;
use crate::management::Administrator;

fn job_id(answer: &Answer) -> String {
    answer.json()["job_id"].as_str().expect("an id").to_owned()
}

fn unseeded() -> Value {
    let mut body = image(0);
    body.as_object_mut().expect("an object").remove("seed");
    body
}

#[tokio::test]
async fn the_same_key_and_body_give_the_same_job() {
    let app = TestApp::start().await;
    let word = ("idempotency-key", "order-17");
    let first = app.post_with(&unseeded(), &[word]).await;
    assert_eq!(first.status, StatusCode::ACCEPTED, "{}", first.text());
    let again = app.post_with(&unseeded(), &[word]).await;
    assert_eq!((again.status, job_id(&again)), (StatusCode::ACCEPTED, job_id(&first)));
    assert_eq!(again.json()["seed"], first.json()["seed"], "the seed was sampled once");
    let waited = app.post_with(&unseeded(), &[word, ("prefer", "wait=20")]).await;
    assert_eq!((waited.status, job_id(&waited)), (StatusCode::OK, job_id(&first)));
    assert_eq!(waited.json()["status"], "succeeded");
    let drawn = app.post_with(&unseeded(), &[word, ("accept", "image/png")]).await;
    assert_eq!((drawn.status, drawn.header("x-job-id")), (StatusCode::OK, job_id(&first).as_str()));
    let other_form = app.post_with(&unseeded(), &[word, ("accept", "image/webp")]).await;
    assert_eq!(other_form.code(), "not_acceptable");
    let either = app.post_with(&unseeded(), &[word, ("accept", "image/webp, image/png;q=0.5")]).await;
    assert_eq!((either.status, either.header("content-type")), (StatusCode::OK, "image/png"));
    assert_eq!(app.get("/v1/inference/jobs").await.json()["data"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn another_body_is_refused_and_another_api_key_is_another_client() {
    let app = TestApp::start().await;
    let word = ("idempotency-key", "order-17");
    let first = app.post_with(&image(1), &[word]).await;
    let other = app.post_with(&image(2), &[word]).await;
    assert_eq!((other.status, other.code().as_str()), (StatusCode::CONFLICT, "idempotency_conflict"));
    let foreign = app.post_with(&image(2), &[word, ("x-api-key", &app.keys.other_inference)]).await;
    assert_eq!(foreign.status, StatusCode::ACCEPTED);
    assert_ne!(job_id(&foreign), job_id(&first));
    let wordless = [app.post(&image(1)).await, app.post(&image(1)).await];
    assert_ne!(job_id(&wordless[0]), job_id(&wordless[1]));
}

#[tokio::test]
async fn duplicates_at_once_make_one_job() {
    let app = TestApp::start().await;
    app.control.hold();
    let (body, headers) = (unseeded(), [("idempotency-key", "at-once")]);
    let answers = join_all((0..6).map(|_| app.post_with(&body, &headers))).await;
    let first = job_id(&answers[0]);
    for answer in &answers {
        assert_eq!((answer.status, job_id(answer)), (StatusCode::ACCEPTED, first.clone()), "{}", answer.text());
    }
    app.control.release();
    app.until_status(&first, "succeeded").await;
    assert_eq!(app.control.calls().iter().filter(|call| matches!(call, Call::Admit(_))).count(), 1);
}

#[tokio::test]
async fn a_retry_needs_no_place_in_the_queue_and_survives_a_restart() {
    let app = TestApp::with(Options { jobs_max: 1, ..Options::default() }).await;
    app.control.hold();
    let word = ("idempotency-key", "order-17");
    let first = job_id(&app.post_with(&image(1), &[word]).await);
    assert_eq!(app.post(&image(2)).await.code(), "queue_full");
    assert_eq!(job_id(&app.post_with(&image(1), &[word]).await), first);
    app.jobs.drain();
    assert_eq!(job_id(&app.post_with(&image(1), &[word]).await), first);
    app.crash().await;
    let app = app.restart(Options::default()).await;
    assert_eq!(job_id(&app.post_with(&image(1), &[word]).await), first);
    app.until_status(&first, "succeeded").await;
}

#[tokio::test]
async fn a_client_that_can_retry_does_not_lose_its_job_by_hanging_up() {
    let app = TestApp::start().await;
    app.control.hold();
    let word = ("idempotency-key", "order-17");
    let request = app.post_request(&image(4), &[word, ("accept", "image/png")]);
    let waiting = tokio::spawn(app.router.clone().oneshot(request));
    app.control.held().await;
    waiting.abort();
    drop(waiting.await);
    app.control.release();
    let answer = app.post_with(&image(4), &[word, ("accept", "image/png")]).await;
    assert_eq!(decoded(&answer.bytes), (64, 64, colour(4)));
}

#[tokio::test]
async fn a_duplicate_is_not_refused_because_of_the_first_ones_place() {
    let app = TestApp::with(Options { jobs_max: 2, ..Options::default() }).await;
    app.control.hold();
    let limits = KeyLimits { concurrent_jobs: Some(1), ..KeyLimits::default() };
    let key = NewKey { name: "one at a time".into(), scope: Scope::Inference, expires_at: None, limits };
    let key = app.service.create(key, &Actor::CommandLine).await.expect("a key").plain.reveal().to_owned();
    // The queue has one place for each of the two keys; the first one also has a limit of its own.
    for key in [&key, &app.keys.other_inference] {
        let headers = [("idempotency-key", "at-once"), ("x-api-key", key)];
        let body = unseeded();
        let answers = join_all((0..20).map(|_| app.post_with(&body, &headers))).await;
        let first = job_id(&answers[0]);
        for answer in &answers {
            assert_eq!((answer.status, job_id(answer)), (StatusCode::ACCEPTED, first.clone()), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn keys_are_forgotten_after_a_day_and_with_their_job() {
    let app = TestApp::with(Options { ended_jobs_per_owner_max: 0, ..Options::default() }).await;
    let word = ("idempotency-key", "order-17");
    let first = job_id(&app.post_with(&image(1), &[word, ("prefer", "wait=20")]).await);
    app.clock.advance(Duration::hours(23));
    assert_eq!(job_id(&app.post_with(&image(1), &[word]).await), first);
    app.clock.advance(Duration::hours(2));
    let second = job_id(&app.post_with(&image(2), &[word, ("prefer", "wait=20")]).await);
    assert_ne!(second, first);
    let words = async || {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM idempotency_keys").fetch_one(app.store.pool()).await;
        let count: i64 = count.expect("a count");
        count
    };
    assert_eq!(words().await, 1);
    app.clock.advance(Duration::seconds(1));
    app.jobs.sweep().await.expect("a sweep");
    assert_eq!(app.get(&format!("/v1/inference/jobs/{second}")).await.code(), "job_not_found");
    assert_eq!(words().await, 0);
}

#[tokio::test]
async fn a_key_has_up_to_255_visible_characters() {
    let app = TestApp::start().await;
    let longest = "~".repeat(255);
    for (word, is_good) in
        [("a", true), (longest.as_str(), true), ("", false), ("two words", false), (&"x".repeat(256), false)]
    {
        let answer = app.post_with(&image(1), &[("idempotency-key", word)]).await;
        if is_good {
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{word:?}");
        } else {
            assert_eq!(answer.fields(), ["Idempotency-Key"], "{word:?}");
        }
    }
    let mut request = app.post_request(&image(1), &[("idempotency-key", "a")]);
    request.headers_mut().append("idempotency-key", "a".parse().expect("a value"));
    assert_eq!(app.send(request).await.json()["errors"][0]["reason"], json!("is given twice"));
}

#[tokio::test]
async fn a_retry_gives_the_job_whose_lora_is_removed() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    administrator.add_lora("pen", &adapter("d1_xlabs")).await;
    let mut body = image(1);
    body["loras"] = json!([{ "id": "pen" }]);
    let word = ("idempotency-key", "order-17");
    let done = app.post_with(&body, &[word, ("prefer", "wait=20")]).await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text());
    let removed = administrator.ask("DELETE", "/v1/loras/pen", None).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{}", removed.text());
    let again = app.post_with(&body, &[word, ("prefer", "wait=20")]).await;
    assert_eq!((again.status, job_id(&again)), (StatusCode::OK, job_id(&done)));
    assert_eq!(app.post_with(&body, &[("idempotency-key", "order-18")]).await.code(), "lora_not_found");
}
