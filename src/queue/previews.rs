//! Rough images of a job that is being drawn, made only for who looks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::engine::RgbImage;

/// The last preview of one job, and whether another one is wanted. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Previews(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_wanted: AtomicBool,
    last: Mutex<Option<Arc<RgbImage>>>,
}

impl Previews {
    /// The last one, and a wish for one after the next step: who looks again then finds a newer one.
    pub fn look(&self) -> Option<Arc<RgbImage>> {
        self.0.is_wanted.store(true, Ordering::Relaxed);
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the wish, if there is one.
    pub(super) fn take_wish(&self) -> bool {
        self.0.is_wanted.swap(false, Ordering::Relaxed)
    }

    pub(super) fn show(&self, preview: RgbImage) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(preview));
    }
}
