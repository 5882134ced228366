//! The memory plan of a checkpoint on a device that is open.

use candle_core::{DType, Device};

use super::autoencoder::HostDecoding;
use super::plan::{MemoryPlan, PixelLimits, TooLarge};
use crate::domain::device::{EngineSettings, Offload};
use crate::domain::engine::EngineLimits;
use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;
use crate::engine::checkpoint::{Checkpoint, WeightBytes};
use crate::engine::{device, storage};
use crate::telemetry::process::available_bytes;

/// Expanded weights take at most one part in so many of the host's memory that is available: other models and images need some, too.
/// An image that is decoded as a whole takes at most the same part of what the weights leave.
const HOST_PARTS: u64 = 2;

/// How a model is kept on a device.
pub(crate) struct Room {
    /// Of one step.
    pub(crate) limits: EngineLimits,
    pub(crate) pixels: PixelLimits,
    /// Whether matrices are kept as they are stored.
    pub(crate) are_stored: bool,
    /// Whether T5's blocks are copied to the device for each prompt.
    pub(crate) is_text_streamed: bool,
    /// Bytes of the device's memory that were free when it was planned; `None` on the CPU.
    pub(crate) free: Option<usize>,
}

/// The limits on a device, and how weights are kept there.
pub(crate) fn room_for(checkpoint: &Checkpoint, device: &Device, settings: &EngineSettings) -> Result<Room, TooLarge> {
    let Some(plan) = plan_for(checkpoint, device, settings)? else {
        let available = available_bytes();
        let are_stored = are_stored_on_host(settings.weights, checkpoint, available);
        let HostDecoding { whole, strips } = HostDecoding::of(&checkpoint.configs.vae, 1024, 1024);
        tracing::debug!(whole, strips, "bytes to decode 1024x1024 pixels on the CPU");
        return Ok(Room {
            limits: device::initial_limits(),
            pixels: PixelLimits { whole: whole_pixels_on_host(checkpoint, are_stored, available), ..PixelLimits::NONE },
            are_stored,
            is_text_streamed: settings.offload == Offload::Text,
            free: None,
        });
    };
    tracing::info!(%plan, "the device's memory");
    Ok(Room {
        limits: plan.limits,
        pixels: plan.pixels,
        are_stored: plan.are_stored(),
        is_text_streamed: plan.is_text_streamed,
        free: Some(plan.free),
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

/// Maximum pixels of an image that the CPU decodes as a whole. In strips it has the same bits.
fn whole_pixels_on_host(checkpoint: &Checkpoint, are_stored: bool, available: Option<u64>) -> usize {
    let Some(available) = available else { return 0 };
    let stored = checkpoint.stored_weight_bytes(DType::F32).filter(|_| are_stored);
    let WeightBytes { transformer, vae, clip, t5, expanding } =
        stored.unwrap_or_else(|| checkpoint.weight_bytes(DType::F32));
    let left = available.saturating_sub((transformer + vae + clip + t5 + expanding) as u64);
    HostDecoding::whole_pixels_max(&checkpoint.configs.vae, left / HOST_PARTS)
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
    // A lossy precision quantizes what is expanded.
    let stored = checkpoint.stored_weight_bytes(dtype).filter(|_| settings.precision == Precision::Full);
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
    use crate::domain::model::ModelFiles;
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

    #[test]
    fn the_host_decodes_as_a_whole_what_takes_at_most_half_of_what_weights_leave() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
        let checkpoint = Checkpoint::open(&ModelFiles::Directory(folder)).expect("opens");
        let WeightBytes { transformer, vae, clip, t5, .. } = checkpoint.weight_bytes(DType::F32);
        let weights = (transformer + vae + clip + t5) as u64;
        let image = HostDecoding::of(&checkpoint.configs.vae, 512, 512).whole as u64;
        let of = |available| whole_pixels_on_host(&checkpoint, false, available);
        assert_eq!(of(Some(weights + HOST_PARTS * image)), 512 * 512);
        assert_eq!([Some(weights), Some(0), None].map(of), [0; 3]);
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
