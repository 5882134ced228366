//! Previews of a running job, made only on request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::image::RgbImage;

/// The last preview of one job, and whether another one is requested. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Previews(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_wanted: AtomicBool,
    last: Mutex<Option<Arc<RgbImage>>>,
}

impl Previews {
    /// Returns the last preview, and requests a new one after the next step.
    pub fn look(&self) -> Option<Arc<RgbImage>> {
        self.0.is_wanted.store(true, Ordering::Relaxed);
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the request, if there is one.
    pub(super) fn take_request(&self) -> bool {
        self.0.is_wanted.swap(false, Ordering::Relaxed)
    }

    pub(super) fn show(&self, preview: RgbImage) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(preview));
    }
}
