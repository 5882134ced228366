//! Records a job's progress and outcome: one small task per job listens to the queue, encodes the image off the async
//! threads, stores it, and updates the row. The queues' sizes bound their number.

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;

use super::JobError;
use super::review::MODERATION_UNAVAILABLE;
use super::state::{Inner, Live};
use super::store::{Ending, JobEnd};
use crate::decode::put_back;
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId, ModelId, ProjectId};
use crate::domain::image::RgbImage;
use crate::domain::job::JobStatus;
use crate::domain::overlay::Overlay;
use crate::domain::provenance::Provenance;
use crate::domain::spec::GenerateSpec;
use crate::domain::usage::{ImageCost, Work};
use crate::encode::encode_with;
use crate::queue::event::{Effort, JobEvents, JobFailure, QueueEvent};
use crate::telemetry::metrics;

/// Wait before storing a job's outcome is retried; doubled before each further retry, up to the longest.
const WRITE_RETRY_DELAY: Duration = Duration::from_millis(200);
const WRITE_RETRY_DELAY_MAX: Duration = Duration::from_secs(3);
/// Wait before storing a job's start is retried.
const START_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Time between log lines about one job whose outcome cannot be stored.
const WRITE_FAILURE_LOG_INTERVAL: Duration = Duration::from_mins(1);

type Failure = (&'static str, &'static str);
const ENCODING_FAILED: Failure = ("encoding_failed", "the image could not be encoded");
const STORAGE_FAILED: Failure = ("storage_failed", "the image could not be stored");
const ENGINE_GONE: Failure = (JobFailure::ENGINE_FAILED, "the engine's thread has ended");

/// Recorder of one job.
pub(super) struct Recorder {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    /// The project that its owner belonged to when it was accepted.
    pub(super) project: Option<ProjectId>,
    pub(super) model: ModelId,
    pub(super) cost: ImageCost,
    pub(super) format: OutputFormat,
    pub(super) provenance: Option<Provenance>,
    /// What a generated region is put back into.
    pub(super) overlay: Option<Overlay>,
    /// In [`crate::domain::clock::Clock::uptime`]; negative if the job was accepted before a restart.
    pub(super) accepted_at: time::Duration,
    /// The deadline, in `uptime`.
    pub(super) deadline: Option<time::Duration>,
    pub(super) live: watch::Sender<Live>,
}

/// What an engine has done for a job.
#[derive(Clone, Copy)]
struct Done {
    started_at: Option<OffsetDateTime>,
    effort: Effort,
}

/// The start of a job, and whether it is stored.
#[derive(Default)]
struct Start {
    started_at: Option<OffsetDateTime>,
    /// When to retry storing it. `None`: it is stored.
    retry_at: Option<tokio::time::Instant>,
}

/// The provenance for an image's file, if enabled.
pub(super) fn provenance(inner: &Inner, spec: &GenerateSpec) -> Option<Provenance> {
    let is_enabled = inner.settings.writes_provenance;
    is_enabled.then(|| Provenance::of(spec, inner.catalog.revision(spec.model()), inner.catalog.precision()))
}

impl Recorder {
    /// Listens until the job ends. If the service is closed before that, the row stays: the next start retries the job.
    /// The job keeps its reservation until its outcome is stored, so that outcomes waiting for the database or the disk
    /// are bounded, too.
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
            if start.started_at.is_none() && matches!(event, QueueEvent::Started | QueueEvent::Step { .. }) {
                start.started_at = Some(inner.clock.now());
                self.note_start(inner, &mut start).await;
            }
            has_ended = matches!(event, QueueEvent::Finished(_) | QueueEvent::Failed(_) | QueueEvent::Canceled);
            let done = Done { started_at: start.started_at, effort: events.effort() };
            match event {
                QueueEvent::Started | QueueEvent::PutBack => self.live.send_modify(|live| live.step = 0),
                QueueEvent::Step { step, .. } => self.live.send_modify(|live| live.step = step),
                QueueEvent::Finished(image) => self.keep(inner, image, done).await,
                QueueEvent::Failed(JobFailure { code, reason }) => {
                    let error = JobError { code: code.to_owned(), reason };
                    self.end(inner, Ending::Failed(error), done).await;
                }
                QueueEvent::Canceled => self.end(inner, Ending::Canceled, done).await,
            }
        }
        if !has_ended && !inner.is_closed() {
            let done = Done { started_at: start.started_at, effort: events.effort() };
            self.fail(inner, ENGINE_GONE, done).await;
        }
    }

    /// Stores that an engine has started the job, which counts as an attempt if the process crashes. A failed write is
    /// retried while the job runs.
    async fn note_start(&self, inner: &Inner, start: &mut Start) {
        let Some(started_at) = start.started_at else { return };
        start.retry_at = None;
        if let Err(error) = inner.store.set_running(self.id, started_at).await {
            tracing::warn!(job = %self.id, %error, "the start of a job was not stored; retrying");
            start.retry_at = Some(tokio::time::Instant::now() + START_RETRY_DELAY);
        }
    }

    async fn fail(&self, inner: &Inner, (code, reason): Failure, done: Done) {
        self.end(inner, Ending::Failed(JobError { code: code.into(), reason: reason.into() }), done).await;
    }

    async fn keep(&self, inner: &Inner, image: RgbImage, done: Done) {
        let (id, format, provenance) = (self.id, self.format, self.provenance.clone());
        let overlay = self.overlay.clone();
        let encoding = tokio::task::spawn_blocking(move || {
            let whole = overlay.map(|overlay| put_back(&overlay, &image));
            encode_with(whole.as_ref().unwrap_or(&image), format, provenance.as_ref())
        });
        let encoded = match encoding.await {
            Ok(encoded) => encoded.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        };
        let (failure, cause) = match encoded {
            Ok(bytes) => {
                let reviewed = inner.review_image((id, self.owner), &self.model, (bytes.as_slice(), format)).await;
                if let Err(error) = reviewed {
                    return self.end(inner, Ending::Failed(error), done).await;
                }
                let result_bytes = bytes.len();
                match inner.store_image(id, format, bytes).await {
                    Ok(()) => return self.end(inner, Ending::Succeeded { result_bytes }, done).await,
                    Err(error) if inner.is_closed() => {
                        tracing::warn!(job = %id, %error, "an image is lost; the next start generates it again");
                        return;
                    }
                    Err(error) => (STORAGE_FAILED, error.to_string()),
                }
            }
            Err(cause) => (ENCODING_FAILED, cause),
        };
        tracing::error!(job = %id, %cause, "{}", failure.1);
        self.fail(inner, failure, done).await;
    }

    /// The usage charged to the owner. An image that was generated and then lost here costs nothing.
    fn work(&self, ending: &Ending, Effort { engine_time, starts, steps }: Effort) -> Work {
        let is_lost_here = matches!(ending, Ending::Failed(JobError { code, .. })
            if [STORAGE_FAILED.0, ENCODING_FAILED.0, MODERATION_UNAVAILABLE].contains(&code.as_str()));
        Work {
            images: u64::from(matches!(ending, Ending::Succeeded { .. })),
            pixel_steps: if is_lost_here { 0 } else { self.cost.pixel_steps(starts, steps) },
            engine_time,
        }
    }

    /// Stores the outcome, however long the database fails: a generated image must not be generated again.
    async fn end(&self, inner: &Inner, ending: Ending, Done { started_at, effort }: Done) {
        let work = self.work(&ending, effort);
        let (row_id, status, ended_at) = (self.id.to_string(), ending.status(), inner.clock.now());
        let end = JobEnd { ending, at: ended_at, started_at, work };
        let mut delay = WRITE_RETRY_DELAY;
        let mut logged_at: Option<Instant> = None;
        while let Err(error) = inner.store.set_final(&row_id, &end).await {
            if inner.store.is_closed() {
                tracing::error!(job = %self.id, "the outcome of a job is lost; the next start generates it again");
                return;
            }
            if logged_at.is_none_or(|moment| moment.elapsed() >= WRITE_FAILURE_LOG_INTERVAL) {
                tracing::error!(job = %self.id, ?error, "the outcome of a job cannot be stored; retrying");
                logged_at = Some(Instant::now());
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(WRITE_RETRY_DELAY_MAX);
        }
        inner.charged.note(self.owner, self.project);
        let uptime = inner.clock.uptime();
        let took = Duration::try_from(uptime - self.accepted_at).unwrap_or_default();
        metrics::job_ended(status.as_str(), took);
        if status == JobStatus::Succeeded && self.deadline.is_none_or(|end| uptime <= end) {
            metrics::job_in_time();
        }
        tracing::info!(job = %self.id, %status, seconds = took.as_secs_f64(), "job ended");
    }
}

impl Start {
    /// Waits until storing is due again; forever once it is stored.
    async fn retry(&self) {
        match self.retry_at {
            Some(moment) => tokio::time::sleep_until(moment).await,
            None => std::future::pending().await,
        }
    }
}
