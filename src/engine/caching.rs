//! Which images may have a cache between their steps: what it is, is the model's matter (`models/flux1/transformer/first_block.rs`).

use super::FluxEngine;
use super::models::flux1::Image;
use crate::domain::engine::EngineError;
use crate::domain::spec::GenerateSpec;
use crate::domain::step_cache::CACHE;

impl FluxEngine {
    /// Refuses the cache of an image where there must be none, or where its memory is not there.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] while caches of other images take that memory, else [`EngineError::Request`].
    pub(super) fn check_cache(&self, spec: &GenerateSpec) -> Result<(), EngineError> {
        if spec.step_cache().is_none() {
            return Ok(());
        }
        if self.refuses_caches {
            let reason = "the worker runs with --deterministic, which allows no cache";
            return Err(EngineError::Request(format!("{reason}: leave out `{CACHE}`")));
        }
        let (wanted, max) = (self.model.cache_bytes(spec), self.caches_bytes_max);
        let mebibytes = |bytes: usize| bytes.div_ceil(1 << 20);
        if wanted > max {
            return Err(EngineError::Request(format!(
                "the cache of this image takes {} MiB, and the device has {} MiB for caches: leave out `{CACHE}`",
                mebibytes(wanted),
                max >> 20,
            )));
        }
        let held: usize = self.images.values().map(Image::cache_bytes).sum();
        if held + wanted > max {
            return Err(EngineError::OutOfMemory(format!(
                "the caches of other images take {} of {} MiB, and this one takes {}",
                mebibytes(held),
                max >> 20,
                mebibytes(wanted),
            )));
        }
        Ok(())
    }
}
