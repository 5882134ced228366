//! Every metric of the worker, once: name, unit, labels and buckets.
//!
//! Other modules call these functions and never name a metric. Labels take a few fixed values, so the number of series is
//! bounded.

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
const BUDGETS_REACHED: &str = "fluxserve_budget_alerts_total";
const ENGINE_REBUILDS: &str = "fluxserve_engine_rebuilds_total";
const WEBHOOK_ATTEMPTS: &str = "fluxserve_webhook_attempts_total";
const WEBHOOKS_PENDING: &str = "fluxserve_webhooks_pending";
const LOG_LINES_DROPPED: &str = "fluxserve_log_lines_dropped_total";
const REVIEWS: &str = "fluxserve_moderation_reviews_total";

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; useful as a rate.
    Counter,
    /// The current value.
    Gauge,
    /// Counts of values by bucket: appends `_bucket`, `_sum` and `_count` to its name.
    Histogram,
}

/// A metric, as readers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name, without the suffixes of a histogram's series.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Its description.
    pub meaning: &'static str,
}

const fn metric(name: &'static str, kind: Kind, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind, labels, meaning }
}

/// Every metric. A test holds the dashboard of `deploy/grafana` to this table.
pub const METRICS: [Metric; 22] = [
    metric(HTTP_REQUESTS, Kind::Counter, &["route", "method", "status"], "HTTP requests answered"),
    metric(HTTP_SECONDS, Kind::Histogram, &["route"], "Time from a request's head to its response's head"),
    metric(JOBS, Kind::Counter, &["status"], "Jobs that ended"),
    metric(JOB_SECONDS, Kind::Histogram, &["status"], "Time from a job's acceptance to its end"),
    metric(JOBS_CANCELED, Kind::Counter, &["cause"], "Jobs that were canceled before their image was finished"),
    metric(GOOD_JOBS, Kind::Counter, &[], "Jobs that succeeded, within their deadline if they had one"),
    metric(
        PIXEL_STEPS,
        Kind::Counter,
        &["model"],
        "Pixels times steps of finished images, as counted against daily limits",
    ),
    metric(BUDGETS_REACHED, Kind::Counter, &["level"], "Budgets of keys and projects of which 80 % or all is used"),
    metric(QUEUE_DEPTH, Kind::Gauge, &["model", "priority"], "Pending jobs"),
    metric(QUEUE_SECONDS, Kind::Histogram, &["model"], "Time from a job's acceptance to its admission by an engine"),
    metric(IMAGES, Kind::Gauge, &["model"], "Images admitted by the engines"),
    metric(ADMIT_SECONDS, Kind::Histogram, &["model"], "Time to encode a prompt and sample the noise"),
    metric(FINISH_SECONDS, Kind::Histogram, &["model"], "Time to decode an image"),
    metric(STEP_SECONDS, Kind::Histogram, &["model"], "Time of one denoising step of a batch"),
    metric(STEP_TOKENS, Kind::Histogram, &["model"], "Tokens in one denoising step"),
    metric(STEP_IMAGES, Kind::Histogram, &["model"], "Images batched in one denoising step"),
    metric(
        STEP_STOPS,
        Kind::Counter,
        &["model", "reason"],
        "Denoising steps, by the reason why no further image was added to the batch",
    ),
    metric(ENGINE_REBUILDS, Kind::Counter, &["model"], "Engine rebuilds after a failure"),
    metric(WEBHOOK_ATTEMPTS, Kind::Counter, &["outcome"], "Attempts to deliver to webhooks"),
    metric(WEBHOOKS_PENDING, Kind::Gauge, &[], "Deliveries to webhooks that are not delivered yet"),
    metric(
        LOG_LINES_DROPPED,
        Kind::Counter,
        &[],
        "Log lines dropped because they were not read in time or could not be written",
    ),
    metric(REVIEWS, Kind::Counter, &["stage", "outcome"], "Reviews by the operator's moderation"),
];

const SECONDS_BUCKETS: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
const TOKEN_BUCKETS: [f64; 9] = [256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0];

/// Time between two folds of histograms, which would grow without bound while nothing scrapes them.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const IMAGE_BUCKETS: [f64; 7] = [1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0];

static INSTALLED: OnceLock<Option<MetricsHandle>> = OnceLock::new();

/// Renders the current values.
#[derive(Debug, Clone)]
pub struct MetricsHandle(PrometheusHandle);

impl MetricsHandle {
    /// The metrics of this process as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Installs the recorder. Later calls in the same process return the same handle; `None` if another recorder is installed.
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
    // Exported from the start, so that the first increment shows.
    log_lines_dropped(0);
    let upkeep = handle.clone();
    let spawned = std::thread::Builder::new().name("metrics-upkeep".into()).spawn(move || {
        loop {
            std::thread::sleep(UPKEEP_INTERVAL);
            upkeep.run_upkeep();
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start the thread for upkeep: metrics are folded only when they are read");
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

/// Counts a response. `route` is the route's template, never the requested path.
pub fn request_answered(route: &str, method: &str, status: u16, took: Duration) {
    let route = route.to_owned();
    let labels = [("route", route.clone()), ("method", method.to_owned()), ("status", status.to_string())];
    counter!(HTTP_REQUESTS, &labels).increment(1);
    histogram!(HTTP_SECONDS, "route" => route).record(took.as_secs_f64());
}

/// Counts a job that ended.
pub fn job_ended(status: &'static str, took: Duration) {
    counter!(JOBS, "status" => status).increment(1);
    histogram!(JOB_SECONDS, "status" => status).record(took.as_secs_f64());
}

/// Counts a canceled job; `cause` is one of a few fixed words.
pub fn job_canceled(cause: &'static str) {
    counter!(JOBS_CANCELED, "cause" => cause).increment(1);
}

/// Counts a job that succeeded in time.
pub fn job_in_time() {
    counter!(GOOD_JOBS).increment(1);
}

/// Counts a budget of which a share is used; `level` is one of two fixed words.
pub fn budget_reached(level: &'static str) {
    counter!(BUDGETS_REACHED, "level" => level).increment(1);
}

/// Pending jobs by their keys' priorities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Of keys with low priority.
    pub low: usize,
    /// Of keys with normal priority.
    pub normal: usize,
    /// Of keys with high priority.
    pub high: usize,
}

/// Sets the pending jobs and the images admitted by the engines.
pub fn queue_depth(model: &str, waiting: Waiting, admitted: usize) {
    for (priority, jobs) in [("low", waiting.low), ("normal", waiting.normal), ("high", waiting.high)] {
        gauge!(QUEUE_DEPTH, "model" => model.to_owned(), "priority" => priority).set(jobs as f64);
    }
    gauge!(IMAGES, "model" => model.to_owned()).set(admitted as f64);
}

/// Records that an engine admitted a job after `waited`.
pub fn admitted(model: &str, waited: Duration, took: Duration) {
    histogram!(QUEUE_SECONDS, "model" => model.to_owned()).record(waited.as_secs_f64());
    histogram!(ADMIT_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
}

/// Records that an engine decoded an image.
pub fn finished(model: &str, pixel_steps: u64, took: Duration) {
    counter!(PIXEL_STEPS, "model" => model.to_owned()).increment(pixel_steps);
    histogram!(FINISH_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
}

/// Records the images of a batch, and `stop`, one of a few fixed words, for why it has no more.
pub fn step_planned(model: &str, stop: &'static str, images: usize) {
    counter!(STEP_STOPS, "model" => model.to_owned(), "reason" => stop).increment(1);
    histogram!(STEP_IMAGES, "model" => model.to_owned()).record(images as f64);
}

/// Records a denoising step.
pub fn step_done(model: &str, tokens: usize, took: Duration) {
    histogram!(STEP_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
    histogram!(STEP_TOKENS, "model" => model.to_owned()).record(tokens as f64);
}

/// Counts an attempt to deliver to a webhook; `outcome` is one of a few fixed words.
pub fn webhook_attempted(outcome: &'static str) {
    counter!(WEBHOOK_ATTEMPTS, "outcome" => outcome).increment(1);
}

/// Sets the number of deliveries to webhooks that are pending.
pub fn webhooks_pending(deliveries: u64) {
    gauge!(WEBHOOKS_PENDING).set(deliveries as f64);
}

/// Sets the number of dropped lines of the log.
pub(super) fn log_lines_dropped(so_far: u64) {
    counter!(LOG_LINES_DROPPED).absolute(so_far);
}

/// Counts a review by the operator's moderation; both are of a few fixed words.
pub fn reviewed(stage: &'static str, outcome: &'static str) {
    counter!(REVIEWS, "stage" => stage, "outcome" => outcome).increment(1);
}

/// Counts an engine that failed and is rebuilt.
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
        budget_reached("warning");
        queue_depth("a/model", Waiting::default(), 1);
        admitted("a/model", second, second);
        finished("a/model", 1, second);
        step_planned("a/model", "everyone_steps", 1);
        step_done("a/model", 1, second);
        engine_rebuilt("a/model");
        webhook_attempted("delivered");
        webhooks_pending(1);
        log_lines_dropped(1);
        reviewed("before", "allowed");
    }

    fn word(kind: Kind) -> &'static str {
        match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }

    /// The name and the labels of `name{label="value",…} 1`.
    fn series(line: &str) -> (&str, BTreeSet<&str>) {
        let (head, _) = line.rsplit_once(' ').expect("a value");
        let Some((name, labels)) = head.split_once('{') else { return (head, BTreeSet::new()) };
        let names = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
        (name, names.map(|(name, _)| name).collect())
    }

    #[test]
    fn the_table_has_every_exported_metric() {
        let recorder = builder().build_recorder();
        ::metrics::with_local_recorder(&recorder, || {
            describe_all();
            count_everything();
        });
        let text = recorder.handle().render();
        let kinds: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let expected: BTreeMap<&str, &str> = METRICS.iter().map(|metric| (metric.name, word(metric.kind))).collect();
        assert_eq!(kinds, expected, "rendered metrics and the table");
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
