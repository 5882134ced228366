//! The operator's moderation: what it is asked, what its answers mean, and what happens without one.

use std::time::Duration;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluxserve::domain::review::OnFailure;
use fluxserve::moderation::ModerationSettings;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::app::{MODEL, Options, TestApp, decoded, image, request};
use crate::fake_engine::colour;
use crate::management::Administrator;
use crate::stub_moderator::{Reply, StubModerator};

const WAITING: [(&str, &str); 1] = [("prefer", "wait=20")];
const AS_IMAGE: [(&str, &str); 1] = [("accept", "image/png")];

/// A worker that asks this service, with changed settings.
async fn asking(moderator: &StubModerator, change: impl FnOnce(&mut ModerationSettings)) -> TestApp {
    let mut settings = moderator.settings();
    change(&mut settings);
    TestApp::with(Options { moderation: Some(settings), ..Options::default() }).await
}

/// The entries of the audit log about reviews, the newest first.
async fn noted(app: &TestApp) -> Vec<Value> {
    let entries = Administrator::of(app).await.get("/v1/audit").await["data"].clone();
    let mut entries = entries.as_array().expect("entries").clone();
    entries.retain(|entry| ["content_refused", "moderation_failed"].map(Value::from).contains(&entry["action"]));
    entries
}

fn results(app: &TestApp) -> usize {
    let files = std::fs::read_dir(app.folder.path().join("results")).expect("a folder");
    let paths = files.map(|file| file.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|end| end == "png")).count()
}

#[tokio::test]
async fn it_is_asked_about_each_prompt_and_each_image() {
    let moderator = StubModerator::start().await;
    let app = asking(&moderator, |_| {}).await;
    let mut body = image(7);
    body["negative_prompt"] = json!("rain");
    let job = app.submit(&body).await;
    app.until_status(&job, "succeeded").await;
    let asked = moderator.asked();
    assert_eq!(asked.len(), 2);
    let key = &asked[0]["key_id"];
    assert!(key.is_string(), "{}", asked[0]);
    let before = json!({
        "stage": "before", "job_id": job, "key_id": key, "model": MODEL, "prompt": "a fox", "negative_prompt": "rain",
    });
    assert_eq!(asked[0], before);
    let file = STANDARD.decode(asked[1]["image"].as_str().expect("an image")).expect("base64");
    assert_eq!(decoded(&file), (64, 64, colour(7)));
    assert_eq!((&asked[1]["stage"], &asked[1]["job_id"], &asked[1]["key_id"]), (&json!("after"), &json!(job), key));
    assert_eq!((&asked[1]["media_type"], &asked[1]["prompt"]), (&json!("image/png"), &json!(null)));
    assert!(noted(&app).await.is_empty(), "what is allowed is counted, not logged");
}

#[tokio::test]
async fn it_is_asked_only_what_the_operator_wants() {
    for (before, after, stage) in [(true, false, "before"), (false, true, "after")] {
        let moderator = StubModerator::start().await;
        let app = asking(&moderator, |settings| (settings.before, settings.after) = (before, after)).await;
        assert_eq!(app.post_with(&image(1), &AS_IMAGE).await.status, StatusCode::OK);
        let stages: Vec<Value> = moderator.asked().iter().map(|asked| asked["stage"].clone()).collect();
        assert_eq!(stages, [stage]);
    }
}

#[tokio::test]
async fn a_refused_prompt_is_never_queued() {
    let moderator = StubModerator::start().await;
    moderator.on_prompts(Reply::Refuse("no foxes"));
    let app = asking(&moderator, |_| {}).await;
    let refused = app.post(&image(1)).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::BAD_REQUEST, "content_refused"));
    assert_eq!(refused.json()["detail"], "no foxes");
    let openai = json!({ "model": MODEL, "prompt": "a fox", "size": "64x64", "steps": 2 });
    let openai = app.send(request("POST", "/v1/images/generations", Some(&app.keys.inference), Some(&openai))).await;
    assert_eq!((openai.status.as_u16(), &openai.openai_error()["code"]), (400, &json!("content_refused")));
    let sdapi = json!({ "prompt": "a fox", "width": 64, "height": 64, "steps": 2 });
    let sdapi = app.send(request("POST", "/sdapi/v1/txt2img", Some(&app.keys.inference), Some(&sdapi))).await;
    assert_eq!((sdapi.status.as_u16(), sdapi.sdapi_code().as_str()), (400, "content_refused"));
    let administrator = Administrator::of(&app).await;
    let console = administrator.ask("POST", "/v1/playground/image", Some(image(2))).await;
    assert_eq!(console.code(), "content_refused");
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
    assert_eq!(app.get("/v1/inference/jobs").await.json()["data"], json!([]));
    let noted = noted(&app).await;
    let actors: Vec<&Value> = noted.iter().map(|entry| &entry["actor"]).collect();
    assert_eq!(actors, ["worker", "key_holder", "key_holder", "key_holder"]);
    let entry = &noted[3];
    assert_eq!(entry["action"], "content_refused");
    assert!(entry["key_id"].is_string() && app.keys.inference.starts_with(entry["key_prefix"].as_str().expect("one")));
    let detail = &entry["detail"];
    assert_eq!((&detail["stage"], &detail["outcome"]), (&json!("before"), &json!("refused")));
    assert_eq!(detail["reason"], "no foxes");
    assert!(!entry.to_string().contains("a fox"), "the prompt is not logged: {entry}");
}

#[tokio::test]
async fn a_refused_image_is_never_stored_and_has_no_link() {
    let moderator = StubModerator::start().await;
    moderator.on_images(Reply::Refuse("too orange"));
    let app = asking(&moderator, |_| {}).await;
    let view = app.post_with(&image(1), &WAITING).await.json();
    assert_eq!((&view["status"], &view["error"]["code"]), (&json!("failed"), &json!("content_refused")));
    assert_eq!(view["error"]["reason"], "too orange");
    let result = app.get(&format!("/v1/inference/jobs/{}/result", view["job_id"].as_str().expect("an id"))).await;
    assert_eq!(result.code(), "no_picture");
    let link = view["result_url"].as_str().expect("a link").split_once("worker.test").expect("a host").1;
    assert_eq!(app.send(request("GET", link, None, None)).await.code(), "no_picture");
    assert_eq!(results(&app), 0);
    let refused = app.post_with(&image(2), &AS_IMAGE).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::BAD_REQUEST, "content_refused"));
    assert_eq!(refused.json()["detail"], "too orange");
    assert_eq!(noted(&app).await[0]["detail"]["stage"], "after");
    moderator.on_images(Reply::Allow);
    assert_eq!(app.post_with(&image(3), &AS_IMAGE).await.status, StatusCode::OK);
    assert_eq!(results(&app), 1);
}

#[tokio::test]
async fn a_refused_image_is_work_that_the_key_has_asked_for() {
    let moderator = StubModerator::start().await;
    let app = asking(&moderator, |_| {}).await;
    let administrator = Administrator::of(&app).await;
    let new = json!({ "name": "a", "scope": { "inference": true } });
    let (path, key) = administrator.create(new).await;
    let draw = async |seed| {
        let mut request = request("POST", "/v1/inference/image", Some(&key), Some(&image(seed)));
        request.headers_mut().insert("prefer", "wait=20".parse().expect("a value"));
        app.send(request).await.json()["error"]["code"].clone()
    };
    let steps = async || {
        let usage = administrator.get(&format!("{path}/usage?days=1")).await;
        usage["data"][0]["megapixel_steps"].as_f64().expect("a number")
    };
    moderator.on_images(Reply::Say(500, String::new()));
    assert_eq!(draw(1).await, "moderation_unavailable");
    assert_eq!(steps().await, 0.0, "nobody saw what was wrong with it");
    moderator.on_images(Reply::Refuse("too orange"));
    assert_eq!(draw(2).await, "content_refused");
    assert!(steps().await > 0.0);
}

#[tokio::test]
async fn without_an_answer_it_is_as_the_operator_chose() {
    let malformed = [
        Reply::Say(500, r#"{"allow": true}"#.to_owned()),
        Reply::Say(302, String::new()),
        Reply::Say(200, "yes".to_owned()),
        Reply::Say(200, r#"{"allow": "true"}"#.to_owned()),
        Reply::Say(200, format!(r#"{{"allow": true, "reason": "{}"}}"#, "x".repeat(100_000))),
    ];
    let moderator = StubModerator::start().await;
    let closed = asking(&moderator, |_| {}).await;
    let open = asking(&moderator, |settings| settings.on_failure = OnFailure::Allow).await;
    for reply in malformed {
        moderator.on_prompts(reply.clone());
        moderator.on_images(reply.clone());
        let refused = closed.post(&image(1)).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "moderation_unavailable"), "{reply:?}");
        assert_eq!(open.post_with(&image(1), &AS_IMAGE).await.status, StatusCode::OK, "{reply:?}");
        moderator.on_prompts(Reply::Allow);
        let refused = closed.post_with(&image(2), &AS_IMAGE).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "moderation_unavailable"), "{reply:?}");
    }
    assert_eq!(results(&closed), 0);
    for (app, outcome) in [(&closed, "failed_refused"), (&open, "failed_allowed")] {
        let noted = noted(app).await;
        assert_eq!(noted.len(), 10, "one for each review that nobody made");
        assert!(noted.iter().all(|entry| entry["action"] == "moderation_failed"));
        assert!(noted.iter().all(|entry| entry["detail"]["outcome"] == outcome), "{noted:?}");
    }
}

#[tokio::test]
async fn nobody_waits_longer_than_the_timeout() {
    let moderator = StubModerator::start().await;
    moderator.on_prompts(Reply::Wait);
    let short = |settings: &mut ModerationSettings| settings.timeout = Duration::from_millis(50);
    let app = asking(&moderator, short).await;
    assert_eq!(app.post(&image(1)).await.code(), "moderation_unavailable");
    assert_eq!(noted(&app).await[0]["detail"]["reason"], "timed out");
    assert_eq!(app.jobs.wait_until_idle(Duration::from_secs(20)).await, 0);
    moderator.release();
    let app = asking(&moderator, |_| {}).await;
    assert_eq!(app.post_with(&image(2), &AS_IMAGE).await.status, StatusCode::OK, "a slow answer is one");
}

#[tokio::test]
async fn a_flood_of_prompts_gets_nothing_past_a_review() {
    let moderator = StubModerator::start().await;
    moderator.on_prompts(Reply::Wait);
    let timeout = Duration::from_millis(500);
    let settings = ModerationSettings { on_failure: OnFailure::Allow, timeout, ..moderator.settings() };
    let app = TestApp::with(Options { moderation: Some(settings), jobs_max: 400, ..Options::default() }).await;
    let bodies: Vec<Value> = (0..80).map(image).collect();
    let answers = join_all(bodies.iter().map(|body| app.post(body))).await;
    let count = |status: StatusCode| answers.iter().filter(|answer| answer.status == status).count();
    // How many of them get a turn depends on this machine.
    let (refused, accepted) = (count(StatusCode::SERVICE_UNAVAILABLE), count(StatusCode::ACCEPTED));
    assert!(refused > 0 && accepted >= 16 && refused + accepted == answers.len(), "{refused} {accepted}");
    let entries = Administrator::of(&app).await.get("/v1/audit?limit=100").await["data"].clone();
    let entries = entries.as_array().expect("entries");
    let crowded = entries.iter().find(|entry| entry["detail"]["outcome"] == "failed_refused").expect("a refusal");
    assert_eq!(crowded["detail"]["reason"], "not asked: too many reviews at the same time");
}

#[tokio::test]
async fn a_service_that_is_down_or_has_another_secret_gives_no_answer() {
    let moderator = StubModerator::start().await;
    let down = |settings: &mut ModerationSettings| settings.url = "http://127.0.0.1:1/review".to_owned();
    let app = asking(&moderator, down).await;
    assert_eq!(app.post(&image(1)).await.code(), "moderation_unavailable");
    let app = asking(&moderator, |settings| settings.secret = None).await;
    assert_eq!(app.post(&image(1)).await.code(), "moderation_unavailable");
    assert_eq!(noted(&app).await[0]["detail"]["reason"], "answered with status 401");
    assert!(moderator.asked().is_empty());
}

#[tokio::test]
async fn while_images_are_reviewed_keys_see_no_previews() {
    let moderator = StubModerator::start().await;
    let app = asking(&moderator, |_| {}).await;
    app.control.hold();
    let job = app.submit(&image(1)).await;
    app.control.held().await;
    let administrator = Administrator::of(&app).await;
    let preview = format!("/v1/jobs/{job}/preview");
    // The first look asks for one.
    administrator.ask("GET", &preview, None).await;
    app.control.let_pass(1);
    while administrator.ask("GET", &preview, None).await.status != StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let path = format!("/v1/inference/jobs/{job}/events?preview=true");
    let (events, ()) = tokio::join!(app.get(&path), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        app.control.release();
    });
    let events = events.text();
    assert!(events.contains("succeeded") && !events.contains("data:image"), "{events}");
}

#[tokio::test]
async fn a_restart_runs_what_was_allowed_and_reviews_its_image() {
    let moderator = StubModerator::start().await;
    let app = asking(&moderator, |_| {}).await;
    app.control.hold();
    let job = app.submit(&image(1)).await;
    app.control.held().await;
    app.crash().await;
    moderator.on_prompts(Reply::Refuse("not any more"));
    moderator.on_images(Reply::Refuse("too orange"));
    let app = app.restart(Options { moderation: Some(moderator.settings()), ..Options::default() }).await;
    let view = app.until_status(&job, "failed").await;
    assert_eq!(view["error"]["code"], "content_refused");
    let stages: Vec<Value> = moderator.asked().iter().map(|asked| asked["stage"].clone()).collect();
    assert_eq!(stages, ["before", "after"], "its prompt was allowed once");
}
