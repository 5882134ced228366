//! The memory plan of a checkpoint on a device that is open.

use candle_core::{DType, Device};

use super::autoencoder::HostDecoding;
use super::plan::{MemoryPlan, PixelLimits, TooLarge};
use crate::domain::device::{EngineSettings, Offload};
use crate::domain::engine::EngineLimits;
use crate::domain::precision::Precision;
use crate::domain::weight_storage::WeightStorage;
use crate::engine::checkpoint::{BlockBytes, Checkpoint, ControlNetFiles, StreamedBlocks, WeightBytes};
use crate::engine::models::flux1::config::Configs;
use crate::engine::{device, storage};
use crate::telemetry::process::available_bytes;

/// Expanded weights take at most one part in so many of the host's memory that is available: other models and images need some, too.
/// An image that is decoded as a whole takes at most the same part of what the weights leave.
const HOST_PARTS: u64 = 2;

/// Maximum bytes of adapters on a device.
const ADAPTERS_BYTES_MAX: usize = 2 << 30;

/// Maximum bytes of caches between steps on a device: of 20 images of a megapixel in f32, of 40 in bf16.
const CACHES_BYTES_MAX: usize = 2 << 30;

/// How a model is kept on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Of one step.
    pub(crate) limits: EngineLimits,
    pub(crate) pixels: PixelLimits,
    /// Whether matrices are kept as they are stored.
    pub(crate) are_stored: bool,
    /// Whether T5's blocks are copied to the device for each prompt.
    pub(crate) is_text_streamed: bool,
    /// Maximum bytes of adapters.
    pub(crate) adapters_bytes_max: usize,
    /// Maximum bytes of the caches that images keep between their steps.
    pub(crate) caches_bytes_max: usize,
    /// Which of the transformer's blocks are read for each step, if any.
    pub(crate) blocks: Option<StreamedBlocks>,
    /// Bytes of the device's memory that were free when it was planned; `None` on the CPU.
    pub(crate) free: Option<usize>,
}

/// The weights of a model in one form.
#[derive(Debug, Clone)]
struct Kept {
    weights: WeightBytes,
    blocks: BlockBytes,
}

impl Kept {
    fn new(checkpoint: &Checkpoint, weights: WeightBytes, dtype: DType, precision: Precision) -> Self {
        let of_linears = storage::dtype_of_linears(dtype, precision);
        Self { weights, blocks: checkpoint.block_bytes(dtype, of_linears, weights.expanding > 0) }
    }

    fn plan(
        &self,
        configs: &Configs,
        dtype: DType,
        offload: Offload,
        room: (usize, EngineLimits),
    ) -> Result<MemoryPlan, TooLarge> {
        match offload {
            Offload::Blocks => MemoryPlan::with_streamed_blocks(configs, self.weights, &self.blocks, dtype, room),
            offload => MemoryPlan::new(configs, self.weights, dtype, offload, room),
        }
    }
}

/// The limits on a device, and how weights are kept there, with `beside` bytes of other models in its memory.
pub(crate) fn room_for(
    checkpoint: &Checkpoint,
    device: &Device,
    settings: &EngineSettings,
    beside: usize,
) -> Result<Room, TooLarge> {
    let Some(plan) = plan_for(checkpoint, device, settings, beside)? else {
        let HostDecoding { whole, strips } = HostDecoding::of(&checkpoint.configs.vae, 1024, 1024);
        tracing::debug!(whole, strips, "bytes to decode 1024x1024 pixels on the CPU");
        let budget = settings.memory_budget.map(|budget| budget.0 as u64);
        let available = available_bytes().into_iter().chain(budget).min();
        let available = available.map(|available| available.saturating_sub(beside as u64));
        let room = room_on_host(checkpoint, settings, available);
        if let Some(blocks) = room.blocks {
            let of_linears = storage::dtype_of_linears(DType::F32, settings.precision);
            let bytes = checkpoint.block_bytes(DType::F32, of_linears, room.are_stored).read_for_a_step(blocks);
            let StreamedBlocks { resident, total, .. } = blocks;
            tracing::info!(
                resident,
                total,
                bytes,
                "the other blocks of the transformer are read for each step, to save memory"
            );
        }
        return Ok(room);
    };
    tracing::info!(%plan, "the device's memory");
    Ok(Room {
        limits: plan.limits,
        pixels: plan.pixels_beside_adapters(),
        are_stored: plan.are_stored(),
        is_text_streamed: plan.is_text_streamed,
        adapters_bytes_max: plan.adapters_bytes().min(ADAPTERS_BYTES_MAX),
        caches_bytes_max: plan.caches_bytes().min(CACHES_BYTES_MAX),
        blocks: plan.streamed_blocks(),
        free: Some(plan.free + beside),
    })
}

/// How a model is kept in the host's memory. It is never refused: what is estimated to be too much may still work.
fn room_on_host(checkpoint: &Checkpoint, settings: &EngineSettings, available: Option<u64>) -> Room {
    let budget = settings.memory_budget.map(|budget| budget.0 as u64);
    let available = available.into_iter().chain(budget).min();
    let are_stored = are_stored_on_host(settings, checkpoint, available);
    let weights = weights_on_host(checkpoint, settings.precision, are_stored);
    let offload = match (settings.offload, available) {
        (Offload::Auto, Some(available)) => offload_on_host(checkpoint, settings, weights, available),
        (Offload::Blocks, available) => {
            let plan = plan_on_host(checkpoint, settings.precision, weights, available.unwrap_or_default());
            OnHost::Blocks(plan(Offload::Blocks).ok().and_then(|plan| plan.streamed_blocks()))
        }
        (Offload::Text, _) => OnHost::Text,
        (Offload::Auto | Offload::Nothing, _) => OnHost::Nothing,
    };
    let config = &checkpoint.configs.transformer;
    let (double, total) = (config.num_layers, config.num_layers + config.num_single_layers);
    Room {
        limits: device::initial_limits(),
        pixels: PixelLimits { whole: whole_pixels_on_host(checkpoint, weights, available), ..PixelLimits::NONE },
        are_stored,
        is_text_streamed: offload != OnHost::Nothing,
        adapters_bytes_max: ADAPTERS_BYTES_MAX,
        caches_bytes_max: CACHES_BYTES_MAX,
        free: None,
        blocks: match offload {
            OnHost::Blocks(blocks) => Some(blocks.unwrap_or(StreamedBlocks { resident: 0, double, total })),
            OnHost::Nothing | OnHost::Text => None,
        },
    }
}

/// What does not stay in the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnHost {
    Nothing,
    Text,
    /// T5 and these blocks; `None`: all.
    Blocks(Option<StreamedBlocks>),
}

/// The first that fits.
fn offload_on_host(checkpoint: &Checkpoint, settings: &EngineSettings, weights: WeightBytes, available: u64) -> OnHost {
    let plan = plan_on_host(checkpoint, settings.precision, weights, available);
    if plan(Offload::Nothing).is_ok() {
        OnHost::Nothing
    } else if plan(Offload::Text).is_ok() || settings.precision.quantizes() {
        OnHost::Text
    } else {
        OnHost::Blocks(plan(Offload::Blocks).ok().and_then(|plan| plan.streamed_blocks()))
    }
}

/// The weights in the host's memory. Those that a precision quantizes are counted as in full precision.
fn weights_on_host(checkpoint: &Checkpoint, precision: Precision, are_stored: bool) -> WeightBytes {
    let full = checkpoint.weight_bytes(DType::F32);
    let mut weights = checkpoint.stored_weight_bytes(DType::F32).filter(|_| are_stored).unwrap_or(full);
    if precision.quantizes() {
        return weights;
    }
    let (transformer, t5) = (&checkpoint.configs.transformer, &checkpoint.configs.t5);
    // What is kept as it is stored is not rounded when it is loaded.
    if weights.transformer == full.transformer {
        weights.transformer -= storage::bytes_saved(transformer.block_linears(), DType::F32, precision);
    }
    if weights.t5 == full.t5 {
        weights.t5 -= storage::bytes_saved(t5.block_linears(), DType::F32, precision);
    }
    let saved_of = |net: &ControlNetFiles| storage::bytes_saved(net.config.linears(), DType::F32, precision);
    weights.attached -= checkpoint.controlnets.iter().map(saved_of).sum::<usize>();
    weights
}

/// Plans with so many bytes of the host's memory.
fn plan_on_host(
    checkpoint: &Checkpoint,
    precision: Precision,
    weights: WeightBytes,
    available: u64,
) -> impl Fn(Offload) -> Result<MemoryPlan, TooLarge> + '_ {
    const DTYPE: DType = DType::F32;
    let kept = Kept::new(checkpoint, weights, DTYPE, precision);
    // A plan leaves out T5's table, which is in the host's memory.
    let t5 = &checkpoint.configs.t5;
    let table = t5.vocab_size * t5.d_model * DTYPE.size_in_bytes();
    let free = usize::try_from(available).unwrap_or(usize::MAX).saturating_sub(table);
    move |offload| kept.plan(&checkpoint.configs, DTYPE, offload, (free, device::initial_limits()))
}

/// Whether matrices are kept as they are stored in the host's memory: where it was asked for, or expanded ones, which are faster,
/// would take more than their part of what is available. Those that are rounded to bf16 are no faster.
fn are_stored_on_host(settings: &EngineSettings, checkpoint: &Checkpoint, available: Option<u64>) -> bool {
    match settings.weights {
        WeightStorage::Expanded => false,
        WeightStorage::AsStored => true,
        WeightStorage::Auto if settings.precision == Precision::Bf16 => true,
        WeightStorage::Auto => {
            let WeightBytes { transformer, vae, clip, t5, attached, .. } = checkpoint.weight_bytes(DType::F32);
            let expanded = (transformer + vae + clip + t5 + attached) as u64;
            available.is_none_or(|available| expanded > available / HOST_PARTS)
        }
    }
}

/// Maximum pixels of an image that the CPU decodes as a whole. In strips it has the same bits.
fn whole_pixels_on_host(checkpoint: &Checkpoint, weights: WeightBytes, available: Option<u64>) -> usize {
    let Some(available) = available else { return 0 };
    let WeightBytes { transformer, vae, clip, t5, expanding, attached, residuals: _ } = weights;
    let left = available.saturating_sub((transformer + vae + clip + t5 + expanding + attached) as u64);
    HostDecoding::whole_pixels_max(&checkpoint.configs.vae, left / HOST_PARTS)
}

/// The plan, with `beside` bytes of other models in the device's memory. `None` where the device does not say how much memory it
/// has: on the CPU.
pub(crate) fn plan_for(
    checkpoint: &Checkpoint,
    device: &Device,
    settings: &EngineSettings,
    beside: usize,
) -> Result<Option<MemoryPlan>, TooLarge> {
    let Some(free) = device::free_bytes_of(device) else { return Ok(None) };
    let free = within_budget(free, settings).saturating_sub(beside);
    plan_within(checkpoint, free, device::dtype(device), settings).map(Some)
}

/// The plan for a device with so many bytes free that computes in `dtype`.
pub(crate) fn plan_within(
    checkpoint: &Checkpoint,
    free: usize,
    dtype: DType,
    settings: &EngineSettings,
) -> Result<MemoryPlan, TooLarge> {
    let (expanded, stored) = forms(checkpoint, dtype, settings);
    let room = (within_budget(free, settings), device::initial_limits());
    first_that_fits(settings, expanded, stored, |kept, offload| kept.plan(&checkpoint.configs, dtype, offload, room))
}

/// Every arrangement on a device with so many bytes free, the fastest first, and whether it fits: the rows of a table.
pub(crate) fn arrangements_within(
    checkpoint: &Checkpoint,
    free: usize,
    dtype: DType,
    settings: &EngineSettings,
) -> Vec<String> {
    let (expanded, stored) = forms(checkpoint, dtype, settings);
    let room = (within_budget(free, settings), device::initial_limits());
    let kept: Vec<Kept> = std::iter::once(expanded).chain(stored).collect();
    let offloads = [Offload::Nothing, Offload::Text, Offload::Blocks].into_iter();
    let offloads = offloads.filter(|offload| storage::check_streamed(*offload, settings.precision).is_ok());
    let all = offloads.flat_map(|offload| kept.iter().map(move |kept| (kept, offload)));
    let row = |(kept, offload): (&Kept, Offload)| match kept.plan(&checkpoint.configs, dtype, offload, room) {
        Ok(plan) => format!("fits  {}", plan.row()),
        Err(error) => format!("no    {}", error.row(kept.weights.expanding > 0, offload)),
    };
    all.map(row).collect()
}

fn within_budget(free: usize, settings: &EngineSettings) -> usize {
    settings.memory_budget.map_or(free, |budget| free.min(budget.0))
}

/// The weights expanded, and as they are stored where that saves memory.
fn forms(checkpoint: &Checkpoint, dtype: DType, settings: &EngineSettings) -> (Kept, Option<Kept>) {
    let mut expanded = checkpoint.weight_bytes(dtype);
    let linears = checkpoint.configs.transformer.block_linears();
    expanded.transformer -= storage::bytes_saved(linears, dtype, settings.precision);
    // A lossy precision quantizes what is expanded, unless all it is for is in e4m3 already.
    let are_blocks_kept = !settings.precision.quantizes()
        || storage::is_e4m3_kept(settings.weights, settings.precision) && checkpoint.is_in_e4m3();
    let stored = checkpoint.stored_weight_bytes(dtype).filter(|_| are_blocks_kept);
    let kept = |weights| Kept::new(checkpoint, weights, dtype, settings.precision);
    (kept(expanded), stored.map(kept))
}

/// The first plan that fits of those that the settings allow, the fastest first: weights expanded, as they are stored, both with
/// T5 copied to the device for each prompt, and the smaller of them with blocks of the transformer copied for each step.
fn first_that_fits(
    settings: &EngineSettings,
    expanded: Kept,
    stored: Option<Kept>,
    plan: impl Fn(&Kept, Offload) -> Result<MemoryPlan, TooLarge>,
) -> Result<MemoryPlan, TooLarge> {
    let (first, second) = match (settings.weights, stored) {
        (WeightStorage::Expanded, _) | (_, None) => (expanded, None),
        (WeightStorage::AsStored, Some(stored)) => (stored, None),
        (WeightStorage::Auto, Some(stored)) => (expanded, Some(stored)),
    };
    let any_weights = |offload| match &second {
        Some(second) => plan(&first, offload).or_else(|_| plan(second, offload)),
        None => plan(&first, offload),
    };
    let blocks = || plan(second.as_ref().unwrap_or(&first), Offload::Blocks);
    match settings.offload {
        Offload::Auto => {
            let kept = any_weights(Offload::Nothing).or_else(|_| any_weights(Offload::Text));
            // What a lossy precision quantizes must stay on the device.
            kept.or_else(|error| if settings.precision.quantizes() { Err(error) } else { blocks() })
        }
        Offload::Blocks => blocks(),
        offload => any_weights(offload),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::domain::byte_size::ByteSize;
    use crate::domain::model::{Attachments, CompletedFiles, ModelFiles};
    use crate::engine::checkpoint::{EXPANDED_BYTES_MAX, flux_dev_tensors};
    use crate::engine::models::flux1::config::Configs;

    /// T5's numbers, and those of its table, which stays in the host's memory and is counted in bf16.
    const T5: usize = 4_762_310_656;
    const T5_TABLE: usize = 32_128 * 4096;

    /// How a file stores a matrix: bytes of so many numbers.
    type Coding = (usize, usize);
    const FP8: Coding = (1, 1);
    const Q8_0: Coding = (34, 32);
    const Q4_K: Coding = (144, 256);

    /// FLUX.1-dev in bf16.
    fn expanded() -> Kept {
        kept((2, 1), (2, 1), 0)
    }

    /// FLUX.1-dev with the matrices of the transformer and of T5 in some coding, everything else in bf16.
    fn stored(transformer: Coding, t5: Coding) -> Kept {
        kept(transformer, t5, EXPANDED_BYTES_MAX)
    }

    fn kept(transformer: Coding, t5: Coding, expanding: usize) -> Kept {
        let coded = |numbers: usize, (bytes, of): Coding| numbers * bytes / of;
        let tensors: Vec<(String, usize)> = flux_dev_tensors()
            .into_iter()
            .map(|(name, shape)| {
                let coding = if shape.len() == 2 { transformer } else { (2, 1) };
                (name, coded(shape.iter().product(), coding))
            })
            .collect();
        let weights = WeightBytes {
            transformer: tensors.iter().map(|(_, bytes)| bytes).sum(),
            vae: 2 * 83_819_683,
            clip: 2 * 123_060_480,
            t5: 2 * T5_TABLE + coded(T5 - T5_TABLE, t5),
            expanding,
            attached: 0,
            residuals: 0,
        };
        let sizes = tensors.iter().map(|(name, bytes)| (name.as_str(), *bytes));
        Kept { weights, blocks: BlockBytes::of(sizes, 19, 57) }
    }

    /// A plan with so many GiB free, in bf16.
    fn planned(gib: usize, settings: &EngineSettings, stored: Option<Kept>) -> Result<MemoryPlan, TooLarge> {
        let limits = EngineLimits { images_max: 32, step_tokens_max: 33_792 };
        let plan = |kept: &Kept, offload| kept.plan(&Configs::flux_dev(), DType::BF16, offload, (gib << 30, limits));
        first_that_fits(settings, expanded(), stored, plan)
    }

    /// Of the plan for so many GiB: whether weights are kept as stored, whether T5 is streamed, and how many blocks stay.
    fn chosen(gib: usize, settings: &EngineSettings, stored: Option<Kept>) -> Option<(bool, bool, usize)> {
        let plan = planned(gib, settings, stored).ok()?;
        let resident = plan.streamed_blocks().map_or(57, |blocks| blocks.resident);
        Some((plan.are_stored(), plan.is_text_streamed, resident))
    }

    fn q4_k() -> Kept {
        stored(Q4_K, Q8_0)
    }

    /// Read line by line when it changes: `UPDATE_SNAPSHOTS=1 cargo test --lib snapshot` writes it.
    #[test]
    fn every_card_has_the_arrangement_of_the_snapshot() {
        let files = [
            ("bf16", None),
            ("fp8", Some(stored(FP8, FP8))),
            ("Q8_0", Some(stored(Q8_0, Q8_0))),
            ("Q4_K", Some(q4_k())),
        ];
        let mut table = String::new();
        for (name, stored) in files {
            for gib in [8, 10, 12, 16, 24, 32, 40, 48, 80, 141] {
                // A card's driver keeps some.
                let row = match planned(gib - 1, &EngineSettings::default(), stored.clone()) {
                    Ok(plan) => plan.row(),
                    Err(error) => error.to_string(),
                };
                writeln!(table, "{name:<4}  {gib:>3} GiB  {row}").expect("a string");
            }
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/memory/arrangements.txt");
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(&path, &table).expect("written");
        }
        let expected = std::fs::read_to_string(&path).expect("the snapshot");
        assert!(table == expected, "the arrangements are\n{table}");
    }

    #[test]
    fn blocks_stay_as_far_as_memory_goes_and_a_megapixel_fits() {
        let settings = EngineSettings::default();
        let mut before = 0;
        for gib in [8, 11, 14, 17] {
            let plan = planned(gib, &settings, None).expect("fits");
            let StreamedBlocks { resident, .. } = plan.streamed_blocks().expect("streamed");
            assert!(resident > before || gib == 8, "{gib} GiB: {resident}");
            before = resident;
            assert!(plan.pixels.output >= 1024 * 1024 || resident == 0, "{plan}");
        }
        let plan = planned(23, &settings, None).expect("fits").to_string();
        assert!(
            plan.contains(" of 57 blocks stay in memory, a step reads ") && plan.contains(" from a disk"),
            "{plan}"
        );
        let none = EngineSettings { memory_budget: Some(ByteSize(1 << 30)), ..settings };
        assert_eq!(within_budget(24 << 30, &none), 1 << 30);
    }

    #[test]
    fn the_fastest_arrangement_that_fits_is_chosen() {
        let settings = EngineSettings::default();
        let of_a_quantized_file = [11, 15, 23, 31, 39, 79].map(|gib| chosen(gib, &settings, Some(q4_k())));
        let (stored, streamed, expanded) = (Some((true, false, 57)), Some((true, true, 57)), Some((false, false, 57)));
        assert_eq!(of_a_quantized_file, [streamed, stored, stored, stored, expanded, expanded]);
        let smaller = chosen(7, &settings, Some(q4_k())).expect("fits with blocks read for each step");
        assert!(smaller.0 && smaller.1 && smaller.2 < 57, "{smaller:?}");
        // Of a file in bf16, which is no smaller as it is stored.
        let of_a_plain_file = [31, 39].map(|gib| chosen(gib, &settings, None));
        assert_eq!(of_a_plain_file, [Some((false, true, 57)), expanded]);
        let smaller = chosen(23, &settings, None).expect("fits with blocks read for each step");
        assert_eq!(smaller, (false, true, 57), "without the modulations, all blocks stay");
        let smaller = chosen(15, &settings, None).expect("fits with blocks read for each step");
        assert!(!smaller.0 && smaller.1 && (1..57).contains(&smaller.2), "{smaller:?}");
        assert_eq!(chosen(2, &settings, None), None);
    }

    #[test]
    fn weights_are_expanded_on_the_host_where_they_take_at_most_half_of_its_memory() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
        let checkpoint = Checkpoint::open(&ModelFiles::Directory(folder)).expect("opens");
        let WeightBytes { transformer, vae, clip, t5, .. } = checkpoint.weight_bytes(DType::F32);
        let twice = 2 * (transformer + vae + clip + t5) as u64;
        let of = |weights, available| {
            let settings = |precision| EngineSettings { precision, weights, ..EngineSettings::default() };
            let bf16 = are_stored_on_host(&settings(Precision::Bf16), &checkpoint, available);
            assert_eq!(bf16, weights != WeightStorage::Expanded, "rounded ones are no faster where they are expanded");
            are_stored_on_host(&settings(Precision::Full), &checkpoint, available)
        };
        let free = [Some(twice), Some(twice - 2), None];
        assert_eq!(free.map(|free| of(WeightStorage::Auto, free)), [false, true, true]);
        assert_eq!(free.map(|free| of(WeightStorage::AsStored, free)), [true; 3]);
        assert_eq!(free.map(|free| of(WeightStorage::Expanded, free)), [false; 3]);
    }

    fn completed(path: PathBuf, base: Option<ModelFiles>) -> CompletedFiles {
        CompletedFiles { path, text_encoders: Vec::new(), vae: None, base, attachments: Attachments::default() }
    }

    /// In fp8 other matrices may stay as they are stored where those that it is for do.
    #[test]
    fn in_fp8_only_a_file_in_e4m3_is_planned_as_stored() {
        let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
        let base = ModelFiles::Directory(reference.join("FLUX.1-dev"));
        let files = completed(reference.join("quant/fp8/flux1-dev-fp8-scaled.safetensors"), Some(base));
        let in_e4m3 = Checkpoint::open(&ModelFiles::Completed(Box::new(files))).expect("opens");
        let in_q4 = reference.join("quant/FLUX.1-dev-256/tiny-flux-Q4_K_S.gguf");
        let in_q4 = Checkpoint::open(&ModelFiles::Directory(in_q4)).expect("opens");
        let are_stored = |checkpoint: &Checkpoint, weights, precision| {
            let settings = EngineSettings { precision, weights, ..EngineSettings::default() };
            plan_within(checkpoint, 8 << 30, DType::BF16, &settings).expect("fits").are_stored()
        };
        let of = |checkpoint: &Checkpoint, precision| {
            [WeightStorage::AsStored, WeightStorage::Auto].map(|weights| are_stored(checkpoint, weights, precision))
        };
        assert_eq!([of(&in_e4m3, Precision::Fp8), of(&in_q4, Precision::Fp8)], [[true, false], [false, false]]);
        assert_eq!([of(&in_e4m3, Precision::Full), of(&in_q4, Precision::Full)], [[true, false]; 2]);
    }

    #[test]
    fn the_host_decodes_as_a_whole_what_takes_at_most_half_of_what_weights_leave() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
        let checkpoint = Checkpoint::open(&ModelFiles::Directory(folder)).expect("opens");
        let WeightBytes { transformer, vae, clip, t5, .. } = checkpoint.weight_bytes(DType::F32);
        let weights = (transformer + vae + clip + t5) as u64;
        let image = HostDecoding::of(&checkpoint.configs.vae, 512, 512).whole as u64;
        let all = checkpoint.weight_bytes(DType::F32);
        let of = |available| whole_pixels_on_host(&checkpoint, all, available);
        assert_eq!(of(Some(weights + HOST_PARTS * image)), 512 * 512);
        assert_eq!([Some(weights), Some(0), None].map(of), [0; 3]);
    }

    #[test]
    fn in_bf16_the_linear_layers_of_blocks_take_half_of_the_hosts_memory_or_their_files_size() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
        let checkpoint = Checkpoint::open(&ModelFiles::Directory(folder)).expect("opens");
        let linears = checkpoint.configs.transformer.block_linears();
        let numbers: usize = linears.iter().map(|(count, [outputs, inputs])| count * outputs * inputs).sum();
        let of = |precision, are_stored| weights_on_host(&checkpoint, precision, are_stored).transformer;
        assert_eq!(of(Precision::Full, false) - of(Precision::Bf16, false), 2 * numbers);
        assert_eq!(of(Precision::Full, true), of(Precision::Bf16, true), "some of its tensors are smaller in the file");
        let t5 = |precision| weights_on_host(&checkpoint, precision, false).t5;
        let linears = checkpoint.configs.t5.block_linears();
        let numbers: usize = linears.iter().map(|(count, [outputs, inputs])| count * outputs * inputs).sum();
        assert_eq!(t5(Precision::Full) - t5(Precision::Bf16), 2 * numbers);
        assert_eq!(t5(Precision::Full), t5(Precision::Fp8), "T5 is not quantized");
        // Blocks that are read for each step are counted alike.
        let others = |precision| {
            let weights = weights_on_host(&checkpoint, precision, false);
            let BlockBytes { blocks, modulations, .. } = Kept::new(&checkpoint, weights, DType::F32, precision).blocks;
            weights.transformer - blocks.iter().sum::<usize>() - modulations
        };
        assert_eq!(others(Precision::Full), others(Precision::Bf16));
        // All of a net's own but what its embedders and modulations have.
        let union = "family/controlnet/FLUX.1-dev-ControlNet-Union";
        let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
        let mut files = completed(reference.join("FLUX.1-dev"), None);
        files.attachments.controlnets = vec![("edges".into(), reference.join(union))];
        let checkpoint = Checkpoint::open(&ModelFiles::Completed(Box::new(files))).expect("opens");
        let nets = |precision| weights_on_host(&checkpoint, precision, true).attached;
        let (full, bf16) = (nets(Precision::Full), nets(Precision::Bf16));
        assert!(bf16 < full && 2 * bf16 > full, "{bf16} of {full} bytes");
        assert_eq!(nets(Precision::Fp8), full);
    }

    #[test]
    fn settings_exclude_arrangements() {
        let asked = |weights, offload| EngineSettings { offload, weights, ..EngineSettings::default() };
        let expanded = asked(WeightStorage::Expanded, Offload::Nothing);
        let all = Some((false, false, 57));
        assert_eq!([15, 31, 39].map(|gib| chosen(gib, &expanded, Some(q4_k()))), [None, None, all]);
        let stored = asked(WeightStorage::AsStored, Offload::Auto);
        let found = [11, 79].map(|gib| chosen(gib, &stored, Some(q4_k())));
        assert_eq!(found, [Some((true, true, 57)), Some((true, false, 57))]);
        let streamed = asked(WeightStorage::Auto, Offload::Text);
        let found = [15, 79].map(|gib| chosen(gib, &streamed, Some(q4_k())));
        assert_eq!(found, [Some((true, true, 57)), Some((false, true, 57))]);
        let resident = asked(WeightStorage::Auto, Offload::Nothing);
        assert_eq!([11, 15].map(|gib| chosen(gib, &resident, Some(q4_k()))), [None, Some((true, false, 57))]);
        let blocks = asked(WeightStorage::Auto, Offload::Blocks);
        assert_eq!(chosen(79, &blocks, Some(q4_k())), Some((true, true, 57)));
        assert!(planned(79, &blocks, Some(q4_k())).is_ok_and(|plan| plan.streamed_blocks().is_some()));
    }

    #[test]
    fn a_lossy_precision_keeps_its_blocks() {
        let settings = EngineSettings { precision: Precision::Fp8, ..EngineSettings::default() };
        assert_eq!(chosen(11, &settings, None), None);
    }

    #[test]
    fn blocks_are_read_for_each_step_where_the_host_has_no_memory_for_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
        let checkpoint = Checkpoint::open(&ModelFiles::Directory(folder)).expect("opens");
        let config = &checkpoint.configs.transformer;
        let total = config.num_layers + config.num_single_layers;
        let of = |settings: EngineSettings, available| {
            let room = room_on_host(&checkpoint, &settings, available);
            (room.is_text_streamed, room.blocks.map(|blocks| (blocks.resident, blocks.total)))
        };
        let auto = EngineSettings::default();
        assert_eq!(of(auto, Some(64 << 30)), (false, None));
        assert_eq!(of(auto, None), (false, None), "what is unknown is as before");
        assert_eq!(of(auto, Some(1 << 20)), (true, Some((0, total))));
        let capped = EngineSettings { memory_budget: Some(ByteSize(1 << 20)), ..auto };
        assert_eq!(of(capped, Some(64 << 30)), (true, Some((0, total))));
        assert_eq!(of(capped, None), (true, Some((0, total))));
        let bf16 = EngineSettings { precision: Precision::Bf16, ..auto };
        assert_eq!(of(bf16, Some(1 << 20)), (true, Some((0, total))));
        let fp8 = EngineSettings { precision: Precision::Fp8, ..auto };
        assert_eq!(of(fp8, Some(1 << 20)), (true, None));
        let asked = EngineSettings { offload: Offload::Blocks, ..auto };
        assert_eq!(of(asked, Some(64 << 30)), (true, Some((total, total))));
        assert_eq!(of(asked, None), (true, Some((0, total))));
    }
}
