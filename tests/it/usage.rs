//! Reports of usage: they add up to the table of jobs, whatever happens to the process.

use std::time::Duration;

use axum::http::StatusCode;
use fluxserve::domain::engine::EngineError;
use fluxserve::domain::money::Prices;
use serde_json::{Value, json};

use crate::app::{MODEL, Options, TestApp, image, request};
use crate::fake_engine::{Call, Fault};
use crate::management::Administrator;

const PATIENCE: Duration = Duration::from_secs(20);
const MICROS: u64 = 1_000_000;

/// A row of a CSV report, in whole units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Row {
    group: String,
    name: String,
    requests: Option<u64>,
    jobs: u64,
    images: u64,
    pixel_steps: u64,
    engine_microseconds: u64,
    cost_micros: Option<u64>,
}

/// An exact number of millionths.
fn millionths(text: &str) -> u64 {
    let (whole, fraction) = text.split_once('.').unwrap_or_else(|| panic!("no decimals: {text}"));
    assert_eq!(fraction.len(), 6, "{text}");
    whole.parse::<u64>().expect("digits") * MICROS + fraction.parse::<u64>().expect("digits")
}

fn rows(csv: &str) -> Vec<Row> {
    let mut lines = csv.split_terminator("\r\n");
    let head = lines.next().expect("a head");
    let has_costs = head.ends_with(",cost,currency");
    assert!(head.contains(",name,requests,jobs,images,megapixel_steps,engine_seconds"), "{head}");
    let row = |line: &str| {
        // No cell of these tests is quoted.
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(cells.len(), if has_costs { 9 } else { 7 }, "{line}");
        Row {
            group: cells[0].to_owned(),
            name: cells[1].to_owned(),
            requests: cells[2].parse().ok(),
            jobs: cells[3].parse().expect("a number"),
            images: cells[4].parse().expect("a number"),
            pixel_steps: millionths(cells[5]),
            engine_microseconds: millionths(cells[6]),
            cost_micros: has_costs.then(|| millionths(cells[7])),
        }
    };
    lines.map(row).collect()
}

async fn csv(administrator: &Administrator<'_>, query: &str) -> Vec<Row> {
    let answer = administrator.ask("GET", &format!("/v1/usage?format=csv{query}"), None).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "text/csv; charset=utf-8"));
    rows(&answer.text())
}

/// Jobs, images, pixel-steps and microseconds of all ended jobs, from their own rows.
async fn of_jobs(app: &TestApp) -> [u64; 4] {
    let sums: (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), COALESCE(SUM(status = 'succeeded'), 0), COALESCE(SUM(pixel_steps), 0),
                COALESCE(SUM(engine_microseconds), 0)
         FROM jobs WHERE finished_at_ms IS NOT NULL",
    )
    .fetch_one(app.store.pool())
    .await
    .expect("sums");
    [sums.0, sums.1, sums.2, sums.3].map(i64::unsigned_abs)
}

fn sum(rows: &[Row]) -> [u64; 4] {
    let of = |number: fn(&Row) -> u64| rows.iter().map(number).sum();
    [of(|row| row.jobs), of(|row| row.images), of(|row| row.pixel_steps), of(|row| row.engine_microseconds)]
}

/// Every report adds up to the jobs' own rows, to the unit. Returns the sums.
async fn assert_adds_up(app: &TestApp) -> [u64; 4] {
    assert_eq!(app.jobs.wait_until_idle(PATIENCE).await, 0);
    let expected = of_jobs(app).await;
    let administrator = Administrator::of(app).await;
    for group in ["key", "model", "day", "project"] {
        assert_eq!(sum(&csv(&administrator, &format!("&group_by={group}")).await), expected, "by {group}");
    }
    expected
}

fn prices(step: &str, second: &str) -> Prices {
    Prices {
        per_megapixel_step: step.parse().expect("a price"),
        per_engine_second: second.parse().expect("a price"),
        currency: "EUR".parse().expect("a currency"),
    }
}

async fn ask_as(app: &TestApp, key: &str, body: &Value) -> StatusCode {
    app.send(request("POST", "/v1/inference/image", Some(key), Some(body))).await.status
}

#[tokio::test]
async fn reports_add_up_to_the_jobs_whatever_becomes_of_them() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    app.post_with(&image(1), &[("prefer", "wait=20")]).await;
    assert_eq!(ask_as(&app, &app.keys.all, &image(2)).await, StatusCode::ACCEPTED);
    administrator.ask("POST", "/v1/playground/image", Some(image(3))).await;
    assert_eq!(assert_adds_up(&app).await[..2], [3, 3]);
    // One fails at its admission, one after a step, one is canceled in the queue and one while it runs.
    app.control.on_next_admit(Fault::Error(EngineError::Request("no".into())));
    let failed = app.submit(&image(4)).await;
    app.until_status(&failed, "failed").await;
    app.control.on_next_step(Fault::Error(EngineError::Fatal("gone".into())));
    let restarted = app.submit(&image(5)).await;
    app.until_status(&restarted, "succeeded").await;
    app.control.hold();
    let running = app.submit(&image(6)).await;
    app.control.held().await;
    let queued = app.submit(&image(7)).await;
    app.delete(&format!("/v1/inference/jobs/{queued}")).await;
    let running = format!("/v1/inference/jobs/{running}");
    tokio::join!(app.delete(&running), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        app.control.release();
    });
    let [jobs, images, pixel_steps, _] = assert_adds_up(&app).await;
    assert_eq!((jobs, images), (7, 4));
    assert!(pixel_steps > 4 * 64 * 64 * 6, "work that was repeated or thrown away counts");
    // What is used stays when jobs are forgotten.
    app.clock.advance(time::Duration::hours(25));
    assert_eq!(app.jobs.sweep().await.expect("a sweep"), 7);
    assert_eq!(of_jobs(&app).await[0], 0);
    let administrator = Administrator::of(&app).await;
    assert_eq!(sum(&csv(&administrator, "").await)[..3], [jobs, images, pixel_steps]);
}

#[tokio::test]
async fn reports_add_up_across_crashes_at_any_moment() {
    let mut app = TestApp::start().await;
    let mut ended = 0;
    // Before an engine has a job, while its prompt is read, between its steps, and when it is done.
    for crash_at in 0..5_u64 {
        let seed = 100 + crash_at;
        if crash_at < 4 {
            app.control.hold();
        }
        let first = app.submit(&image(seed)).await;
        let second = app.submit(&image(seed + 1000)).await;
        match crash_at {
            0 => {}
            1 => app.control.held().await,
            2 | 3 => {
                app.control.held().await;
                app.control.let_pass(crash_at as u32 - 1);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            _ => {
                app.until_status(&first, "succeeded").await;
                app.until_status(&second, "succeeded").await;
            }
        }
        app.crash().await;
        app = app.restart(Options::default()).await;
        for job in [&first, &second] {
            app.until_status(job, "succeeded").await;
        }
        ended += 2;
        let [jobs, images, pixel_steps, _] = assert_adds_up(&app).await;
        assert_eq!((jobs, images), (ended, ended), "crash {crash_at}");
        assert_eq!(
            pixel_steps,
            ended * 64 * 64 * 6,
            "what a crash has lost is not charged, and nothing is charged twice"
        );
    }
}

#[tokio::test]
async fn an_end_that_could_not_be_stored_is_charged_once() {
    let app = TestApp::start().await;
    let outage = "CREATE TRIGGER outage BEFORE INSERT ON work_by_day BEGIN SELECT RAISE(ABORT, 'told to fail'); END";
    sqlx::query(outage).execute(app.store.pool()).await.expect("a trigger");
    let id = app.submit(&image(1)).await;
    app.until_status(&id, "running").await;
    app.control.until_called(Call::Finish(1)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let view = app.get(&format!("/v1/inference/jobs/{id}")).await.json();
    assert_eq!(view["status"], "running", "without its charge no job ends");
    assert_eq!(of_jobs(&app).await, [0; 4]);
    sqlx::query("DROP TRIGGER outage").execute(app.store.pool()).await.expect("no trigger");
    app.until_status(&id, "succeeded").await;
    assert_eq!(assert_adds_up(&app).await[..3], [1, 1, 64 * 64 * 6]);
}

#[tokio::test]
async fn each_group_has_its_rows() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    let project =
        administrator.ask("POST", "/v1/projects", Some(json!({ "name": "=shop" }))).await.json()["id"].clone();
    let key = json!({ "name": "web", "scope": { "inference": true }, "project": project });
    let (path, key) = administrator.create(key).await;
    let id = path.rsplit('/').next().expect("an id").to_owned();
    ask_as(&app, &key, &image(1)).await;
    app.post(&image(2)).await;
    administrator.ask("POST", "/v1/playground/image", Some(image(3))).await;
    assert_eq!(app.jobs.wait_until_idle(PATIENCE).await, 0);
    app.authenticator.record_uses_until(async {}).await;
    let one = 64 * 64 * 6;

    let by_key = csv(&administrator, "&group_by=key").await;
    let row = by_key.iter().find(|row| row.group == id).expect("the key's row");
    let shown = (row.name.as_str(), row.requests, row.jobs, row.images, row.pixel_steps);
    assert_eq!(shown, ("web", Some(1), 1, 1, one));
    assert!(by_key.iter().any(|row| row.group == "playground" && row.jobs == 1 && row.requests == Some(0)));
    let by_model = csv(&administrator, "&group_by=model").await;
    assert_eq!((by_model.len(), by_model[0].group.as_str(), by_model[0].pixel_steps), (1, MODEL, 3 * one));
    assert_eq!(by_model[0].requests, None);
    let by_project = csv(&administrator, "&group_by=project").await;
    let shown: Vec<_> = by_project.iter().map(|row| (row.name.as_str(), row.jobs)).collect();
    assert_eq!(shown, [("", 2), ("'=shop", 1)], "a name is no formula");
    assert_eq!(by_project[0].group, "none");
    // The project of a key is that of its acceptance.
    administrator.ask("PATCH", &path, Some(json!({ "project": null }))).await;
    ask_as(&app, &key, &image(4)).await;
    assert_eq!(app.jobs.wait_until_idle(PATIENCE).await, 0);
    assert_eq!(csv(&administrator, "&group_by=project").await[1].jobs, 1);

    app.authenticator.record_uses_until(async {}).await;
    let report = administrator.get("/v1/usage").await;
    let days = report["data"].as_array().expect("days");
    assert_eq!(days.len(), 30);
    assert_eq!((&days[29]["group"], &days[29]["jobs"], &days[29]["requests"]), (&report["to"], &json!(4), &json!(3)));
    assert_eq!((&days[0]["group"], &days[0]["jobs"]), (&report["from"], &json!(0)));
    assert_eq!(
        (&report["total"]["images"], &report["prices"], &report["total"]["cost"]),
        (&json!(4), &json!(null), &json!(null))
    );
    let lines = administrator.ask("GET", "/v1/usage?format=ndjson&group_by=key", None).await;
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    let text = lines.text();
    let read: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(read.iter().any(|row| row["group"] == json!(id) && row["name"] == "web" && row["jobs"] == 2), "{text}");
    let name = lines.header("content-disposition").to_owned();
    assert!(name.starts_with("attachment; filename=\"usage-") && name.ends_with("-by-key.ndjson\""), "{name}");
}

#[tokio::test]
async fn many_keys_come_in_pages_and_none_is_missed() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    // Some have work, some requests, some both: 1,200 keys in all.
    let mut transaction = app.store.pool().begin().await.expect("a transaction");
    for number in 0..1200_u32 {
        let id = format!("018f3c1e-9d5b-7a2c-8e4f-{number:012x}");
        if number % 3 != 0 {
            sqlx::query("INSERT INTO work_by_day VALUES (?, 20000, '', 'm', 1, 1, 7, 11)")
                .bind(&id)
                .execute(&mut *transaction)
                .await
                .expect("a row");
        }
        if number % 3 != 1 {
            sqlx::query("INSERT INTO key_requests VALUES (?, 20000, 2)")
                .bind(&id)
                .execute(&mut *transaction)
                .await
                .expect("a row");
        }
    }
    transaction.commit().await.expect("stored");
    // The day 20,000 is 2024-10-04.
    let range = "from=2024-10-04&to=2024-10-04&group_by=key";
    let all = csv(&administrator, &format!("&{range}")).await;
    assert_eq!(all.len(), 1200);
    assert!(all.windows(2).all(|pair| pair[0].group < pair[1].group), "in order, each once");
    assert_eq!(sum(&all), [800, 800, 800 * 7, 800 * 11]);
    assert_eq!(all.iter().filter_map(|row| row.requests).sum::<u64>(), 800 * 2);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = administrator.get(&format!("/v1/usage?{range}{cursor}")).await;
        let data = page["data"].as_array().expect("rows").clone();
        assert!(data.len() <= 1000, "{}", data.len());
        assert_eq!(page["total"]["jobs"], 800);
        seen.extend(data.iter().map(|row| row["group"].as_str().expect("an id").to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, all.iter().map(|row| row.group.clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn prices_make_costs() {
    let options = || Options { prices: Some(prices("0.5", "0.000001")), ..Options::default() };
    let app = TestApp::with(options()).await;
    app.post_with(&image(1), &[("prefer", "wait=20")]).await;
    let [.., microseconds] = assert_adds_up(&app).await;
    let administrator = Administrator::of(&app).await;
    let rows = csv(&administrator, "&group_by=key").await;
    let used = rows.iter().find(|row| row.jobs == 1).expect("a row");
    // 0.024576 megapixel-steps cost 0.012288; a second costs a millionth, and its fractions are rounded.
    let expected = 12_288 + (microseconds + 500_000) / MICROS;
    assert_eq!(used.cost_micros, Some(expected));
    let report = administrator.get("/v1/usage?group_by=model").await;
    let prices = json!({ "per_megapixel_step": "0.5", "per_engine_second": "0.000001", "currency": "EUR" });
    assert_eq!(report["prices"], prices);
    assert_eq!(report["total"]["cost"], json!(format!("0.{expected:06}")));
    assert_eq!(report["data"][0]["cost"], report["total"]["cost"]);
}

#[tokio::test]
async fn wrong_parameters_are_named() {
    let app = TestApp::start().await;
    let administrator = Administrator::of(&app).await;
    for (query, field) in [
        ("from=2030-02-30", "from"),
        ("from=yesterday", "from"),
        ("to=2030-1-1", "to"),
        ("from=2030-01-02&to=2030-01-01", "from"),
        ("from=2029-01-01&to=2030-02-05", "from"),
        ("group_by=owner", "group_by"),
        ("format=xml", "format"),
        ("group_by=key&cursor=x", "cursor"),
        ("format=csv&cursor=x", "cursor"),
        ("days=3", "days"),
    ] {
        let answer = administrator.ask("GET", &format!("/v1/usage?{query}"), None).await;
        assert_eq!(answer.fields(), [field], "{query}");
    }
    // The most days that are allowed.
    let most = administrator.get("/v1/usage?from=2029-01-01&to=2030-02-04").await;
    assert_eq!(most["data"].as_array().map(Vec::len), Some(400));
}
