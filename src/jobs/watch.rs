//! Watches one job: reports its standing whenever that changes, and its end. Reads memory; the database only at the
//! start and the end.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::images::encoded;
use super::state::Live;
use super::{Image, JobReport, JobService, JobsError, Visibility};
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, ModelId};
use crate::domain::image::RgbImage;
use crate::domain::job::JobStatus;
use crate::domain::owner_counts::OwnerHold;
use crate::queue::{Previews, Standing};

/// How often the queue position is polled: its changes are not announced.
const POSITION_INTERVAL: Duration = Duration::from_secs(1);

/// A job's standing as reported to a watcher. As text a reconnecting client sends it back: it is self-contained, so it
/// is valid after a crash, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobMark {
    /// At this position in the queue.
    Queued(usize),
    /// This many steps are done.
    Step(u32),
    /// It has ended in this state.
    Ended(JobStatus),
}

impl fmt::Display for JobMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queued(position) => write!(f, "queued-{position}"),
            Self::Step(step) => write!(f, "step-{step}"),
            Self::Ended(status) => write!(f, "{status}"),
        }
    }
}

/// A text that is not a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the mark of a job event")]
pub struct UnknownMark;

impl FromStr for JobMark {
    type Err = UnknownMark;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mark = match text.split_once('-') {
            Some(("queued", position)) => position.parse().ok().map(Self::Queued),
            Some(("step", step)) => step.parse().ok().map(Self::Step),
            Some(_) => None,
            None => text.parse().ok().filter(|status: &JobStatus| status.is_final()).map(Self::Ended),
        };
        mark.ok_or(UnknownMark)
    }
}

/// Options of a watcher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// The last mark it has seen.
    pub seen: Option<JobMark>,
    /// Whether it wants previews.
    pub previews: bool,
}

/// Something new about a job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobUpdate {
    /// It waits at a new position.
    Queued {
        /// 1: next in line.
        position: usize,
        /// Likely time to its end.
        eta_seconds: Option<f64>,
    },
    /// It runs and has reached a new step; an earlier one if it was restarted.
    Step {
        /// Steps done. Unread steps are skipped.
        step: u32,
        /// Steps in all.
        steps: u32,
        /// Likely time to its end.
        eta_seconds: Option<f64>,
        /// The newest preview, if requested and not yet reported.
        preview: Option<Image>,
    },
    /// It has ended.
    Ended(Box<JobReport>),
}

impl JobUpdate {
    /// The mark of this update.
    pub fn mark(&self) -> JobMark {
        match self {
            Self::Queued { position, .. } => JobMark::Queued(*position),
            Self::Step { step, .. } => JobMark::Step(*step),
            Self::Ended(report) => JobMark::Ended(report.job.status),
        }
    }
}

/// A watch of one job. Dropping it changes nothing for the job.
pub struct JobWatch {
    service: JobService,
    visibility: Visibility,
    id: JobId,
    model: ModelId,
    steps: u32,
    seen: Option<JobMark>,
    /// `None` once the job has ended, or the service was closed.
    live: Option<watch::Receiver<Live>>,
    closed: watch::Receiver<bool>,
    previews: Option<Previews>,
    preview_seen: Option<Arc<RgbImage>>,
    is_over: bool,
    _hold: OwnerHold,
}

impl JobService {
    /// Watches a visible job. `None` if the client has seen its end.
    ///
    /// # Errors
    /// As [`JobService::get`]; and when there are too many watches, or the worker has stopped.
    pub async fn watch(
        &self,
        visibility: impl Into<Visibility>,
        id: JobId,
        options: WatchOptions,
    ) -> Result<Option<JobWatch>, JobsError> {
        let visibility = visibility.into();
        if self.0.is_closed() {
            return Err(JobsError::Draining);
        }
        // Before the row is read: the end of a job that ends in between is reported by this receiver.
        let live = self.0.live().get(&id).map(|live| (live.progress.clone(), live.previews.clone()));
        let job = self.0.within(visibility, id).await?;
        if options.seen == Some(JobMark::Ended(job.status)) {
            return Ok(None);
        }
        let hold = self.0.watchers.enter(visibility.owner()).ok_or(JobsError::TooManyWatches)?;
        // A job whose end is stored makes no more steps, even if its recorder is still at work.
        let (live, previews) = live.filter(|_| !job.status.is_final()).unzip();
        let previews = previews.filter(|_| options.previews && !self.0.hides_previews(visibility));
        if let Some(previews) = &previews {
            // Only requests the first preview.
            previews.look();
        }
        Ok(Some(JobWatch {
            service: self.clone(),
            visibility,
            id,
            steps: job.request.steps_done(),
            model: job.request.model,
            seen: options.seen,
            live,
            closed: self.0.closed.subscribe(),
            previews,
            preview_seen: None,
            is_over: false,
            _hold: hold,
        }))
    }
}

impl JobWatch {
    /// Waits for an update. `None` when there will be no more: after the end was reported, and when the worker stops
    /// with the job unfinished.
    ///
    /// # Errors
    /// When the database fails. There are no more updates then.
    pub async fn next(&mut self) -> Result<Option<JobUpdate>, JobsError> {
        while let Some(step) = self.live.as_mut().map(|live| live.borrow_and_update().step) {
            if let Some(mut update) = self.update(step) {
                if let JobUpdate::Step { preview, .. } = &mut update {
                    *preview = self.preview().await;
                }
                self.seen = Some(update.mark());
                return Ok(Some(update));
            }
            self.wait_for_change().await;
        }
        if std::mem::replace(&mut self.is_over, true) {
            return Ok(None);
        }
        let report = self.service.get(self.visibility, self.id).await?;
        Ok(report.job.status.is_final().then(|| JobUpdate::Ended(Box::new(report))))
    }

    /// The job's standing, if the watcher has not seen it yet.
    fn update(&self, step: u32) -> Option<JobUpdate> {
        let queue = self.service.0.queues.get(&self.model);
        let standing = queue.and_then(|queue| queue.standing(self.id));
        let eta_seconds = standing.and_then(|standing| standing.eta_seconds);
        let update = match standing {
            Some(Standing { position, .. }) if position > 0 => JobUpdate::Queued { position, eta_seconds },
            // In no queue and never started: its end is about to be stored.
            None if step == 0 => return None,
            _ => JobUpdate::Step { step, steps: self.steps, eta_seconds, preview: None },
        };
        Some(update).filter(|update| self.seen != Some(update.mark()))
    }

    /// The newest preview, if it was not reported yet.
    async fn preview(&mut self) -> Option<Image> {
        let newest = self.previews.as_ref()?.look()?;
        if self.preview_seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &newest)) {
            return None;
        }
        self.preview_seen = Some(Arc::clone(&newest));
        // A failed encoding is no reason to stop.
        encoded(newest, OutputFormat::Jpeg).await.ok()
    }

    async fn wait_for_change(&mut self) {
        let Some(live) = &mut self.live else { return };
        let has_ended = tokio::select! {
            // The sender is dropped when the end is stored.
            changed = live.changed() => changed.is_err(),
            _ = self.closed.wait_for(|is_closed| *is_closed) => true,
            () = tokio::time::sleep(POSITION_INTERVAL) => false,
        };
        if has_ended {
            self.live = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip_and_nothing_else_is_one() {
        let ends = [JobStatus::Succeeded, JobStatus::Failed, JobStatus::Canceled].map(JobMark::Ended);
        for mark in [JobMark::Queued(3), JobMark::Step(0), JobMark::Step(28)].into_iter().chain(ends) {
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
        for text in ["", "step", "step-", "step--1", "step-x", "queued", "queued-", "running", "done", "end-1"] {
            assert_eq!(text.parse::<JobMark>(), Err(UnknownMark), "{text}");
        }
    }
}
