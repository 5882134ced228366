//! `bench load`: times the parts of loading a model, and reading its files alone.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::app::hub::refuse_not_yet;
use crate::app::kernel_trials::with_faults;
use crate::app::loading::rate;
use crate::app::models::files_of;
use crate::catalog::{card_of, warm_up_spec};
use crate::config::Config;
use crate::domain::device::EngineSettings;
use crate::domain::engine::{EngineError, LoadObserver, StepEngine as _};
use crate::domain::model_source::ModelSource;
use crate::domain::spec::GenerateSpec;
use crate::engine::{FluxEngine, LoadTimes, Reading, inspect, read_weights};
use crate::telemetry::process;

/// What to load.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadRequest {
    /// The model.
    pub model: ModelSource,
    /// Device and engine settings.
    pub engine: EngineSettings,
    /// Whether its files are read once before loading. If not, they may or may not be in the page cache.
    pub reads_before: bool,
}

/// Timings of loading.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// This program's version.
    pub version: &'static str,
    /// The model's name.
    pub model: String,
    /// The device.
    pub device: String,
    /// Reader threads.
    pub readers: usize,
    /// Buffer size of each reader.
    pub buffer_bytes: usize,
    /// Reading alone, before loading: from disk as far as not in the page cache.
    pub reading_before: Option<Moved>,
    /// Loading all weights onto the device.
    pub weights: Moved,
    /// Reading alone, after loading: from the page cache if that is large enough.
    pub reading_after: Moved,
    /// The rate of `weights` as a share of that of `reading_after`.
    pub share_of_reading: f64,
    /// The parts from process start until the model is ready, in order.
    pub parts: Vec<LoadPart>,
    /// Their sum.
    pub seconds: f64,
    /// Peak memory of the process until then, if the system reports it.
    pub resident_bytes_max: Option<u64>,
}

/// A transfer of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Moved {
    /// How many.
    pub bytes: u64,
    /// Its duration.
    pub seconds: f64,
    /// Gigabytes (10⁹ bytes) per second.
    pub gigabytes_per_second: f64,
}

/// One part of loading.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadPart {
    /// Its name.
    pub name: &'static str,
    /// Its duration.
    pub seconds: f64,
}

impl Moved {
    fn new(bytes: usize, seconds: f64) -> Self {
        Self { bytes: bytes as u64, seconds, gigabytes_per_second: rate(bytes as u64, seconds) }
    }

    fn of(reading: &Reading) -> Self {
        Self::new(reading.bytes, reading.seconds)
    }
}

/// Loads a model as `serve` does, up to its first image. `observer` follows the weights.
///
/// # Errors
/// When the model cannot be loaded, or fails.
pub fn load(config: &Config, request: &LoadRequest, observer: Arc<dyn LoadObserver>) -> anyhow::Result<LoadReport> {
    let mut parts = vec![LoadPart { name: "start of the process", seconds: process::running_seconds().unwrap_or(0.0) }];
    refuse_not_yet(&request.model.id)?;
    let card = card_of(&request.model);
    let files = files_of(config, &request.model)?;
    let reading_before = if request.reads_before { Some(Moved::of(&read_weights(&files)?)) } else { None };
    let started = Instant::now();
    // `serve` refuses incomplete checkpoints before it starts anything.
    let inspection = inspect(&files);
    if !inspection.is_sound() {
        anyhow::bail!("the model `{}` cannot be loaded:\n{inspection}", card.id);
    }
    parts.push(LoadPart { name: "first check of the files", seconds: started.elapsed().as_secs_f64() });
    let mut engine = FluxEngine::load_watched(&files, with_faults(request.engine), observer)?;
    let times = engine.load_times();
    let LoadTimes { device_seconds, check_seconds, weights_seconds, weights_bytes, preview_seconds } = times;
    parts.push(LoadPart { name: "device", seconds: device_seconds });
    parts.push(LoadPart { name: "files opened and checked", seconds: check_seconds });
    parts.push(LoadPart { name: "weights", seconds: weights_seconds });
    parts.push(LoadPart { name: "map for previews", seconds: preview_seconds });
    let spec = warm_up_spec(&card);
    parts.push(LoadPart { name: "first image", seconds: image_seconds(&mut engine, &spec)? });
    let resident_bytes_max = process::resident_bytes_max();
    let device = engine.device_name();
    drop(engine);
    let reading = read_weights(&files)?;
    let (weights, reading_after) = (Moved::new(weights_bytes, weights_seconds), Moved::of(&reading));
    Ok(LoadReport {
        version: env!("CARGO_PKG_VERSION"),
        model: request.model.id.to_string(),
        device,
        readers: reading.readers,
        buffer_bytes: reading.buffer_bytes,
        reading_before,
        weights,
        reading_after,
        share_of_reading: weights.gigabytes_per_second / reading_after.gigabytes_per_second,
        seconds: parts.iter().map(|part| part.seconds).sum(),
        parts,
        resident_bytes_max,
    })
}

/// Time of the smallest image that the model generates: the warm-up of an engine.
fn image_seconds(engine: &mut FluxEngine, spec: &GenerateSpec) -> Result<f64, EngineError> {
    let started = Instant::now();
    let slot = engine.admit(spec)?;
    for _ in 0..spec.steps() {
        engine.step(&[slot])?;
    }
    engine.finish(slot)?;
    Ok(started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::device::DeviceChoice;

    #[test]
    fn the_demo_model_is_loaded_part_by_part() {
        let engine = EngineSettings::from(DeviceChoice::Cpu);
        let model = "fluxserve/flux-shapes".parse().expect("a model");
        let mut request = LoadRequest { model, engine, reads_before: true };
        let report = load(&Config::default(), &request, Arc::new(())).expect("loaded");
        let names: Vec<&str> = report.parts.iter().map(|part| part.name).collect();
        let expected = [
            "start of the process",
            "first check of the files",
            "device",
            "files opened and checked",
            "weights",
            "map for previews",
            "first image",
        ];
        assert_eq!(names, expected);
        let before = report.reading_before.expect("was read");
        assert_eq!((before.bytes, report.reading_after.bytes), (report.weights.bytes, report.weights.bytes));
        assert!(report.weights.bytes > 1_000_000 && report.share_of_reading > 0.0, "{report:?}");
        let sum: f64 = report.parts.iter().map(|part| part.seconds).sum();
        assert!(sum == report.seconds && report.parts.iter().skip(4).all(|part| part.seconds > 0.0), "{report:?}");
        request.reads_before = false;
        assert!(load(&Config::default(), &request, Arc::new(())).expect("loaded").reading_before.is_none());
    }
}
