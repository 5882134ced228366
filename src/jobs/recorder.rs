//! Writes down what becomes of a job: one small task per job listens to the queue, encodes the picture off the async
//! threads, stores it, and moves the row on. There are at most as many as the queues have places.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::JobError;
use super::service::{Inner, Live};
use super::store::Ending;
use crate::domain::engine::RgbImage;
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::job::JobStatus;
use crate::domain::provenance::Provenance;
use crate::domain::spec::GenerateSpec;
use crate::domain::usage::Work;
use crate::encode::encode_with;
use crate::queue::event::{JobEvents, JobFailure, QueueEvent};
use crate::telemetry::metrics;

/// Wait before a job's end is written down a second time; doubled before each further try, up to the longest.
const WRITE_RETRY_DELAY: Duration = Duration::from_millis(200);
const WRITE_RETRY_DELAY_MAX: Duration = Duration::from_secs(3);
/// How often one job complains that its end cannot be written down.
const WRITE_FAILURE_LOG_INTERVAL: Duration = Duration::from_mins(1);

type Failure = (&'static str, &'static str);
const ENCODING_FAILED: Failure = ("encoding_failed", "the picture could not be encoded");
const STORAGE_FAILED: Failure = ("storage_failed", "the picture could not be stored");
const NOBODY_DRAWS: Failure = (JobFailure::ENGINE_FAILED, "the engine's thread went down");

/// What one recorder looks after.
pub(super) struct Recorder {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    /// Of the picture.
    pub(super) pixels: u64,
    pub(super) format: OutputFormat,
    pub(super) provenance: Option<Provenance>,
    pub(super) created_at: time::OffsetDateTime,
    pub(super) deadline_at: Option<time::OffsetDateTime>,
    pub(super) live: watch::Sender<Live>,
}

/// What the file of a picture tells of itself, if anything.
pub(super) fn provenance(inner: &Inner, spec: &GenerateSpec) -> Option<Provenance> {
    let is_told = inner.settings.writes_provenance;
    is_told.then(|| Provenance::of(spec, inner.catalog.revision(spec.model()), inner.catalog.precision()))
}

impl Recorder {
    /// Listens to the end. When the service was closed with the job unfinished, the row stays as it is: the next start
    /// draws it. The job keeps its place in the queue until its end is written down, so that ends which wait for the
    /// database are bounded, too.
    pub(super) async fn run(self, inner: &Inner, mut events: JobEvents) {
        let mut is_running = false;
        let mut has_ended = false;
        while let Some(event) = events.next().await {
            if !is_running && matches!(event, QueueEvent::Started | QueueEvent::Step { .. }) {
                is_running = true;
                if let Err(error) = inner.store.set_running(self.id, inner.clock.now()).await {
                    tracing::warn!(job = %self.id, %error, "the start of a job was not written down");
                }
            }
            has_ended = matches!(event, QueueEvent::Finished(_) | QueueEvent::Failed(_) | QueueEvent::Canceled);
            match event {
                QueueEvent::Started | QueueEvent::PutBack => self.live.send_modify(|live| live.step = 0),
                QueueEvent::Step { step, .. } => self.live.send_modify(|live| live.step = step),
                QueueEvent::Finished(picture) => self.keep(inner, picture, events.engine_time()).await,
                QueueEvent::Failed(JobFailure { code, reason }) => {
                    let error = JobError { code: code.to_owned(), reason };
                    self.end(inner, Ending::Failed(error), events.engine_time()).await;
                }
                QueueEvent::Canceled => self.end(inner, Ending::Canceled, events.engine_time()).await,
            }
        }
        if !has_ended && !inner.is_closed() {
            self.fail(inner, NOBODY_DRAWS, events.engine_time()).await;
        }
    }

    async fn fail(&self, inner: &Inner, (code, reason): Failure, engine_time: Duration) {
        self.end(inner, Ending::Failed(JobError { code: code.into(), reason: reason.into() }), engine_time).await;
    }

    async fn keep(&self, inner: &Inner, picture: RgbImage, engine_time: Duration) {
        let (id, format, files, provenance) = (self.id, self.format, inner.files.clone(), self.provenance.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let bytes = encode_with(&picture, format, provenance.as_ref())
                .map_err(|error| (ENCODING_FAILED, error.to_string()))?;
            files.write(id, format, &bytes).map_err(|error| (STORAGE_FAILED, error.to_string()))?;
            Ok(bytes.len())
        });
        let (failure, cause) = match stored.await {
            Ok(Ok(result_bytes)) => return self.end(inner, Ending::Succeeded { result_bytes }, engine_time).await,
            Ok(Err(failure)) => failure,
            Err(panic) => (ENCODING_FAILED, panic.to_string()),
        };
        tracing::error!(job = %id, %cause, "{}", failure.1);
        self.fail(inner, failure, engine_time).await;
    }

    /// Writes the end down, however long the database takes to come back: what was drawn must not be drawn again.
    async fn end(&self, inner: &Inner, ending: Ending, engine_time: Duration) {
        let work = Work {
            images: u64::from(matches!(ending, Ending::Succeeded { .. })),
            pixel_steps: self.pixels * u64::from(self.live.borrow().step),
            engine_time,
        };
        let (row_id, status, ended_at) = (self.id.to_string(), ending.status(), inner.clock.now());
        let mut delay = WRITE_RETRY_DELAY;
        let mut told_at: Option<Instant> = None;
        while let Err(error) = inner.store.set_final(&row_id, &ending, ended_at, Some((self.owner, work))).await {
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
        let took = Duration::try_from(ended_at - self.created_at).unwrap_or_default();
        metrics::job_ended(status.as_str(), took);
        if status == JobStatus::Succeeded && self.deadline_at.is_none_or(|deadline| ended_at <= deadline) {
            metrics::job_in_time();
        }
        tracing::info!(job = %self.id, %status, seconds = took.as_secs_f64(), "job ended");
    }
}
