//! The memory plan of a checkpoint on a device that is open.

use candle_core::{DType, Device};

use super::plan::{MemoryPlan, TooLarge};
use crate::domain::device::{EngineSettings, Offload};
use crate::domain::engine::EngineLimits;
use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;
use crate::engine::checkpoint::{Checkpoint, WeightBytes};
use crate::engine::{device, storage};
use crate::telemetry::process::available_bytes;

/// Expanded weights take at most one part in so many of the host's memory that is available: other models and images need some, too.
const HOST_PARTS: u64 = 2;

/// How a model is kept on a device.
pub(crate) struct Room {
    /// Of one step.
    pub(crate) limits: EngineLimits,
    /// Maximum pixels of an image.
    pub(crate) pixels_max: usize,
    /// Whether matrices are kept as they are stored.
    pub(crate) are_stored: bool,
    /// Whether T5's blocks are copied to the device for each prompt.
    pub(crate) is_text_streamed: bool,
}

/// The limits on a device, and how weights are kept there.
pub(crate) fn room_for(checkpoint: &Checkpoint, device: &Device, settings: &EngineSettings) -> Result<Room, TooLarge> {
    let Some(plan) = plan_for(checkpoint, device, settings)? else {
        return Ok(Room {
            limits: device::initial_limits(),
            pixels_max: usize::MAX,
            are_stored: are_stored_on_host(settings.weights, checkpoint, available_bytes()),
            is_text_streamed: settings.offload == Offload::Text,
        });
    };
    tracing::info!(%plan, "the device's memory");
    Ok(Room {
        limits: plan.limits,
        pixels_max: plan.pixels_max,
        are_stored: plan.are_stored(),
        is_text_streamed: plan.is_text_streamed,
    })
}

/// Whether matrices are kept as they are stored in the host's memory: where it was asked for, or expanded ones, which are faster,
/// would take more than their part of what is available.
fn are_stored_on_host(storage: WeightStorage, checkpoint: &Checkpoint, available: Option<u64>) -> bool {
    match storage {
        WeightStorage::Expanded => false,
        WeightStorage::AsStored => true,
        WeightStorage::Auto => {
            let WeightBytes { transformer, vae, clip, t5, .. } = checkpoint.weight_bytes(DType::F32);
            available.is_none_or(|available| (transformer + vae + clip + t5) as u64 > available / HOST_PARTS)
        }
    }
}

/// The plan. `None` where the device does not say how much memory it has: on the CPU.
pub(crate) fn plan_for(
    checkpoint: &Checkpoint,
    device: &Device,
    settings: &EngineSettings,
) -> Result<Option<MemoryPlan>, TooLarge> {
    let Some(free) = device::free_bytes_of(device) else { return Ok(None) };
    plan_within(checkpoint, free, device::dtype(device), settings).map(Some)
}

/// The plan for a device with so many bytes free that computes in `dtype`.
pub(crate) fn plan_within(
    checkpoint: &Checkpoint,
    free: usize,
    dtype: DType,
    settings: &EngineSettings,
) -> Result<MemoryPlan, TooLarge> {
    let mut expanded = checkpoint.weight_bytes(dtype);
    let linears = checkpoint.configs.transformer.block_linears();
    expanded.transformer -= storage::bytes_saved(linears, dtype, settings.precision);
    // A lossy precision quantizes what is expanded, unless all it is for is in e4m3 already.
    let are_blocks_kept = settings.precision == Precision::Full
        || storage::is_e4m3_kept(settings.weights, settings.precision) && checkpoint.is_in_e4m3();
    let stored = checkpoint.stored_weight_bytes(dtype).filter(|_| are_blocks_kept);
    let available = (free, device::initial_limits());
    first_that_fits(settings, expanded, stored, |weights, offload| {
        MemoryPlan::new(&checkpoint.configs, weights, dtype, offload, available)
    })
}

/// The first plan that fits of those that the settings allow, the fastest first: weights expanded, as they are stored, and both
/// with T5 copied to the device for each prompt.
fn first_that_fits(
    settings: &EngineSettings,
    expanded: WeightBytes,
    stored: Option<WeightBytes>,
    plan: impl Fn(WeightBytes, Offload) -> Result<MemoryPlan, TooLarge>,
) -> Result<MemoryPlan, TooLarge> {
    let (first, second) = match (settings.weights, stored) {
        (WeightStorage::Expanded, _) | (_, None) => (expanded, None),
        (WeightStorage::AsStored, Some(stored)) => (stored, None),
        (WeightStorage::Auto, Some(stored)) => (expanded, Some(stored)),
    };
    let any_weights = |offload| match second {
        Some(second) => plan(first, offload).or_else(|_| plan(second, offload)),
        None => plan(first, offload),
    };
    match settings.offload {
        Offload::Auto => any_weights(Offload::Nothing).or_else(|_| any_weights(Offload::Text)),
        offload => any_weights(offload),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::domain::model::{CompletedFiles, ModelFiles};
    use crate::engine::models::flux1::config::Configs;

    /// FLUX.1-dev in bf16, and a file of it in Q4_K_S with T5 in Q8_0.
    const EXPANDED: WeightBytes = WeightBytes {
        transformer: 2 * 11_901_408_320,
        vae: 2 * 83_819_683,
        clip: 2 * 123_060_480,
        t5: 2 * 4_762_310_656,
        expanding: 0,
    };
    const STORED: WeightBytes =
        WeightBytes { transformer: 6_800_000_000, t5: 5_190_000_000, expanding: 256 << 20, ..EXPANDED };

    /// Of the plan for so many GiB: whether weights are kept as stored, and whether T5 is streamed.
    fn chosen(gib: usize, settings: &EngineSettings, stored: Option<WeightBytes>) -> Option<(bool, bool)> {
        let limits = EngineLimits { images_max: 32, step_tokens_max: 33_792 };
        let plan = |weights, offload| {
            MemoryPlan::new(&Configs::flux_dev(), weights, DType::BF16, offload, (gib << 30, limits))
        };
        let plan = first_that_fits(settings, EXPANDED, stored, plan).ok()?;
        Some((plan.are_stored(), plan.is_text_streamed))
    }

    #[test]
    fn the_fastest_arrangement_that_fits_is_chosen() {
        let settings = EngineSettings::default();
        let of_a_quantized_file = [7, 11, 15, 23, 31, 39, 79].map(|gib| chosen(gib, &settings, Some(STORED)));
        let (stored, streamed, expanded) = (Some((true, false)), Some((true, true)), Some((false, false)));
        assert_eq!(of_a_quantized_file, [None, streamed, stored, stored, stored, expanded, expanded]);
        // Of a file in bf16, which is no smaller as it is stored.
        let of_a_plain_file = [23, 31, 39].map(|gib| chosen(gib, &settings, None));
        assert_eq!(of_a_plain_file, [None, Some((false, true)), expanded]);
    }

    #[test]
    fn weights_are_expanded_on_the_host_where_they_take_at_most_half_of_its_memory() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
        let checkpoint = Checkpoint::open(&ModelFiles::Directory(folder)).expect("opens");
        let WeightBytes { transformer, vae, clip, t5, .. } = checkpoint.weight_bytes(DType::F32);
        let twice = 2 * (transformer + vae + clip + t5) as u64;
        let of = |storage, available| are_stored_on_host(storage, &checkpoint, available);
        let free = [Some(twice), Some(twice - 2), None];
        assert_eq!(free.map(|free| of(WeightStorage::Auto, free)), [false, true, true]);
        assert_eq!(free.map(|free| of(WeightStorage::AsStored, free)), [true; 3]);
        assert_eq!(free.map(|free| of(WeightStorage::Expanded, free)), [false; 3]);
    }

    /// In fp8 other matrices may stay as they are stored where those that it is for do.
    #[test]
    fn in_fp8_only_a_file_in_e4m3_is_planned_as_stored() {
        let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
        let base = ModelFiles::Directory(reference.join("FLUX.1-dev"));
        let path = reference.join("quant/fp8/flux1-dev-fp8-scaled.safetensors");
        let files = CompletedFiles { path, text_encoders: Vec::new(), vae: None, base: Some(base) };
        let in_e4m3 = Checkpoint::open(&ModelFiles::Completed(Box::new(files))).expect("opens");
        let in_q4 = reference.join("quant/FLUX.1-dev-256/tiny-flux-Q4_K_S.gguf");
        let in_q4 = Checkpoint::open(&ModelFiles::Directory(in_q4)).expect("opens");
        let are_stored = |checkpoint: &Checkpoint, weights, precision| {
            let settings = EngineSettings { weights, precision, ..EngineSettings::default() };
            plan_within(checkpoint, 8 << 30, DType::BF16, &settings).expect("fits").are_stored()
        };
        let of = |checkpoint: &Checkpoint, precision| {
            [WeightStorage::AsStored, WeightStorage::Auto].map(|weights| are_stored(checkpoint, weights, precision))
        };
        assert_eq!([of(&in_e4m3, Precision::Fp8), of(&in_q4, Precision::Fp8)], [[true, false], [false, false]]);
        assert_eq!([of(&in_e4m3, Precision::Full), of(&in_q4, Precision::Full)], [[true, false]; 2]);
    }

    #[test]
    fn settings_exclude_arrangements() {
        let asked = |weights, offload| EngineSettings { offload, weights, ..EngineSettings::default() };
        let expanded = asked(WeightStorage::Expanded, Offload::Nothing);
        assert_eq!([15, 31, 39].map(|gib| chosen(gib, &expanded, Some(STORED))), [None, None, Some((false, false))]);
        let stored = asked(WeightStorage::AsStored, Offload::Auto);
        assert_eq!([11, 79].map(|gib| chosen(gib, &stored, Some(STORED))), [Some((true, true)), Some((true, false))]);
        let streamed = asked(WeightStorage::Auto, Offload::Text);
        assert_eq!([15, 79].map(|gib| chosen(gib, &streamed, Some(STORED))), [Some((true, true)), Some((false, true))]);
        let resident = asked(WeightStorage::Auto, Offload::Nothing);
        assert_eq!([11, 15].map(|gib| chosen(gib, &resident, Some(STORED))), [None, Some((true, false))]);
    }
}
