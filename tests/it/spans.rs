//! Log lines about a job are in its span on every thread; a step follows from its jobs, a job from its request; and no
//! span or line contains a prompt or a key.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

use crate::app::{Options, TestApp, image};

/// The log lines, and which span follows from which; a span is written as `name field=value …`.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Records>>);

#[derive(Default)]
struct Records {
    log: Vec<u8>,
    spans: HashMap<u64, String>,
    follows: Vec<(String, String)>,
    closed: Vec<String>,
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").expect("a string takes all");
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Captured {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut text = Fields(attributes.metadata().name().to_owned());
        attributes.record(&mut text);
        self.0.lock().expect("not poisoned").spans.insert(id.into_u64(), text.0);
    }

    fn on_follows_from(&self, span: &Id, follows: &Id, _: Context<'_, S>) {
        let mut told = self.0.lock().expect("not poisoned");
        let pair = (told.spans[&span.into_u64()].clone(), told.spans[&follows.into_u64()].clone());
        told.follows.push(pair);
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let mut told = self.0.lock().expect("not poisoned");
        let closed = told.spans.remove(&id.into_u64()).unwrap_or_default();
        told.closed.push(closed);
    }
}

impl Captured {
    fn listener(&self, level: &str) -> Dispatch {
        let writer = self.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        Dispatch::new(tracing_subscriber::registry().with(EnvFilter::new(level)).with(lines).with(self.clone()))
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("not poisoned").log).into_owned()
    }

    /// The lines that contain `text`.
    fn lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// The spans that those starting with `name` follow from.
    fn origins(&self, name: &str) -> Vec<(String, String)> {
        let told = self.0.lock().expect("not poisoned");
        told.follows.iter().filter(|(span, _)| span.starts_with(name)).cloned().collect()
    }
}

/// A worker whose engine thread is captured as well.
async fn app_traced_by(listener: &Dispatch) -> TestApp {
    let options = Options::default();
    options.control.listen(listener.clone());
    TestApp::with(options).await
}

#[tokio::test]
async fn a_job_and_its_steps_have_spans_that_lead_to_each_other() {
    let captured = Captured::default();
    let listener = captured.listener("trace");
    let _logging = tracing::dispatcher::set_default(&listener);
    // See `secrets.rs`: with a single subscriber, threads without one decide which events are enabled.
    let _second = Dispatch::new(tracing_subscriber::registry());
    let app = app_traced_by(&listener).await;
    app.control.hold();
    let prompt = "a secret otter in a teapot";
    let body = |seed: u64| {
        let mut body = image(seed);
        body["prompt"] = json!(prompt);
        body
    };
    let accepted = app.post_with(&body(1), &[("x-request-id", "request-of-the-first")]).await;
    let first = accepted.json()["job_id"].as_str().expect("an id").to_owned();
    app.control.held().await;
    let second = app.submit(&body(2)).await;
    app.control.release();
    for id in [&first, &second] {
        app.until_status(id, "succeeded").await;
    }
    app.stop_cleanly().await;

    for id in [&first, &second] {
        let name = format!("job={id}");
        for text in ["job ended", "admitted"] {
            let lines = captured.lines(text);
            let own = lines.iter().find(|line| line.contains(&format!("job{{{name}")));
            let own = own.unwrap_or_else(|| panic!("no line in the span of {id}: {lines:?}"));
            assert!(own.contains("width=64 height=64 steps=2"), "{own}");
        }
        let told = captured.0.lock().expect("not poisoned");
        assert!(told.closed.iter().any(|span| span.starts_with(&format!("job {name}"))), "it ends with the job");
    }
    let origins = captured.origins(&format!("job job={first}"));
    assert!(matches!(&origins[..], [(_, request)] if request == "request id=\"request-of-the-first\""), "{origins:?}");
    let accepted = captured.lines("accepted").into_iter().find(|line| line.contains(&first)).expect("a line");
    assert!(accepted.contains("request-of-the-first"), "{accepted}");

    let steps = captured.origins("step ");
    let (alone, _) = &steps[0];
    assert!(alone.contains("images=1") && alone.contains("reason=\"everyone_steps\""), "{alone}");
    let together: Vec<&String> =
        steps.iter().filter(|(step, _)| step.contains("images=2")).map(|(_, job)| job).collect();
    for id in [&first, &second] {
        assert!(together.iter().any(|job| job.starts_with(&format!("job job={id}"))), "{steps:?}");
    }
    assert!(steps.iter().all(|(step, _)| step.contains(" tokens=")), "{steps:?}");

    let spans = format!("{:?}", captured.0.lock().expect("not poisoned").closed);
    for (place, text) in [("the log", captured.log()), ("a span", spans)] {
        assert!(!text.contains("otter"), "the prompt is in {place}");
        assert!(!text.contains(&app.keys.inference[13..45]), "a key is in {place}");
    }
}

#[tokio::test]
async fn at_the_default_level_there_are_no_such_spans_and_lines_still_name_the_job() {
    let captured = Captured::default();
    let listener = captured.listener("info");
    let _logging = tracing::dispatcher::set_default(&listener);
    let _second = Dispatch::new(tracing_subscriber::registry().with(EnvFilter::new("info")));
    let app = app_traced_by(&listener).await;
    let id = app.submit(&image(1)).await;
    app.until_status(&id, "succeeded").await;
    app.stop_cleanly().await;
    let ended = captured.lines("job ended");
    assert!(ended.iter().any(|line| line.contains(&format!("job={id}"))), "{ended:?}");
    let told = captured.0.lock().expect("not poisoned");
    assert!(told.follows.is_empty(), "{:?}", told.follows);
    assert!(told.closed.iter().all(|span| span.starts_with("request ")), "{:?}", told.closed);
}
