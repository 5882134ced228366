//! Projects: limits and budgets that keys share, and what is told when a budget is used.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use fluxserve::auth::KeyQuery;
use fluxserve::domain::budget::{BudgetHolder, BudgetLevel};
use fluxserve::domain::money::Prices;
use fluxserve::domain::usage::STEPS_BESIDE;
use fluxserve::usage::BudgetAlert;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::app::{Answer, Options, TestApp, image, request};
use crate::management::Administrator;

const PATIENCE: Duration = Duration::from_secs(20);

/// A project with two keys.
struct Shared<'a> {
    app: &'a TestApp,
    administrator: Administrator<'a>,
    path: String,
    keys: [(String, String); 2],
}

impl<'a> Shared<'a> {
    async fn new(app: &'a TestApp, limits: Value) -> Self {
        let administrator = Administrator::of(app).await;
        let made = administrator.ask("POST", "/v1/projects", Some(json!({ "name": "shop", "limits": limits }))).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        let id = made.json()["id"].as_str().expect("an id").to_owned();
        let key = |name: &str| json!({ "name": name, "scope": { "inference": true }, "project": id });
        let keys = [administrator.create(key("one")).await, administrator.create(key("two")).await];
        Self { app, administrator, path: format!("/v1/projects/{id}"), keys }
    }

    async fn generate(&self, key: usize, body: &Value) -> Answer {
        self.app.send(request("POST", "/v1/inference/image", Some(&self.keys[key].1), Some(body))).await
    }

    async fn list(&self, key: usize) -> Answer {
        self.app.send(request("GET", "/v1/inference/jobs", Some(&self.keys[key].1), None)).await
    }

    async fn edit(&self, body: Value) -> Value {
        let answer = self.administrator.ask("PATCH", &self.path, Some(body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    }
}

/// The largest image, whose megapixel-steps are a sixteenth of `steps` and those beside, about.
fn large(steps: u32) -> Value {
    let mut body = image(1);
    (body["width"], body["height"], body["steps"]) = (json!(256), json!(256), json!(steps));
    body
}

fn cost(steps: u32) -> f64 {
    f64::from(256 * 256 * (steps + STEPS_BESIDE)) / 1e6
}

async fn until_idle(app: &TestApp) {
    assert_eq!(app.jobs.wait_until_idle(PATIENCE).await, 0);
}

#[track_caller]
fn assert_of_project(answer: &Answer, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, code), "{}", answer.text());
    assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("project")), "{}", answer.text());
    assert_ne!(answer.header("retry-after"), "");
}

#[tokio::test]
async fn keys_of_a_project_share_its_requests() {
    let app = TestApp::start().await;
    let shared = Shared::new(&app, json!({ "requests_per_minute": 3 })).await;
    for key in [0, 1, 0] {
        assert_eq!(shared.list(key).await.status, StatusCode::OK);
    }
    let refused = shared.list(1).await;
    assert_of_project(&refused, "rate_limited");
    assert_eq!(refused.header("ratelimit-policy"), r#""project-requests";q=3;w=60"#);
    // A limit of the key applies as well, and what the project refuses costs the key nothing.
    shared.administrator.ask("PATCH", &shared.keys[0].0, Some(json!({ "limits": { "requests_per_minute": 2 } }))).await;
    for _ in 0..3 {
        assert_of_project(&shared.list(0).await, "rate_limited");
    }
    shared.edit(json!({ "limits": { "requests_per_minute": null } })).await;
    let own = [shared.list(0).await, shared.list(0).await, shared.list(0).await];
    assert_eq!(own.iter().filter(|answer| answer.status == StatusCode::OK).count(), 2, "the key's own two");
    assert!(!own[2].text().contains("project"), "{}", own[2].text());
}

#[tokio::test]
async fn keys_of_a_project_share_its_jobs_also_after_a_crash() {
    let app = TestApp::start().await;
    let shared = Shared::new(&app, json!({ "concurrent_jobs": 2 })).await;
    app.control.hold();
    assert_eq!(shared.generate(0, &image(1)).await.status, StatusCode::ACCEPTED);
    assert_eq!(shared.generate(1, &image(2)).await.status, StatusCode::ACCEPTED);
    for key in [0, 1] {
        assert_of_project(&shared.generate(key, &image(3)).await, "concurrent_jobs_limit");
    }
    let key = shared.keys[0].1.clone();
    drop(shared);
    app.crash().await;
    let options = Options { waits_for_ready: false, ..Options::default() };
    options.control.hold();
    let app = app.restart(options).await;
    let submission = || request("POST", "/v1/inference/image", Some(&key), Some(&image(4)));
    assert_of_project(&app.send(submission()).await, "concurrent_jobs_limit");
    app.control.release();
    until_idle(&app).await;
    assert_eq!(app.send(submission()).await.status, StatusCode::ACCEPTED);
    until_idle(&app).await;
}

#[tokio::test]
async fn keys_of_a_project_share_its_day_and_a_change_applies_at_once() {
    let app = TestApp::start().await;
    let shared = Shared::new(&app, json!({ "megapixel_steps_per_day": 6 })).await;
    assert_eq!(shared.generate(0, &large(40)).await.status, StatusCode::ACCEPTED);
    assert_eq!(shared.generate(1, &large(40)).await.status, StatusCode::ACCEPTED);
    until_idle(&app).await;
    assert_of_project(&shared.generate(0, &large(40)).await, "daily_limit");
    // A key that leaves the project is free of it, from the next request on.
    shared.administrator.ask("PATCH", &shared.keys[0].0, Some(json!({ "project": null }))).await;
    assert_eq!(shared.generate(0, &large(40)).await.status, StatusCode::ACCEPTED);
    assert_of_project(&shared.generate(1, &large(40)).await, "daily_limit");
    shared.edit(json!({ "limits": { "megapixel_steps_per_day": 600 } })).await;
    assert_eq!(shared.generate(1, &large(40)).await.status, StatusCode::ACCEPTED);
    until_idle(&app).await;
}

#[tokio::test]
async fn a_project_is_managed_and_goes_when_its_keys_have_left() {
    let app = TestApp::start().await;
    let shared = Shared::new(&app, json!({ "budget": { "megapixel_steps": 10 } })).await;
    let administrator = &shared.administrator;
    let view = administrator.get(&shared.path).await;
    assert_eq!((&view["name"], &view["keys"]), (&json!("shop"), &json!(2)));
    let limits = json!({
        "requests_per_minute": null, "concurrent_jobs": null, "megapixel_steps_per_day": null,
        "budget": { "megapixel_steps": 10 },
    });
    assert_eq!(view["limits"], limits);
    assert_eq!((&view["budget"]["share"], &view["budget"]["used"]["money"]), (&json!(0.0), &json!(null)));
    assert_eq!(administrator.get("/v1/projects").await["data"], json!([view]));
    let key = administrator.get(&shared.keys[0].0).await;
    assert_eq!(view["id"], key["project"]);

    let again = administrator.ask("POST", "/v1/projects", Some(json!({ "name": "shop" }))).await;
    assert_eq!(again.code(), "project_exists");
    assert_eq!(administrator.ask("DELETE", &shared.path, None).await.code(), "project_in_use");
    for (body, field) in [
        (json!({ "name": "" }), "name"),
        (json!({ "name": null }), "name"),
        (json!({ "limits": { "concurrent_jobs": 0 } }), "limits.concurrent_jobs"),
        (json!({ "limits": { "budget": {} } }), "limits.budget.megapixel_steps"),
        (json!({ "limits": { "budget": { "megapixel_steps": 0 } } }), "limits.budget.megapixel_steps"),
        (json!({ "limits": { "budget": { "megapixel_steps": 1, "money": "1" } } }), "limits.budget.money"),
        (json!({ "limits": { "budget": { "money": "1" } } }), "limits.budget.money"),
        (json!({ "limits": { "budget": { "money": "1e3" } } }), "limits.budget.money"),
        (json!({ "limits": { "priority": "high" } }), "limits.priority"),
        (json!({ "color": "red" }), "color"),
    ] {
        let answer = administrator.ask("PATCH", &shared.path, Some(body.clone())).await;
        assert_eq!(answer.fields(), [field], "{body}");
    }
    let nowhere = json!({ "project": "018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f" });
    assert_eq!(administrator.ask("PATCH", &shared.keys[0].0, Some(nowhere)).await.fields(), ["project"]);
    let unknown = administrator.ask("GET", "/v1/projects/018f3c1e-9d5b-7a2c-8e4f-6a1b2c3d4e5f", None).await;
    assert_eq!(unknown.code(), "project_not_found");

    administrator.ask("DELETE", &shared.keys[0].0, None).await;
    administrator.ask("PATCH", &shared.keys[1].0, Some(json!({ "project": null }))).await;
    let gone = administrator.ask("DELETE", &shared.path, None).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "a revoked key does not keep it: {}", gone.text());
    let actions = administrator.get("/v1/audit?limit=100").await["data"].as_array().expect("entries").clone();
    let of_projects =
        actions.iter().filter(|entry| entry["action"].as_str().is_some_and(|word| word.starts_with("project_")));
    let told: Vec<_> = of_projects.map(|entry| entry["action"].clone()).collect();
    assert_eq!(told, ["project_deleted", "project_created"]);
}

/// Compares budgets as the worker does, until the task is aborted.
fn watch(app: &TestApp) -> JoinHandle<()> {
    let usage = app.usage.clone();
    tokio::spawn(async move { usage.watch_budgets().await })
}

async fn until_alerts(app: &TestApp, count: usize) -> Vec<BudgetAlert> {
    let started = Instant::now();
    loop {
        let alerts = app.usage.alerts_after(0, 100).await.expect("read");
        if alerts.len() >= count {
            return alerts;
        }
        assert!(started.elapsed() < PATIENCE, "{alerts:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn levels(alerts: &[BudgetAlert]) -> Vec<(&'static str, BudgetLevel)> {
    alerts.iter().map(|alert| (alert.holder.kind(), alert.level)).collect()
}

#[tokio::test]
async fn a_budget_is_told_of_once_a_month_and_stops_when_it_is_used_up() {
    let app = TestApp::start().await;
    let shared = Shared::new(&app, json!({ "budget": { "megapixel_steps": 10 } })).await;
    let watching = watch(&app);
    let one = cost(40);
    // Three are not 9, four are more than 10: so the fourth is refused, at 86 %.
    assert!(3.0 * one > 8.0 && 3.0 * one < 9.0 && 4.0 * one > 10.0, "{one}");
    for _ in 0..2 {
        assert_eq!(shared.generate(0, &large(40)).await.status, StatusCode::ACCEPTED);
        until_idle(&app).await;
    }
    assert_eq!(app.usage.alerts_after(0, 100).await.expect("read"), []);
    assert_eq!(shared.generate(1, &large(40)).await.status, StatusCode::ACCEPTED);
    until_idle(&app).await;
    assert_eq!(levels(&until_alerts(&app, 1).await), [("project", BudgetLevel::Warning)]);
    let refused = shared.generate(0, &large(40)).await;
    assert_of_project(&refused, "budget_exhausted");
    let seconds: i64 = refused.header("retry-after").parse().expect("seconds");
    let alerts = until_alerts(&app, 2).await;
    let expected = [("project", BudgetLevel::Warning), ("project", BudgetLevel::Exhausted)];
    assert_eq!(levels(&alerts), expected);
    assert_eq!((&alerts[1].detail["name"], &alerts[1].detail["percent"]), (&json!("shop"), &json!(100)));
    assert_eq!(app.usage.alerts_after(alerts[0].id, 100).await.expect("read"), alerts[1..]);
    let log = shared.administrator.get("/v1/audit?limit=2").await;
    let entry = &log["data"][0];
    assert_eq!((&entry["action"], &entry["actor"]), (&json!("budget_reached"), &json!("worker")));
    assert_eq!(shared.list(0).await.status, StatusCode::OK, "other requests cost nothing");
    drop(shared);

    // Neither a restart nor more refusals tell it again.
    watching.abort();
    let keys = app.service.page(KeyQuery { keys_max: 1, ..KeyQuery::default() }).await.expect("read");
    let project = keys.keys[0].limits.project.expect("a project").id;
    app.stop_cleanly().await;
    let app = app.restart(Options::default()).await;
    let watching = watch(&app);
    let administrator = Administrator::of(&app).await;
    let key = json!({ "name": "three", "scope": { "inference": true }, "project": project });
    let (_, key) = administrator.create(key).await;
    let submit = || app.send(request("POST", "/v1/inference/image", Some(&key), Some(&large(40))));
    assert_of_project(&submit().await, "budget_exhausted");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(levels(&until_alerts(&app, 2).await), expected);

    // A new month has its own.
    app.clock.advance(time::Duration::seconds(seconds));
    for _ in 0..3 {
        assert_eq!(submit().await.status, StatusCode::ACCEPTED, "a new month");
        until_idle(&app).await;
    }
    let alerts = until_alerts(&app, 3).await;
    assert_eq!(alerts[2].holder, BudgetHolder::Project(project));
    assert!(alerts[2].month > alerts[1].month && alerts[2].level == BudgetLevel::Warning);
    watching.abort();
}

#[tokio::test]
async fn a_budget_that_cannot_be_compared_holds_up_no_other() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let limits = json!({ "budget": { "megapixel_steps": 3 } });
    let mut keys = Vec::new();
    for name in ["first", "second"] {
        keys.push(
            administrator.create(json!({ "name": name, "scope": { "inference": true }, "limits": limits })).await,
        );
    }
    // The holder that comes first in the order in which they are compared.
    let first = keys[0].0.rsplit('/').next().expect("an id").to_owned();
    let outage = format!(
        "CREATE TRIGGER outage BEFORE INSERT ON budget_alerts WHEN NEW.holder_id = '{first}'
         BEGIN SELECT RAISE(ABORT, 'told to fail'); END"
    );
    sqlx::query(sqlx::AssertSqlSafe(outage)).execute(app.store.pool()).await.expect("a trigger");
    for (_, key) in &keys {
        app.send(request("POST", "/v1/inference/image", Some(key), Some(&large(40)))).await;
    }
    until_idle(&app).await;
    let watching = watch(&app);
    let alerts = until_alerts(&app, 1).await;
    assert_ne!(alerts[0].holder.id_text(), first);
    sqlx::query("DROP TRIGGER outage").execute(app.store.pool()).await.expect("no trigger");
    let alerts = until_alerts(&app, 2).await;
    assert_eq!(alerts[1].holder.id_text(), first, "it is tried again");
    watching.abort();
}

#[tokio::test]
async fn what_a_crash_left_uncompared_is_told_at_the_next_start() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let limits = json!({ "budget": { "megapixel_steps": 3 } });
    let key = json!({ "name": "own", "scope": { "inference": true }, "limits": limits });
    let (path, key) = administrator.create(key).await;
    // 2.88 of 3, and nobody compares.
    app.send(request("POST", "/v1/inference/image", Some(&key), Some(&large(40)))).await;
    until_idle(&app).await;
    let view = administrator.get(&format!("{path}/usage")).await;
    assert_eq!(view["budget"]["budget"], json!({ "megapixel_steps": 3 }));
    let share = view["budget"]["share"].as_f64().expect("a number");
    assert!((share - cost(40) / 3.0).abs() < 1e-9, "{share}");
    drop(administrator);
    app.crash().await;
    let app = app.restart(Options::default()).await;
    let watching = watch(&app);
    let alerts = until_alerts(&app, 1).await;
    assert_eq!(levels(&alerts), [("key", BudgetLevel::Warning)]);
    let entries =
        Administrator::of(&app).await.get("/v1/audit?limit=100").await["data"].as_array().expect("a list").clone();
    let entry = entries.iter().find(|entry| entry["action"] == "budget_reached").expect("an entry");
    assert_eq!(entry["key_id"], json!(alerts[0].holder.id_text()), "the log names the key");
    watching.abort();
}

#[tokio::test]
async fn a_budget_of_money_counts_what_the_prices_say() {
    let prices = Prices {
        per_megapixel_step: "1".parse().expect("a price"),
        per_engine_second: "0".parse().expect("a price"),
        currency: "EUR".parse().expect("a currency"),
    };
    let app = TestApp::with(Options { prices: Some(prices), ..Options::default() }).await;
    let shared = Shared::new(&app, json!({ "budget": { "money": "6" } })).await;
    // One costs 2.88.
    app.control.hold();
    for key in [0, 1] {
        assert_eq!(shared.generate(key, &large(40)).await.status, StatusCode::ACCEPTED);
    }
    assert_of_project(&shared.generate(0, &large(40)).await, "budget_exhausted");
    app.control.release();
    until_idle(&app).await;
    let refused = shared.generate(0, &large(40)).await;
    assert_of_project(&refused, "budget_exhausted");
    assert!(refused.text().contains("6.000000"), "{}", refused.text());
    let budget = shared.administrator.get(&shared.path).await["budget"].clone();
    assert_eq!(budget["used"]["money"], json!(format!("{:.6}", 2.0 * cost(40))));
    shared.edit(json!({ "limits": { "budget": { "money": "9" } } })).await;
    assert_eq!(shared.generate(0, &large(40)).await.status, StatusCode::ACCEPTED);
    until_idle(&app).await;
}
