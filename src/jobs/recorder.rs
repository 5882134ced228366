//! Writes down what becomes of a job: one small task per job listens to the queue, encodes the image off the async
//! threads, stores it, and moves the row on. There are at most as many as the queues have places.

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;

use super::JobError;
use super::service::{Inner, Live};
use super::store::{Ending, JobEnd};
use crate::domain::engine::RgbImage;
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::job::JobStatus;
use crate::domain::provenance::Provenance;
use crate::domain::spec::GenerateSpec;
use crate::domain::usage::{ImageCost, Work};
use crate::encode::encode_with;
use crate::queue::event::{Effort, JobEvents, JobFailure, QueueEvent};
use crate::telemetry::metrics;

/// Wait before a job's end is written down a second time; doubled before each further try, up to the longest.
const WRITE_RETRY_DELAY: Duration = Duration::from_millis(200);
const WRITE_RETRY_DELAY_MAX: Duration = Duration::from_secs(3);
/// Wait before a job's start is written down again that the database did not take.
const START_RETRY_DELAY: Duration = Duration::from_secs(1);
/// How often one job complains that its end cannot be written down.
const WRITE_FAILURE_LOG_INTERVAL: Duration = Duration::from_mins(1);

type Failure = (&'static str, &'static str);
const ENCODING_FAILED: Failure = ("encoding_failed", "the image could not be encoded");
const STORAGE_FAILED: Failure = ("storage_failed", "the image could not be stored");
const NOBODY_DRAWS: Failure = (JobFailure::ENGINE_FAILED, "the engine's thread went down");

/// What one recorder looks after.
pub(super) struct Recorder {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    pub(super) cost: ImageCost,
    pub(super) format: OutputFormat,
    pub(super) provenance: Option<Provenance>,
    /// As [`crate::domain::clock::Clock::uptime`] counts; before its beginning where an earlier life accepted the job.
    pub(super) accepted_at: time::Duration,
    /// Until when somebody wants the image, as `uptime` counts.
    pub(super) wanted_until: Option<time::Duration>,
    pub(super) live: watch::Sender<Live>,
}

/// What came of a job in the engine.
#[derive(Clone, Copy)]
struct Drawn {
    began_at: Option<OffsetDateTime>,
    effort: Effort,
}

/// The start of a job, as far as it is written down.
#[derive(Default)]
struct Start {
    began_at: Option<OffsetDateTime>,
    /// When to write it down again: it has not been.
    retry_at: Option<tokio::time::Instant>,
}

/// What the file of an image tells of itself, if anything.
pub(super) fn provenance(inner: &Inner, spec: &GenerateSpec) -> Option<Provenance> {
    let is_told = inner.settings.writes_provenance;
    is_told.then(|| Provenance::of(spec, inner.catalog.revision(spec.model()), inner.catalog.precision()))
}

impl Recorder {
    /// Listens to the end. When the service was closed with the job unfinished, the row stays as it is: the next start
    /// draws it. The job keeps its place in the queue until its end is written down, so that ends which wait for the
    /// database or the disk are bounded, too.
    pub(super) async fn run(self, inner: &Inner, mut events: JobEvents) {
        let mut start = Start::default();
        let mut has_ended = false;
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                () = start.retry() => {
                    self.note_start(inner, &mut start).await;
                    continue;
                }
            };
            let Some(event) = event else { break };
            if start.began_at.is_none() && matches!(event, QueueEvent::Started | QueueEvent::Step { .. }) {
                start.began_at = Some(inner.clock.now());
                self.note_start(inner, &mut start).await;
            }
            has_ended = matches!(event, QueueEvent::Finished(_) | QueueEvent::Failed(_) | QueueEvent::Canceled);
            let drawn = Drawn { began_at: start.began_at, effort: events.effort() };
            match event {
                QueueEvent::Started | QueueEvent::PutBack => self.live.send_modify(|live| live.step = 0),
                QueueEvent::Step { step, .. } => self.live.send_modify(|live| live.step = step),
                QueueEvent::Finished(image) => self.keep(inner, image, drawn).await,
                QueueEvent::Failed(JobFailure { code, reason }) => {
                    let error = JobError { code: code.to_owned(), reason };
                    self.end(inner, Ending::Failed(error), drawn).await;
                }
                QueueEvent::Canceled => self.end(inner, Ending::Canceled, drawn).await,
            }
        }
        if !has_ended && !inner.is_closed() {
            let drawn = Drawn { began_at: start.began_at, effort: events.effort() };
            self.fail(inner, NOBODY_DRAWS, drawn).await;
        }
    }

    /// Writes down that the engine has begun the job, which then counts should the process go down. What the database
    /// does not take now is tried again while the job is drawn.
    async fn note_start(&self, inner: &Inner, start: &mut Start) {
        let Some(began_at) = start.began_at else { return };
        start.retry_at = None;
        if let Err(error) = inner.store.set_running(self.id, began_at).await {
            tracing::warn!(job = %self.id, %error, "the start of a job was not written down; trying on");
            start.retry_at = Some(tokio::time::Instant::now() + START_RETRY_DELAY);
        }
    }

    async fn fail(&self, inner: &Inner, (code, reason): Failure, drawn: Drawn) {
        self.end(inner, Ending::Failed(JobError { code: code.into(), reason: reason.into() }), drawn).await;
    }

    async fn keep(&self, inner: &Inner, image: RgbImage, drawn: Drawn) {
        let (id, format, provenance) = (self.id, self.format, self.provenance.clone());
        let encoding = tokio::task::spawn_blocking(move || encode_with(&image, format, provenance.as_ref()));
        let encoded = match encoding.await {
            Ok(encoded) => encoded.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        };
        let (failure, cause) = match encoded {
            Ok(bytes) => {
                let result_bytes = bytes.len();
                match inner.store_image(id, format, bytes).await {
                    Ok(()) => return self.end(inner, Ending::Succeeded { result_bytes }, drawn).await,
                    Err(error) if inner.is_closed() => {
                        tracing::warn!(job = %id, %error, "an image is lost; the next start draws it again");
                        return;
                    }
                    Err(error) => (STORAGE_FAILED, error.to_string()),
                }
            }
            Err(cause) => (ENCODING_FAILED, cause),
        };
        tracing::error!(job = %id, %cause, "{}", failure.1);
        self.fail(inner, failure, drawn).await;
    }

    /// What an ending costs the owner. An image that was drawn and lost here costs it nothing.
    fn work(&self, ending: &Ending, Effort { engine_time, begun, steps }: Effort) -> Work {
        let is_lost_here = matches!(ending, Ending::Failed(JobError { code, .. })
            if [STORAGE_FAILED, ENCODING_FAILED].iter().any(|(lost, _)| code == lost));
        Work {
            images: u64::from(matches!(ending, Ending::Succeeded { .. })),
            pixel_steps: if is_lost_here { 0 } else { self.cost.pixel_steps(begun, steps) },
            engine_time,
        }
    }

    /// Writes the end down, however long the database takes to come back: what was drawn must not be drawn again.
    async fn end(&self, inner: &Inner, ending: Ending, Drawn { began_at, effort }: Drawn) {
        let work = self.work(&ending, effort);
        let (row_id, status, ended_at) = (self.id.to_string(), ending.status(), inner.clock.now());
        let end = JobEnd { ending, at: ended_at, began_at, drawn: Some((self.owner, work)) };
        let mut delay = WRITE_RETRY_DELAY;
        let mut told_at: Option<Instant> = None;
        while let Err(error) = inner.store.set_final(&row_id, &end).await {
            if inner.store.is_closed() {
                tracing::error!(job = %self.id, "the end of a job is lost; the next start draws it again");
                return;
            }
            if told_at.is_none_or(|moment| moment.elapsed() >= WRITE_FAILURE_LOG_INTERVAL) {
                tracing::error!(job = %self.id, ?error, "the end of a job cannot be written down; trying on");
                told_at = Some(Instant::now());
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(WRITE_RETRY_DELAY_MAX);
        }
        let uptime = inner.clock.uptime();
        let took = Duration::try_from(uptime - self.accepted_at).unwrap_or_default();
        metrics::job_ended(status.as_str(), took);
        if status == JobStatus::Succeeded && self.wanted_until.is_none_or(|end| uptime <= end) {
            metrics::job_in_time();
        }
        tracing::info!(job = %self.id, %status, seconds = took.as_secs_f64(), "job ended");
    }
}

impl Start {
    /// Waits until it is to be written down again; for ever where it has been.
    async fn retry(&self) {
        match self.retry_at {
            Some(moment) => tokio::time::sleep_until(moment).await,
            None => std::future::pending().await,
        }
    }
}
