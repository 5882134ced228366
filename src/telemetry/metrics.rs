//! Every metric of the worker: its name, unit, labels and buckets stand here and nowhere else.
//!
//! The other modules call these functions and never name a metric. Labels take a few fixed words each, so that the
//! number of series is bounded.

use std::sync::OnceLock;
use std::time::Duration;

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const HTTP_REQUESTS: &str = "fluxserve_http_requests_total";
const HTTP_SECONDS: &str = "fluxserve_http_request_duration_seconds";
const JOBS: &str = "fluxserve_jobs_total";
const JOB_SECONDS: &str = "fluxserve_job_duration_seconds";
const JOBS_CANCELED: &str = "fluxserve_jobs_canceled_total";
const GOOD_JOBS: &str = "fluxserve_jobs_in_time_total";
const PIXEL_STEPS: &str = "fluxserve_pixel_steps_total";
const QUEUE_DEPTH: &str = "fluxserve_queue_depth_jobs";
const QUEUE_SECONDS: &str = "fluxserve_queue_wait_seconds";
const IMAGES: &str = "fluxserve_engine_pictures";
const ADMIT_SECONDS: &str = "fluxserve_admit_duration_seconds";
const FINISH_SECONDS: &str = "fluxserve_finish_duration_seconds";
const STEP_SECONDS: &str = "fluxserve_step_duration_seconds";
const STEP_TOKENS: &str = "fluxserve_step_tokens";
const STEP_IMAGES: &str = "fluxserve_step_pictures";
const STEP_STOPS: &str = "fluxserve_step_stops_total";
const ENGINE_REBUILDS: &str = "fluxserve_engine_rebuilds_total";
const LOG_LINES_DROPPED: &str = "fluxserve_log_lines_dropped_total";

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; of use as a rate.
    Counter,
    /// As it is now.
    Gauge,
    /// How often a value fell into which bucket: appends `_bucket`, `_sum` and `_count` to its name.
    Histogram,
}

/// A metric, as those who read it know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name, without what a histogram's series append.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub meaning: &'static str,
}

const fn metric(name: &'static str, kind: Kind, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind, labels, meaning }
}

/// Every metric. What draws or watches them can be held to this: `deploy/grafana` is.
pub const METRICS: [Metric; 18] = [
    metric(HTTP_REQUESTS, Kind::Counter, &["route", "method", "status"], "HTTP requests answered"),
    metric(HTTP_SECONDS, Kind::Histogram, &["route"], "Time from a request's head to its answer's head"),
    metric(JOBS, Kind::Counter, &["status"], "Jobs that ended"),
    metric(JOB_SECONDS, Kind::Histogram, &["status"], "Time from a job's acceptance to its end"),
    metric(JOBS_CANCELED, Kind::Counter, &["cause"], "Jobs that were not drawn to their end"),
    metric(GOOD_JOBS, Kind::Counter, &[], "Jobs that succeeded, before their deadline where they had one"),
    metric(PIXEL_STEPS, Kind::Counter, &["model"], "What finished images cost a key's day: pixels times steps"),
    metric(QUEUE_DEPTH, Kind::Gauge, &["model", "priority"], "Jobs waiting for the engine"),
    metric(QUEUE_SECONDS, Kind::Histogram, &["model"], "Time from a job's acceptance to its admission by an engine"),
    metric(IMAGES, Kind::Gauge, &["model"], "Images admitted by the engines"),
    metric(ADMIT_SECONDS, Kind::Histogram, &["model"], "Time to encode a prompt and draw the noise"),
    metric(FINISH_SECONDS, Kind::Histogram, &["model"], "Time to decode an image"),
    metric(STEP_SECONDS, Kind::Histogram, &["model"], "Time of one denoising step of all images that share it"),
    metric(STEP_TOKENS, Kind::Histogram, &["model"], "Tokens that went through the model in one step"),
    metric(STEP_IMAGES, Kind::Histogram, &["model"], "Images that shared one step"),
    metric(STEP_STOPS, Kind::Counter, &["model", "reason"], "Steps, by why no further image was put into them"),
    metric(ENGINE_REBUILDS, Kind::Counter, &["model"], "Times an engine was thrown away and built again"),
    metric(
        LOG_LINES_DROPPED,
        Kind::Counter,
        &[],
        "Lines of the log that nobody read in time, or that could not be written",
    ),
];

const SECONDS_BUCKETS: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
const TOKEN_BUCKETS: [f64; 9] = [256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0];

/// How often histograms are folded while nobody scrapes; without it they would grow.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const IMAGE_BUCKETS: [f64; 7] = [1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0];

static INSTALLED: OnceLock<Option<MetricsHandle>> = OnceLock::new();

/// Renders what has been counted so far.
#[derive(Debug, Clone)]
pub struct MetricsHandle(PrometheusHandle);

impl MetricsHandle {
    /// The metrics of this process as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Starts counting. Later calls in the same process give the same handle; `None` when another recorder is in place.
pub fn install() -> Option<MetricsHandle> {
    INSTALLED.get_or_init(install_once).clone()
}

fn builder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets(&SECONDS_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(STEP_TOKENS.into()), &TOKEN_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(STEP_IMAGES.into()), &IMAGE_BUCKETS))
        .expect("the bucket lists are not empty")
}

fn install_once() -> Option<MetricsHandle> {
    let handle = builder().install_recorder().ok()?;
    describe_all();
    // There from the start, so that a first one is seen to come.
    log_lines_dropped(0);
    let upkeep = handle.clone();
    let spawned = std::thread::Builder::new().name("metrics-upkeep".into()).spawn(move || {
        loop {
            std::thread::sleep(UPKEEP_INTERVAL);
            upkeep.run_upkeep();
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "metrics are folded only when they are read: no thread for upkeep");
    }
    Some(MetricsHandle(handle))
}

fn describe_all() {
    for Metric { name, kind, meaning, .. } in METRICS {
        match kind {
            Kind::Counter => describe_counter!(name, meaning),
            Kind::Gauge => describe_gauge!(name, meaning),
            Kind::Histogram => describe_histogram!(name, meaning),
        }
    }
}

/// A request was answered. `route` is the route's template, never the path that was asked for.
pub fn request_answered(route: &str, method: &str, status: u16, took: Duration) {
    let route = route.to_owned();
    let labels = [("route", route.clone()), ("method", method.to_owned()), ("status", status.to_string())];
    counter!(HTTP_REQUESTS, &labels).increment(1);
    histogram!(HTTP_SECONDS, "route" => route).record(took.as_secs_f64());
}

/// A job came to its end.
pub fn job_ended(status: &'static str, took: Duration) {
    counter!(JOBS, "status" => status).increment(1);
    histogram!(JOB_SECONDS, "status" => status).record(took.as_secs_f64());
}

/// A job was not drawn to its end; `cause` is one of a few fixed words.
pub fn job_canceled(cause: &'static str) {
    counter!(JOBS_CANCELED, "cause" => cause).increment(1);
}

/// A job succeeded, in time.
pub fn job_in_time() {
    counter!(GOOD_JOBS).increment(1);
}

/// How many jobs wait, by their keys' priorities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Of keys that yield to others.
    pub low: usize,
    /// Of keys like most.
    pub normal: usize,
    /// Of keys that go before others.
    pub high: usize,
}

/// How many jobs wait and how many images are in the engines now.
pub fn queue_depth(model: &str, waiting: Waiting, admitted: usize) {
    for (priority, jobs) in [("low", waiting.low), ("normal", waiting.normal), ("high", waiting.high)] {
        gauge!(QUEUE_DEPTH, "model" => model.to_owned(), "priority" => priority).set(jobs as f64);
    }
    gauge!(IMAGES, "model" => model.to_owned()).set(admitted as f64);
}

/// An engine took a job in, after `waited`.
pub fn admitted(model: &str, waited: Duration, took: Duration) {
    histogram!(QUEUE_SECONDS, "model" => model.to_owned()).record(waited.as_secs_f64());
    histogram!(ADMIT_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
}

/// An engine decoded an image.
pub fn finished(model: &str, pixel_steps: u64, took: Duration) {
    counter!(PIXEL_STEPS, "model" => model.to_owned()).increment(pixel_steps);
    histogram!(FINISH_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
}

/// So many images are to share a step, and `stop`, one of a few fixed words, is why there are not more.
pub fn step_planned(model: &str, stop: &'static str, images: usize) {
    counter!(STEP_STOPS, "model" => model.to_owned(), "reason" => stop).increment(1);
    histogram!(STEP_IMAGES, "model" => model.to_owned()).record(images as f64);
}

/// The engine did one step.
pub fn step_done(model: &str, tokens: usize, took: Duration) {
    histogram!(STEP_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
    histogram!(STEP_TOKENS, "model" => model.to_owned()).record(tokens as f64);
}

/// So many lines of the log were dropped so far.
pub(super) fn log_lines_dropped(so_far: u64) {
    counter!(LOG_LINES_DROPPED).absolute(so_far);
}

/// An engine failed and is built again.
pub fn engine_rebuilt(model: &str) {
    counter!(ENGINE_REBUILDS, "model" => model.to_owned()).increment(1);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn count_everything() {
        let second = Duration::from_secs(1);
        request_answered("/v1/models", "GET", 200, second);
        job_ended("succeeded", second);
        job_canceled("request");
        job_in_time();
        queue_depth("a/model", Waiting::default(), 1);
        admitted("a/model", second, second);
        finished("a/model", 1, second);
        step_planned("a/model", "everyone_steps", 1);
        step_done("a/model", 1, second);
        engine_rebuilt("a/model");
        log_lines_dropped(1);
    }

    fn word(kind: Kind) -> &'static str {
        match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }

    /// `name{label="value",…} 1`: the name and the labels.
    fn series(line: &str) -> (&str, BTreeSet<&str>) {
        let (head, _) = line.rsplit_once(' ').expect("a value");
        let Some((name, labels)) = head.split_once('{') else { return (head, BTreeSet::new()) };
        let names = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
        (name, names.map(|(name, _)| name).collect())
    }

    #[test]
    fn the_table_says_what_is_counted() {
        let recorder = builder().build_recorder();
        ::metrics::with_local_recorder(&recorder, || {
            describe_all();
            count_everything();
        });
        let text = recorder.handle().render();
        let kinds: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let expected: BTreeMap<&str, &str> = METRICS.iter().map(|metric| (metric.name, word(metric.kind))).collect();
        assert_eq!(kinds, expected, "what is rendered, and what stands in the table");
        for Metric { name, kind, labels, meaning } in METRICS {
            assert!(text.contains(&format!("# HELP {name} {meaning}\n")), "{name} is not described");
            let own = |line: &&str| {
                let rest = series(line).0.strip_prefix(name);
                rest.is_some_and(|rest| rest.is_empty() || kind == Kind::Histogram && rest.starts_with('_'))
            };
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
            let mut found: BTreeSet<&str> = lines.iter().copied().filter(own).flat_map(|line| series(line).1).collect();
            found.remove("le");
            assert_eq!(found, labels.iter().copied().collect(), "the labels of {name}");
        }
    }
}
