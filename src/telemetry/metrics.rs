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
const PICTURES: &str = "fluxserve_engine_pictures";
const ADMIT_SECONDS: &str = "fluxserve_admit_duration_seconds";
const FINISH_SECONDS: &str = "fluxserve_finish_duration_seconds";
const STEP_SECONDS: &str = "fluxserve_step_duration_seconds";
const STEP_TOKENS: &str = "fluxserve_step_tokens";
const STEP_PICTURES: &str = "fluxserve_step_pictures";
const STEP_STOPS: &str = "fluxserve_step_stops_total";
const ENGINE_REBUILDS: &str = "fluxserve_engine_rebuilds_total";

/// Every metric's name, without what a histogram's series append.
pub const NAMES: [&str; 17] = [
    HTTP_REQUESTS,
    HTTP_SECONDS,
    JOBS,
    JOB_SECONDS,
    JOBS_CANCELED,
    GOOD_JOBS,
    PIXEL_STEPS,
    QUEUE_DEPTH,
    QUEUE_SECONDS,
    PICTURES,
    ADMIT_SECONDS,
    FINISH_SECONDS,
    STEP_SECONDS,
    STEP_TOKENS,
    STEP_PICTURES,
    STEP_STOPS,
    ENGINE_REBUILDS,
];

const SECONDS_BUCKETS: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];
const TOKEN_BUCKETS: [f64; 9] = [256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0];

/// How often histograms are folded while nobody scrapes; without it they would grow.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const PICTURE_BUCKETS: [f64; 7] = [1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0];

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

fn install_once() -> Option<MetricsHandle> {
    let builder = PrometheusBuilder::new()
        .set_buckets(&SECONDS_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(STEP_TOKENS.into()), &TOKEN_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(STEP_PICTURES.into()), &PICTURE_BUCKETS))
        .expect("the bucket lists are not empty");
    let handle = builder.install_recorder().ok()?;
    describe_all();
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
    describe_counter!(HTTP_REQUESTS, "HTTP requests answered, by route, method and status");
    describe_histogram!(HTTP_SECONDS, "Time from a request's head to its answer's head, by route");
    describe_counter!(JOBS, "Jobs that ended, by final status");
    describe_histogram!(JOB_SECONDS, "Time from a job's acceptance to its end, by final status");
    describe_counter!(JOBS_CANCELED, "Jobs that were not drawn to their end, by cause");
    describe_counter!(GOOD_JOBS, "Jobs that succeeded, before their deadline where they had one");
    describe_counter!(PIXEL_STEPS, "Pixels times denoising steps of finished pictures, by model");
    describe_gauge!(QUEUE_DEPTH, "Jobs waiting for the engine, by model and by their key's priority");
    describe_histogram!(QUEUE_SECONDS, "Time from a job's acceptance to its admission by an engine, by model");
    describe_gauge!(PICTURES, "Pictures admitted by the engines, by model");
    describe_histogram!(ADMIT_SECONDS, "Time to encode a prompt and draw the noise, by model");
    describe_histogram!(FINISH_SECONDS, "Time to decode a picture, by model");
    describe_histogram!(STEP_SECONDS, "Time of one denoising step of all pictures that share it, by model");
    describe_histogram!(STEP_TOKENS, "Tokens that went through the model in one step, by model");
    describe_histogram!(STEP_PICTURES, "Pictures that shared one step, by model");
    describe_counter!(STEP_STOPS, "Steps, by model and by why no further picture was put into them");
    describe_counter!(ENGINE_REBUILDS, "Times an engine was thrown away and built again, by model");
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

/// How many jobs wait and how many pictures are in the engines now.
pub fn queue_depth(model: &str, waiting: Waiting, admitted: usize) {
    for (priority, jobs) in [("low", waiting.low), ("normal", waiting.normal), ("high", waiting.high)] {
        gauge!(QUEUE_DEPTH, "model" => model.to_owned(), "priority" => priority).set(jobs as f64);
    }
    gauge!(PICTURES, "model" => model.to_owned()).set(admitted as f64);
}

/// An engine took a job in, after `waited`.
pub fn admitted(model: &str, waited: Duration, took: Duration) {
    histogram!(QUEUE_SECONDS, "model" => model.to_owned()).record(waited.as_secs_f64());
    histogram!(ADMIT_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
}

/// An engine decoded a picture.
pub fn finished(model: &str, pixel_steps: u64, took: Duration) {
    counter!(PIXEL_STEPS, "model" => model.to_owned()).increment(pixel_steps);
    histogram!(FINISH_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
}

/// So many pictures are to share a step, and `stop`, one of a few fixed words, is why there are not more.
pub fn step_planned(model: &str, stop: &'static str, pictures: usize) {
    counter!(STEP_STOPS, "model" => model.to_owned(), "reason" => stop).increment(1);
    histogram!(STEP_PICTURES, "model" => model.to_owned()).record(pictures as f64);
}

/// The engine did one step.
pub fn step_done(model: &str, tokens: usize, took: Duration) {
    histogram!(STEP_SECONDS, "model" => model.to_owned()).record(took.as_secs_f64());
    histogram!(STEP_TOKENS, "model" => model.to_owned()).record(tokens as f64);
}

/// An engine failed and is built again.
pub fn engine_rebuilt(model: &str) {
    counter!(ENGINE_REBUILDS, "model" => model.to_owned()).increment(1);
}
