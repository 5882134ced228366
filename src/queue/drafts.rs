//! Drafts of a running job, for a client that watches its image form: how many are wanted, and those not yet read.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::engine::DRAFTS_MAX;
use crate::domain::image::RgbImage;

/// Memory for drafts that their readers have not taken, of all jobs together: some eighty of 1024×1024. What does not fit is
/// not shown.
const UNREAD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The memory that the unread drafts of all jobs share. Clones share it.
#[derive(Debug, Clone)]
pub struct DraftMemory {
    held_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Default for DraftMemory {
    fn default() -> Self {
        Self { held_bytes: Arc::default(), bytes_max: UNREAD_BYTES_MAX }
    }
}

/// Bytes of that memory, until they are dropped.
#[derive(Debug)]
struct HeldBytes {
    memory: DraftMemory,
    bytes: usize,
}

impl DraftMemory {
    fn hold(&self, bytes: usize) -> Option<HeldBytes> {
        let more = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        self.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(HeldBytes { memory: self.clone(), bytes })
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.memory.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A draft for its reader.
#[derive(Debug)]
pub struct ShownDraft {
    /// Which one of the job's, from 0.
    pub index: u32,
    /// What the image would be. Small where the engine had only a preview.
    pub image: RgbImage,
    _held: HeldBytes,
}

/// The drafts of one job, for its reader and its engine. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Drafts(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    wanted: u32,
    memory: DraftMemory,
    state: Mutex<State>,
    shown: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// How many were due so far.
    due: u32,
    /// The oldest first; at most as many as are wanted.
    unread: VecDeque<ShownDraft>,
}

impl Drafts {
    /// So many, up to [`DRAFTS_MAX`], at evenly spaced steps.
    pub fn new(wanted: u32, memory: &DraftMemory) -> Self {
        let (wanted, memory) = (wanted.min(DRAFTS_MAX), memory.clone());
        Self(Arc::new(Inner { wanted, memory, ..Inner::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the oldest unread draft.
    pub fn take(&self) -> Option<ShownDraft> {
        self.lock().unread.pop_front()
    }

    /// Waits until another draft is shown. Has only one reader.
    pub async fn shown(&self) {
        self.0.shown.notified().await;
    }

    /// Whether a draft is due when so many of all steps are done, and which one. Each is due once, even if the job is restarted, and
    /// none after the last step, behind which the image itself comes.
    pub(super) fn take_due(&self, steps_done: u32, steps: u32) -> Option<u32> {
        let count = u64::from(self.0.wanted.min(steps.saturating_sub(1)));
        if count == 0 {
            return None;
        }
        let mut state = self.lock();
        let index = state.due;
        let due_after = u64::from(steps) * (u64::from(index) + 1) / (count + 1);
        if u64::from(index) >= count || u64::from(steps_done) < due_after {
            return None;
        }
        state.due += 1;
        Some(index)
    }

    /// Shows a draft. Where memory is used up, older unread ones make room for it, or it is not shown.
    pub(super) fn show(&self, index: u32, image: RgbImage) {
        let mut state = self.lock();
        let mut held = self.0.memory.hold(image.pixels().len());
        while held.is_none() && state.unread.pop_front().is_some() {
            held = self.0.memory.hold(image.pixels().len());
        }
        let Some(held) = held else {
            tracing::debug!(index, "a draft is not shown: too many are unread");
            return;
        };
        state.unread.push_back(ShownDraft { index, image, _held: held });
        drop(state);
        self.0.shown.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(pixels: u32) -> RgbImage {
        RgbImage::new(pixels, 1, vec![7; pixels as usize * 3]).expect("three bytes per pixel")
    }

    /// The steps after which drafts are due.
    fn due(wanted: u32, steps: u32) -> Vec<u32> {
        let drafts = Drafts::new(wanted, &DraftMemory::default());
        (1..=steps).filter(|done| drafts.take_due(*done, steps).is_some()).collect()
    }

    #[test]
    fn drafts_are_due_at_evenly_spaced_steps() {
        assert_eq!(due(0, 28), [0; 0]);
        assert_eq!(due(1, 28), [14]);
        assert_eq!(due(3, 28), [7, 14, 21]);
        assert_eq!(due(3, 4), [1, 2, 3]);
        assert_eq!(due(3, 3), [1, 2], "fewer where there are too few steps");
        assert_eq!(due(3, 2), [1]);
        assert_eq!(due(3, 1), [0; 0]);
        assert_eq!(due(9, 100), [25, 50, 75], "never more than the maximum");
    }

    #[test]
    fn a_restarted_job_repeats_no_draft() {
        let drafts = Drafts::new(2, &DraftMemory::default());
        assert_eq!((drafts.take_due(1, 3), drafts.take_due(1, 3)), (Some(0), None));
        assert_eq!((drafts.take_due(2, 3), drafts.take_due(2, 3)), (Some(1), None));
    }

    #[tokio::test]
    async fn unread_drafts_are_kept_in_order() {
        let drafts = Drafts::new(3, &DraftMemory::default());
        drafts.show(0, image(2));
        drafts.show(1, image(3));
        drafts.shown().await;
        let taken: Vec<_> =
            std::iter::from_fn(|| drafts.take()).map(|draft| (draft.index, draft.image.width())).collect();
        assert_eq!(taken, [(0, 2), (1, 3)]);
    }

    #[test]
    fn unread_drafts_are_bounded_in_memory() {
        let memory = DraftMemory { held_bytes: Arc::default(), bytes_max: 60 };
        let half = 10;
        let (one, other) = (Drafts::new(3, &memory), Drafts::new(3, &memory));
        one.show(0, image(half));
        other.show(0, image(half));
        // Only its own older one makes room.
        one.show(1, image(half));
        assert_eq!(one.take().map(|draft| draft.index), Some(1));
        assert!(one.take().is_none());
        other.show(1, image(half));
        assert_eq!(other.take().map(|draft| draft.index), Some(0));
        one.show(2, image(half + 1));
        assert!(one.take().is_none(), "it does not fit");
        drop((one, other));
        assert_eq!(memory.held_bytes.load(Ordering::Relaxed), 0);
    }
}
