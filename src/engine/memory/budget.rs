//! The memory plan of a checkpoint on a device that is open.

use candle_core::Device;

use super::plan::{MemoryPlan, TooLarge};
use crate::domain::device::EngineSettings;
use crate::domain::engine::EngineLimits;
use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;
use crate::engine::checkpoint::{Checkpoint, WeightBytes};
use crate::engine::{device, storage};

/// How a model is kept on a device.
pub(crate) struct Room {
    /// Of one step.
    pub(crate) limits: EngineLimits,
    /// Maximum pixels of an image.
    pub(crate) pixels_max: usize,
    /// Whether matrices are kept as they are stored.
    pub(crate) are_stored: bool,
}

/// The limits on a device, and how weights are kept there.
pub(crate) fn room_for(checkpoint: &Checkpoint, device: &Device, settings: &EngineSettings) -> Result<Room, TooLarge> {
    let Some(plan) = plan_for(checkpoint, device, settings)? else {
        let are_stored = settings.weights != WeightStorage::Expanded;
        return Ok(Room { limits: device::initial_limits(), pixels_max: usize::MAX, are_stored });
    };
    tracing::info!(%plan, "the device's memory");
    Ok(Room { limits: plan.limits, pixels_max: plan.pixels_max, are_stored: plan.are_stored() })
}

/// The plan. `None` where the device does not say how much memory it has: on the CPU.
pub(crate) fn plan_for(
    checkpoint: &Checkpoint,
    device: &Device,
    settings: &EngineSettings,
) -> Result<Option<MemoryPlan>, TooLarge> {
    let Some(free) = device::free_bytes_of(device) else { return Ok(None) };
    let dtype = device::dtype(device);
    let mut expanded = checkpoint.weight_bytes(dtype);
    let linears = checkpoint.configs.transformer.block_linears();
    expanded.transformer -= storage::bytes_saved(linears, dtype, settings.precision);
    // A lossy precision quantizes what is expanded.
    let stored = checkpoint.stored_weight_bytes(dtype).filter(|_| settings.precision == Precision::Full);
    let available = (free, device::initial_limits());
    let plan = |weights| MemoryPlan::new(&checkpoint.configs, weights, dtype, settings.offload, available);
    choose(settings.weights, expanded, stored, plan).map(Some)
}

/// The plan with expanded weights, which are faster, if it was asked for or fits; else with weights as they are stored.
fn choose(
    storage: WeightStorage,
    expanded: WeightBytes,
    stored: Option<WeightBytes>,
    plan: impl Fn(WeightBytes) -> Result<MemoryPlan, TooLarge>,
) -> Result<MemoryPlan, TooLarge> {
    match (storage, stored) {
        (WeightStorage::Expanded, _) | (_, None) => plan(expanded),
        (WeightStorage::AsStored, Some(stored)) => plan(stored),
        (WeightStorage::Auto, Some(stored)) => plan(expanded).or_else(|_| plan(stored)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::domain::device::Offload;
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

    fn chosen(gib: usize, offload: Offload, storage: WeightStorage) -> Option<bool> {
        let limits = EngineLimits { images_max: 32, step_tokens_max: 33_792 };
        let plan = |weights| MemoryPlan::new(&Configs::flux_dev(), weights, DType::BF16, offload, (gib << 30, limits));
        choose(storage, EXPANDED, Some(STORED), plan).ok().map(|plan| plan.are_stored())
    }

    #[test]
    fn weights_stay_as_they_are_stored_where_expanded_ones_do_not_fit() {
        use WeightStorage::{AsStored, Auto, Expanded};
        let everything: Vec<_> = [10, 15, 23, 39, 79].map(|gib| chosen(gib, Offload::Nothing, Auto)).into();
        assert_eq!(everything, [None, Some(true), Some(true), Some(false), Some(false)]);
        let without_text: Vec<_> = [7, 10, 15, 23, 31].map(|gib| chosen(gib, Offload::Text, Auto)).into();
        assert_eq!(without_text, [None, Some(true), Some(true), Some(true), Some(false)]);
        let asked = [Expanded, AsStored].map(|storage| [23, 79].map(|gib| chosen(gib, Offload::Nothing, storage)));
        assert_eq!(asked, [[None, Some(false)], [Some(true), Some(true)]]);
    }

    #[test]
    fn a_file_without_narrow_weights_is_expanded() {
        let plan = |weights| {
            let limits = EngineLimits { images_max: 32, step_tokens_max: 33_792 };
            MemoryPlan::new(&Configs::flux_dev(), weights, DType::BF16, Offload::Nothing, (79 << 30, limits))
        };
        let plan = choose(WeightStorage::AsStored, EXPANDED, None, plan).expect("fits");
        assert!(!plan.are_stored());
    }
}
