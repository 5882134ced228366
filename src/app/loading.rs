//! Progress of loading a model, for the log and the catalog.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::catalog::{Catalog, Loaded};
use crate::domain::engine::LoadObserver;
use crate::domain::ids::ModelId;
use crate::engine::LoadTimes;

/// Time between log lines. A shorter load is logged once, at its end.
const INTERVAL: Duration = Duration::from_secs(3);

/// Bytes in a (decimal) gigabyte.
const GIGABYTE: f64 = 1e9;

/// Reports one engine's loading.
pub(super) struct LoadLog {
    model: ModelId,
    engine: usize,
    catalog: Arc<Catalog>,
    state: Mutex<State>,
}

struct State {
    loaded: Loaded,
    since: Instant,
    logged_at: Instant,
}

impl LoadLog {
    /// For the model's engine of this number.
    pub(super) fn new(model: ModelId, engine: usize, catalog: Arc<Catalog>) -> Self {
        let now = Instant::now();
        let state = State { loaded: Loaded::default(), since: now, logged_at: now };
        Self { model, engine, catalog, state: Mutex::new(state) }
    }

    /// Notes that loading is complete.
    pub(super) fn ended(&self, times: &LoadTimes) {
        self.catalog.note_loading(&self.model, self.engine, None);
        let LoadTimes { device_seconds, check_seconds, weights_seconds, weights_bytes, preview_seconds } = *times;
        tracing::info!(
            model = %self.model,
            engine = self.engine,
            gigabytes = weights_bytes as f64 / GIGABYTE,
            seconds = weights_seconds,
            gigabytes_per_second = rate(weights_bytes as u64, weights_seconds),
            device_seconds,
            check_seconds,
            preview_seconds,
            "the weights are loaded"
        );
    }
}

impl LoadObserver for LoadLog {
    fn planned(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *state = State { loaded: Loaded { bytes: 0, bytes_total: bytes }, since: now, logged_at: now };
        self.catalog.note_loading(&self.model, self.engine, Some(state.loaded));
    }

    fn loaded(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.loaded.bytes += bytes;
        self.catalog.note_loading(&self.model, self.engine, Some(state.loaded));
        if state.logged_at.elapsed() < INTERVAL {
            return;
        }
        state.logged_at = Instant::now();
        let progress = progress(state.loaded, state.since.elapsed());
        tracing::info!(model = %self.model, engine = self.engine, "loading weights: {progress}");
    }
}

impl Drop for LoadLog {
    /// Also after a failure.
    fn drop(&mut self) {
        self.catalog.note_loading(&self.model, self.engine, None);
    }
}

/// Progress as text.
fn progress(Loaded { bytes, bytes_total }: Loaded, took: Duration) -> String {
    let [here, all] = [bytes, bytes_total].map(|bytes| bytes as f64 / GIGABYTE);
    let percent = 100.0 * here / all.max(f64::MIN_POSITIVE);
    format!("{here:.1} of {all:.1} GB, {percent:.0} %, {:.2} GB/s", rate(bytes, took.as_secs_f64()))
}

/// Gigabytes per second.
pub(super) fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / GIGABYTE / seconds.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_shows_progress_until_loading_ends() {
        let id: ModelId = ModelId::new("fluxserve/flux-shapes");
        let source = id.as_str().parse().expect("a model");
        let catalog = Arc::new(Catalog::new(&[source]).expect("a choice"));
        let log = LoadLog::new(id.clone(), 0, Arc::clone(&catalog));
        log.planned(100);
        log.loaded(30);
        log.loaded(10);
        assert_eq!(catalog.loading(&id), Some(Loaded { bytes: 40, bytes_total: 100 }));
        drop(log);
        assert_eq!(catalog.loading(&id), None);
    }

    #[test]
    fn progress_reads_well() {
        let loaded = Loaded { bytes: 12_340_000_000, bytes_total: 33_900_000_000 };
        assert_eq!(progress(loaded, Duration::from_secs(2)), "12.3 of 33.9 GB, 36 %, 6.17 GB/s");
        assert_eq!(progress(Loaded::default(), Duration::ZERO), "0.0 of 0.0 GB, 0 %, 0.00 GB/s");
    }
}
