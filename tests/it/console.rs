//! What the console needs: the jobs of all keys, the playground, the overview, and its own files.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::app::{TestApp, decoded, image, request};
use crate::fake_engine::PREVIEW_RED_PER_STEP;
use crate::management::Administrator;

fn ids(page: &Value) -> Vec<&str> {
    let jobs = page["data"].as_array().expect("jobs").iter();
    jobs.map(|job| job["job_id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn the_administrator_sees_and_cancels_the_jobs_of_all_keys() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let first = app.submit(&image(1)).await;
    app.until_status(&first, "succeeded").await;
    app.control.hold();
    let other = app.send(request("POST", "/v1/inference/image", Some(&app.keys.all), Some(&image(2)))).await.json();
    let other = other["job_id"].as_str().expect("an id");
    assert_eq!(ids(&administrator.get("/v1/jobs").await), [other, &first]);
    assert_eq!(ids(&administrator.get("/v1/jobs?status=succeeded").await), [first.as_str()]);
    let owner = administrator.get(&format!("/v1/jobs/{other}")).await["key_id"].clone();
    let owner = owner.as_str().expect("a key's id");
    assert_eq!(ids(&administrator.get(&format!("/v1/jobs?key_id={owner}")).await), [other]);
    assert!(ids(&administrator.get("/v1/jobs?key_id=playground").await).is_empty());
    let wrong = administrator.ask("GET", "/v1/jobs?key_id=invalid", None).await;
    assert_eq!(wrong.fields(), ["key_id"]);
    let image = administrator.ask("GET", &format!("/v1/jobs/{first}/result"), None).await;
    assert_eq!((image.status, decoded(&image.bytes).0), (StatusCode::OK, 64));
    let canceled = administrator.ask("DELETE", &format!("/v1/jobs/{other}"), None).await;
    app.control.release();
    assert_eq!(canceled.status, StatusCode::OK, "{}", canceled.text());
    let page = administrator.get("/v1/jobs?limit=1").await;
    assert_eq!(ids(&page), [other]);
    let next = page["next_cursor"].as_str().expect("a second page");
    assert_eq!(ids(&administrator.get(&format!("/v1/jobs?limit=1&cursor={next}")).await), [first.as_str()]);
}

#[tokio::test]
async fn the_playground_needs_no_key_and_no_key_sees_its_jobs() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let accepted = administrator.ask("POST", "/v1/playground/image", Some(image(7))).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text());
    let view = accepted.json();
    let id = view["job_id"].as_str().expect("an id");
    assert_eq!((&view["key_id"], &view["seed"]), (&Value::Null, &json!(7)));
    app.jobs.wait_until_idle(std::time::Duration::from_secs(20)).await;
    let view = administrator.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!((&view["status"], &view["progress"]["step"]), (&json!("succeeded"), &json!(2)));
    assert_eq!(ids(&administrator.get("/v1/jobs?key_id=playground").await), [id]);
    let others = app.get(&format!("/v1/inference/jobs/{id}")).await;
    assert_eq!(others.code(), "job_not_found");
    let wrong = administrator.ask("POST", "/v1/playground/image", Some(json!({ "model": "x", "prompt": "y" }))).await;
    assert_eq!(wrong.code(), "model_not_found");
    let broken = administrator.ask("POST", "/v1/playground/image", Some(json!({ "prompt": "" }))).await;
    assert_eq!(broken.fields(), ["prompt", "model"]);
}

#[tokio::test]
async fn the_administrator_sees_previews_of_a_running_job() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    app.control.hold();
    let mut asked = image(1);
    asked["steps"] = json!(6);
    let job = app.submit(&asked).await;
    app.control.held().await;
    let path = format!("/v1/jobs/{job}/preview");
    assert_eq!(administrator.ask("GET", &path, None).await.code(), "no_preview");
    app.control.let_pass(2);
    let step = async || administrator.get(&format!("/v1/jobs/{job}")).await["progress"]["step"].clone();
    while step().await != json!(2) {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let preview = administrator.ask("GET", &path, None).await;
    assert_eq!((preview.status, preview.header("content-type")), (StatusCode::OK, "image/png"));
    // Made after the first step that followed the request, and not again without another.
    assert_eq!(decoded(&preview.bytes), (1, 1, [PREVIEW_RED_PER_STEP, 0, 0]));
    app.control.release();
    app.until_status(&job, "succeeded").await;
    assert_eq!(administrator.ask("GET", &path, None).await.code(), "no_preview");
}

#[tokio::test]
async fn the_overview_shows_the_present_state_and_the_last_hour() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let done = app.submit(&image(1)).await;
    app.until_status(&done, "succeeded").await;
    app.clock.advance(time::Duration::minutes(2));
    app.control.hold();
    let _running = app.submit(&image(2)).await;
    app.control.held().await;
    let view = administrator.get("/v1/overview").await;
    assert_eq!((&view["state"], &view["device"]), (&json!("ready"), &json!("a fake")));
    let queue = &view["queue"];
    assert_eq!((&queue["queued"], &queue["running"], &queue["jobs_max"]), (&json!(0), &json!(1), &json!(16)));
    let minutes = view["minutes"].as_array().expect("minutes");
    let images: Vec<u64> = minutes.iter().map(|minute| minute["images"].as_u64().expect("a number")).collect();
    assert_eq!((images.len(), images.iter().sum::<u64>(), images[57]), (60, 1, 1));
    assert_eq!(view["latency_seconds"]["jobs"], 1);
    assert!(view["latency_seconds"]["median"].is_f64() && view["started_at"].is_string(), "{view}");
    assert_eq!(view["models"].as_array().map(Vec::len), Some(8));
    app.control.release();
}

#[tokio::test]
async fn the_console_is_served_from_the_program_under_a_strict_policy() {
    let app = TestApp::start().await;
    let page = app.send(request("GET", "/admin", None, None)).await;
    assert_eq!(page.status, StatusCode::OK);
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    let mut again = request("GET", "/admin", None, None);
    again.headers_mut().insert("if-none-match", page.header("etag").parse().expect("a value"));
    let again = app.send(again).await;
    assert_eq!((again.status, again.bytes.len()), (StatusCode::NOT_MODIFIED, 0));
    let nothing = app.send(request("GET", "/admin/assets/nothing.js", None, None)).await;
    assert_eq!(nothing.code(), "not_found");
}
