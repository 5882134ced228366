//! A job whose client waits for it and watches its image form. It is canceled when the client leaves.

use time::OffsetDateTime;
use tokio::sync::watch;

use super::state::Live;
use super::{AcceptedJob, Image, JobReport, JobService, JobsError, Submission, Submitted};
use crate::decode::put_back;
use crate::domain::image::RgbImage;
use crate::domain::overlay::Overlay;
use crate::domain::owner_counts::OwnerHold;
use crate::encode::encode;
use crate::queue::{Drafts, ShownDraft};

/// Something new about such a job.
#[derive(Debug, Clone, PartialEq)]
pub enum DraftUpdate {
    /// What its image would be by now.
    Draft {
        /// Which draft of those that were asked for, from 0. One that could not be made in time is missing.
        index: u32,
        /// In the size and format of the result.
        image: Image,
        /// When it was sent.
        at: OffsetDateTime,
    },
    /// It has ended.
    Ended(Box<JobReport>),
}

/// The watch of a job by the client that waits for it. Dropping it cancels the job, unless that has ended.
#[must_use = "dropping it cancels the job"]
pub struct DraftWatch {
    service: JobService,
    accepted: AcceptedJob,
    drafts: Drafts,
    /// Of what is generated, in pixels.
    size: (u32, u32),
    overlay: Option<Overlay>,
    /// `None` once the job has ended, or the service was closed.
    live: Option<watch::Receiver<Live>>,
    closed: watch::Receiver<bool>,
    _hold: OwnerHold,
}

impl JobService {
    /// As [`JobService::submit`], for a client that watches up to so many drafts of the image, at evenly spaced steps: none, where
    /// images are reviewed. Ignores a repeat key.
    ///
    /// # Errors
    /// As there; and when there are too many watches.
    pub async fn submit_drafted(&self, submission: Submission, drafts: u32) -> Result<DraftWatch, JobsError> {
        // First: a job that nobody may watch must not begin.
        let hold = self.0.watchers.enter(submission.owner).ok_or(JobsError::TooManyWatches)?;
        // A draft would show what a review may still refuse.
        let drafts = if self.0.hides_previews(submission.owner.into()) { 0 } else { drafts };
        let drafts = Drafts::new(drafts, &self.0.draft_memory);
        let size = (submission.spec.width(), submission.spec.height());
        let overlay = submission.spec.overlay().cloned();
        let submission = Submission { repeat_key: None, ..submission };
        let Submitted::New(accepted) = self.submit_with(submission, drafts.clone()).await? else {
            unreachable!("without a repeat key no job is an earlier one");
        };
        // One that has ended already is not there any more.
        let live = self.0.live().get(&accepted.report().job.id).map(|live| live.progress.clone());
        let closed = self.0.closed.subscribe();
        Ok(DraftWatch { service: self.clone(), accepted, drafts, size, overlay, live, closed, _hold: hold })
    }
}

impl DraftWatch {
    /// The job as accepted.
    pub fn report(&self) -> &JobReport {
        self.accepted.report()
    }

    /// Waits for an update. `None` when the worker stops with the job unfinished. There are no more updates after the end.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next(&mut self) -> Result<Option<DraftUpdate>, JobsError> {
        loop {
            if let Some(draft) = self.drafts.take() {
                let index = draft.index;
                match self.encoded(draft).await {
                    Ok(image) => {
                        let at = self.service.0.clock.now();
                        return Ok(Some(DraftUpdate::Draft { index, image, at }));
                    }
                    // No reason to stop.
                    Err(error) => tracing::debug!(index, ?error, "a draft could not be encoded"),
                }
                continue;
            }
            let Some(live) = &mut self.live else { break };
            let has_ended = tokio::select! {
                () = self.drafts.shown() => false,
                // The sender is dropped when the end is stored.
                changed = live.changed() => changed.is_err(),
                _ = self.closed.wait_for(|is_closed| *is_closed) => true,
            };
            if has_ended {
                self.live = None;
            }
        }
        let job = &self.accepted.report().job;
        let report = self.service.get(job.owner, job.id).await?;
        Ok(report.job.status.is_final().then(|| DraftUpdate::Ended(Box::new(report))))
    }

    /// Encodes a draft as the image will be, off the async threads.
    async fn encoded(&self, draft: ShownDraft) -> Result<Image, JobsError> {
        let (size, overlay) = (self.size, self.overlay.clone());
        let format = self.accepted.report().job.output_format;
        let encoding = tokio::task::spawn_blocking(move || {
            let is_small = (draft.image.width(), draft.image.height()) != size;
            let larger = is_small.then(|| stretched(&draft.image, size));
            let generated = larger.as_ref().unwrap_or(&draft.image);
            match overlay {
                Some(overlay) => encode(&put_back(&overlay, generated), format),
                None => encode(generated, format),
            }
        });
        let bytes = encoding.await.map_err(JobsError::storage)?.map_err(JobsError::storage)?;
        Ok(Image { bytes, format })
    }
}

/// Where a pixel of a stretched line lies between two pixels of the line before.
struct Between {
    first: usize,
    second: usize,
    /// Of the second.
    share: f32,
}

/// A line of pixels stretched from a length to another.
fn line(from: u32, to: u32) -> Vec<Between> {
    let last = (from as usize).saturating_sub(1);
    let place = |at: u32| ((at as f32 + 0.5) * from as f32 / to as f32 - 0.5).clamp(0.0, last as f32);
    let between = |place: f32| {
        let first = place as usize;
        Between { first, second: (first + 1).min(last), share: place - first as f32 }
    };
    (0..to).map(|at| between(place(at))).collect()
}

/// A preview in the size of its image, bilinear: it is rough in any case.
fn stretched(image: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    let (columns, row_bytes) = (line(image.width(), width), image.width() as usize * 3);
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    for row in line(image.height(), height) {
        let value = |row, column, color| f32::from(image.pixels()[row * row_bytes + column * 3 + color]);
        for column in &columns {
            for color in 0..3 {
                let across = |row: usize| {
                    let (first, second) = (value(row, column.first, color), value(row, column.second, color));
                    first + (second - first) * column.share
                };
                let (above, below) = (across(row.first), across(row.second));
                pixels.push((above + (below - above) * row.share).round() as u8);
            }
        }
    }
    RgbImage::new(width, height, pixels).expect("three bytes per pixel")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretched_preview_keeps_its_corners_and_blends_between_them() {
        let preview = RgbImage::new(2, 1, vec![0, 100, 255, 200, 100, 55]).expect("three bytes per pixel");
        let stretched = stretched(&preview, (4, 3));
        assert_eq!((stretched.width(), stretched.height()), (4, 3));
        let row: [u8; 12] = [0, 100, 255, 50, 100, 205, 150, 100, 105, 200, 100, 55];
        assert_eq!(stretched.pixels(), [row, row, row].concat());
    }

    #[test]
    fn one_pixel_fills_the_image() {
        let preview = RgbImage::new(1, 1, vec![1, 2, 3]).expect("three bytes");
        assert_eq!(stretched(&preview, (3, 2)).pixels(), [1_u8, 2, 3].repeat(6));
    }
}
