//! Events of one job from the engine's thread. A slow listener never blocks the engine: progress is a value that is
//! overwritten, the outcome is sent once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::previews::Previews;
use crate::domain::image::RgbImage;
use crate::domain::owner_counts::OwnerHold;

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueEvent {
    /// The engine has admitted it, perhaps again after being put back.
    Started,
    /// It has left the engine and waits to be restarted.
    PutBack,
    /// `step` of `steps` are done. Unread steps are skipped.
    Step {
        /// Steps done.
        step: u32,
        /// Steps in all.
        steps: u32,
    },
    /// The image is generated.
    Finished(RgbImage),
    /// The job ended without an image.
    Failed(JobFailure),
    /// The job was canceled.
    Canceled,
}

/// Why a job ended without an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// A stable code: see [`JobFailure::CODES`].
    pub code: &'static str,
    /// Text for the client.
    pub reason: String,
}

impl JobFailure {
    /// The engine cannot generate this image.
    pub const REFUSED_BY_ENGINE: &'static str = "refused_by_engine";
    /// It does not fit into the device's memory.
    pub const OUT_OF_MEMORY: &'static str = "out_of_memory";
    /// The engine broke while generating it.
    pub const ENGINE_FAILED: &'static str = "engine_failed";
    /// No engine could be built for longer than jobs wait.
    pub const ENGINE_UNAVAILABLE: &'static str = "engine_unavailable";
    /// The model produced numbers that are not finite.
    pub const NOT_FINITE: &'static str = "not_finite";
    /// Every pixel is black, which no prompt asks for: a sign of undetected overflow.
    pub const BLACK_IMAGE: &'static str = "black_picture";
    /// Its deadline passed first.
    pub const DEADLINE_PASSED: &'static str = "deadline_passed";
    /// Every code of the queue.
    pub const CODES: [&'static str; 7] = [
        Self::REFUSED_BY_ENGINE,
        Self::OUT_OF_MEMORY,
        Self::ENGINE_FAILED,
        Self::ENGINE_UNAVAILABLE,
        Self::NOT_FINITE,
        Self::BLACK_IMAGE,
        Self::DEADLINE_PASSED,
    ];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Started,
    PutBack,
    Step { step: u32, steps: u32 },
}

/// What has been spent on a job, restarts included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effort {
    /// Engine time.
    pub engine_time: Duration,
    /// How often it was started.
    pub starts: u32,
    /// Denoising steps.
    pub steps: u32,
}

/// Counted on the sending side, so that unread progress counts too.
#[derive(Debug, Default)]
struct Tally {
    engine_microseconds: AtomicU64,
    starts: AtomicU32,
    steps: AtomicU32,
}

/// The engine thread's end. Dropping it without an outcome means that the queue was closed with the job unfinished.
#[derive(Debug)]
pub(super) struct EventSender {
    tally: Arc<Tally>,
    pub(super) previews: Previews,
    progress: watch::Sender<Progress>,
    outcome: Option<oneshot::Sender<QueueEvent>>,
}

/// The listener's end.
#[derive(Debug)]
pub struct JobEvents {
    tally: Arc<Tally>,
    previews: Previews,
    progress: watch::Receiver<Progress>,
    progress_open: bool,
    outcome: Option<oneshot::Receiver<QueueEvent>>,
    /// The job's reservation is released only when its listener is done as well.
    pub(super) hold: Option<Arc<OwnerHold>>,
}

/// Both ends for one job.
pub(super) fn channel() -> (EventSender, JobEvents) {
    let (progress, progress_receiver) = watch::channel(Progress::Waiting);
    let (outcome, outcome_receiver) = oneshot::channel();
    let tally = Arc::new(Tally::default());
    let previews = Previews::default();
    let sender =
        EventSender { tally: Arc::clone(&tally), previews: previews.clone(), progress, outcome: Some(outcome) };
    let receiver = JobEvents {
        tally,
        previews,
        progress: progress_receiver,
        progress_open: true,
        outcome: Some(outcome_receiver),
        hold: None,
    };
    (sender, receiver)
}

impl EventSender {
    pub(super) fn started(&self) {
        self.tally.starts.fetch_add(1, Ordering::Relaxed);
        self.progress.send_replace(Progress::Started);
    }

    pub(super) fn put_back(&self) {
        self.progress.send_replace(Progress::PutBack);
    }

    pub(super) fn step(&self, step: u32, steps: u32) {
        self.tally.steps.fetch_add(1, Ordering::Relaxed);
        self.progress.send_replace(Progress::Step { step, steps });
    }

    /// Adds engine time; of a batched step, the job's part.
    pub(super) fn worked(&self, took: Duration) {
        self.tally.engine_microseconds.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// Ends the job, whether or not there is a listener.
    pub(super) fn end(mut self, outcome: QueueEvent) {
        if let Some(sender) = self.outcome.take() {
            drop(sender.send(outcome));
        }
    }
}

impl JobEvents {
    /// What has been spent on this job so far.
    pub fn effort(&self) -> Effort {
        Effort {
            engine_time: Duration::from_micros(self.tally.engine_microseconds.load(Ordering::Relaxed)),
            starts: self.tally.starts.load(Ordering::Relaxed),
            steps: self.tally.steps.load(Ordering::Relaxed),
        }
    }

    /// Previews of the running job.
    pub fn previews(&self) -> Previews {
        self.previews.clone()
    }

    /// The next event. `None` after the last one, and when the queue was closed with the job unfinished.
    pub async fn next(&mut self) -> Option<QueueEvent> {
        let outcome = self.outcome.as_mut()?;
        loop {
            // Progress first: a late listener still learns that the job was started before it ended.
            tokio::select! {
                biased;
                changed = self.progress.changed(), if self.progress_open => {
                    if changed.is_err() {
                        self.progress_open = false;
                        continue;
                    }
                    match *self.progress.borrow_and_update() {
                        Progress::Waiting => {}
                        Progress::Started => return Some(QueueEvent::Started),
                        Progress::PutBack => return Some(QueueEvent::PutBack),
                        Progress::Step { step, steps } => return Some(QueueEvent::Step { step, steps }),
                    }
                }
                ended = &mut *outcome => {
                    self.outcome = None;
                    return ended.ok();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unread_steps_are_skipped_and_the_end_is_not() {
        let (sender, mut events) = channel();
        sender.started();
        assert_eq!(events.next().await, Some(QueueEvent::Started));
        for step in 1..=5 {
            sender.step(step, 8);
        }
        assert_eq!(events.next().await, Some(QueueEvent::Step { step: 5, steps: 8 }));
        sender.step(6, 8);
        sender.end(QueueEvent::Canceled);
        assert_eq!(events.next().await, Some(QueueEvent::Step { step: 6, steps: 8 }));
        assert_eq!((events.effort().starts, events.effort().steps), (1, 6), "unread progress counts");
        assert_eq!(events.next().await, Some(QueueEvent::Canceled));
        assert_eq!(events.next().await, None);
    }

    #[tokio::test]
    async fn a_closed_queue_is_no_outcome() {
        let (sender, mut events) = channel();
        drop(sender);
        assert_eq!(events.next().await, None);
    }
}
