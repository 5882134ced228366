//! Writes down what becomes of a job: one small task per job listens to the queue, encodes the picture off the async
//! threads, stores it, and moves the row on. There are at most as many as the queues have places.

use std::time::Duration;

use tokio::sync::watch;

use super::service::{Inner, Live};
use super::store::Ending;
use super::{JobError, JobsError};
use crate::domain::engine::RgbImage;
use crate::domain::format::OutputFormat;
use crate::domain::ids::JobId;
use crate::encode::encode;
use crate::queue::event::{JobEvents, JobFailure, QueueEvent};
use crate::telemetry::metrics;

/// Tries to write a job's end before it is left to the next start, which draws the picture again.
const WRITE_TRIES_MAX: u32 = 5;
const WRITE_RETRY_DELAY: Duration = Duration::from_millis(200);

type Failure = (&'static str, &'static str);
const ENCODING_FAILED: Failure = ("encoding_failed", "the picture could not be encoded");
const STORAGE_FAILED: Failure = ("storage_failed", "the picture could not be stored");

/// What one recorder looks after.
pub(super) struct Recorder {
    pub(super) id: JobId,
    pub(super) format: OutputFormat,
    pub(super) created_at: time::OffsetDateTime,
    pub(super) live: watch::Sender<Live>,
}

impl Recorder {
    /// Listens to the end. A queue that is closed with the job unfinished leaves the row as it is: the next start
    /// draws it.
    pub(super) async fn run(self, inner: &Inner, mut events: JobEvents) {
        let mut is_running = false;
        while let Some(event) = events.next().await {
            if !is_running && matches!(event, QueueEvent::Started | QueueEvent::Step { .. }) {
                is_running = true;
                if let Err(error) = inner.store.set_running(self.id, inner.clock.now()).await {
                    tracing::warn!(job = %self.id, %error, "the start of a job was not written down");
                }
            }
            match event {
                QueueEvent::Started => {}
                QueueEvent::Step { step, .. } => self.live.send_modify(|live| live.step = step),
                QueueEvent::Finished(picture) => self.keep(inner, picture).await,
                QueueEvent::Failed(JobFailure { code, reason }) => {
                    self.end(inner, Ending::Failed(JobError { code: code.to_owned(), reason })).await;
                }
                QueueEvent::Canceled => self.end(inner, Ending::Canceled).await,
            }
        }
    }

    async fn keep(&self, inner: &Inner, picture: RgbImage) {
        let (id, format, files) = (self.id, self.format, inner.files.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let bytes = encode(&picture, format).map_err(|error| (ENCODING_FAILED, error.to_string()))?;
            files.write(id, format, &bytes).map_err(|error| (STORAGE_FAILED, error.to_string()))?;
            Ok(bytes.len())
        });
        let ((code, reason), cause) = match stored.await {
            Ok(Ok(result_bytes)) => return self.end(inner, Ending::Succeeded { result_bytes }).await,
            Ok(Err(failure)) => failure,
            Err(panic) => (ENCODING_FAILED, panic.to_string()),
        };
        tracing::error!(job = %id, %cause, "{reason}");
        self.end(inner, Ending::Failed(JobError { code: code.into(), reason: reason.into() })).await;
    }

    async fn end(&self, inner: &Inner, ending: Ending) {
        let status = ending.status();
        for attempt in 1.. {
            let now = inner.clock.now();
            match inner.store.set_final(self.id, &ending, now).await {
                Ok(()) => {
                    let took = Duration::try_from(now - self.created_at).unwrap_or_default();
                    metrics::job_ended(status.as_str(), took);
                    tracing::info!(job = %self.id, %status, seconds = took.as_secs_f64(), "job ended");
                    return;
                }
                Err(JobsError::Storage(cause)) if attempt < WRITE_TRIES_MAX => {
                    tracing::warn!(job = %self.id, %cause, "the end of a job was not written down; trying again");
                    tokio::time::sleep(WRITE_RETRY_DELAY * attempt).await;
                }
                Err(error) => {
                    tracing::error!(job = %self.id, %error, "the end of a job is lost; the next start draws it again");
                    return;
                }
            }
        }
    }
}
