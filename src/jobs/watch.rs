//! Watching one job: where it stands whenever that has changed, and its end. Goes by what is known in memory; the database
//! is asked once at the beginning and once at the end.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::images::encoded;
use super::service::Live;
use super::watchers::WatchHold;
use super::{Image, JobReport, JobService, JobsError, Visibility};
use crate::domain::engine::RgbImage;
use crate::domain::format::OutputFormat;
use crate::domain::ids::{JobId, ModelId};
use crate::domain::job::JobStatus;
use crate::queue::{Previews, Standing};

/// How often the place in the line is looked at. Nobody tells when it changes.
const PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// Where a job stands, as far as a watcher is told. As text it is what one who has left may come back with: it says all
/// of what was seen, so it holds also after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobMark {
    /// At this place in the line.
    Queued(usize),
    /// So many steps are done.
    Step(u32),
    /// It has ended so.
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

/// A text that is no mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not where a job can stand")]
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

/// What a watcher wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// What it has seen already.
    pub seen: Option<JobMark>,
    /// Whether it wants to see the image take shape.
    pub previews: bool,
}

/// Something new about a job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobUpdate {
    /// It waits, at another place than before.
    Queued {
        /// 1: next in line.
        position: usize,
        /// Likely time to its end.
        eta_seconds: Option<f64>,
    },
    /// It is being drawn and has come to another step than before; to an earlier one where it was begun anew.
    Step {
        /// Steps done. Steps that passed unread are skipped.
        step: u32,
        /// Steps in all.
        steps: u32,
        /// Likely time to its end.
        eta_seconds: Option<f64>,
        /// What it looks like now, where that was asked for and is another image than the last.
        preview: Option<Image>,
    },
    /// It has ended.
    Ended(Box<JobReport>),
}

impl JobUpdate {
    /// What somebody who was told this has seen.
    pub fn mark(&self) -> JobMark {
        match self {
            Self::Queued { position, .. } => JobMark::Queued(*position),
            Self::Step { step, .. } => JobMark::Step(*step),
            Self::Ended(report) => JobMark::Ended(report.job.status),
        }
    }
}

/// Watches one job. Dropping it changes nothing for the job.
pub struct JobWatch {
    service: JobService,
    reach: Visibility,
    id: JobId,
    model: ModelId,
    steps: u32,
    seen: Option<JobMark>,
    /// `None` once the job has ended, or its worker.
    live: Option<watch::Receiver<Live>>,
    closed: watch::Receiver<bool>,
    previews: Option<Previews>,
    preview_seen: Option<Arc<RgbImage>>,
    is_over: bool,
    _hold: WatchHold,
}

impl JobService {
    /// Watches one of the jobs within reach. `None` for who has seen its end.
    ///
    /// # Errors
    /// As [`JobService::get`]; and when too many are watching, or the worker has stopped.
    pub async fn watch(
        &self,
        reach: impl Into<Visibility>,
        id: JobId,
        options: WatchOptions,
    ) -> Result<Option<JobWatch>, JobsError> {
        let reach = reach.into();
        if self.0.is_closed() {
            return Err(JobsError::Draining);
        }
        // Before the row is read: a job that ends between the two is one whose end comes by the first.
        let live = self.0.live().get(&id).map(|live| (live.progress.clone(), live.previews.clone()));
        let job = self.0.within(reach, id).await?;
        if options.seen == Some(JobMark::Ended(job.status)) {
            return Ok(None);
        }
        let hold = self.0.watchers.enter(reach.owner()).ok_or(JobsError::TooManyWatches)?;
        // One whose end is written down goes through no more steps, even where its recorder is still at work.
        let (live, previews) = live.filter(|_| !job.status.is_final()).unzip();
        let previews = previews.filter(|_| options.previews);
        if let Some(previews) = &previews {
            // Only says that somebody looks on.
            previews.look();
        }
        Ok(Some(JobWatch {
            service: self.clone(),
            reach,
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
    /// Waits for something new. `None` when nothing more will come: after the end was told, and when the worker stops
    /// with the job unfinished.
    ///
    /// # Errors
    /// When the database fails. Nothing more will come then.
    pub async fn next(&mut self) -> Result<Option<JobUpdate>, JobsError> {
        while let Some(step) = self.live.as_mut().map(|live| live.borrow_and_update().step) {
            if let Some(mut news) = self.news(step) {
                if let JobUpdate::Step { preview, .. } = &mut news {
                    *preview = self.preview().await;
                }
                self.seen = Some(news.mark());
                return Ok(Some(news));
            }
            self.something_happens().await;
        }
        if std::mem::replace(&mut self.is_over, true) {
            return Ok(None);
        }
        let report = self.service.get(self.reach, self.id).await?;
        Ok(report.job.status.is_final().then(|| JobUpdate::Ended(Box::new(report))))
    }

    /// Where the job stands, if the watcher has not seen it there.
    fn news(&self, step: u32) -> Option<JobUpdate> {
        let queue = self.service.0.queues.get(&self.model);
        let standing = queue.and_then(|queue| queue.standing(self.id));
        let eta_seconds = standing.and_then(|standing| standing.eta_seconds);
        let news = match standing {
            Some(Standing { position, .. }) if position > 0 => JobUpdate::Queued { position, eta_seconds },
            // In no queue and never begun: its end is on its way.
            None if step == 0 => return None,
            _ => JobUpdate::Step { step, steps: self.steps, eta_seconds, preview: None },
        };
        Some(news).filter(|news| self.seen != Some(news.mark()))
    }

    /// The newest preview, where it is another one than the last.
    async fn preview(&mut self) -> Option<Image> {
        let newest = self.previews.as_ref()?.look()?;
        if self.preview_seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &newest)) {
            return None;
        }
        self.preview_seen = Some(Arc::clone(&newest));
        // One that cannot be had is no reason to stop.
        encoded(newest, OutputFormat::Jpeg).await.ok()
    }

    async fn something_happens(&mut self) {
        let Some(live) = &mut self.live else { return };
        let has_ended = tokio::select! {
            // The sender goes when the end is written down.
            changed = live.changed() => changed.is_err(),
            _ = self.closed.wait_for(|is_closed| *is_closed) => true,
            () = tokio::time::sleep(PLACE_INTERVAL) => false,
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
