//! FLUX on candle, behind [`crate::domain::engine::StepEngine`]. The only home of candle; knows nothing of tokio, HTTP,
//! queue, auth or SQL.

mod adapted;
mod adapters;
mod admission;
mod blocks;
mod caching;
mod checkpoint;
mod convert;
mod device;
mod doctor;
mod draft;
mod error;
mod kernel_choices;
mod kernel_times;
mod kernel_trial;
mod linear;
mod memory;
mod models;
mod noise;
pub(crate) mod ops;
mod reading;
mod self_test;
mod stages;
mod storage;
mod trace;
mod vision;

#[cfg(test)]
mod counted_heap;
#[cfg(test)]
mod parity;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::domain::device::EngineSettings;
use crate::domain::engine::{Draft, EngineError, EngineLimits, LoadObserver, Slot, StepEngine};
use crate::domain::image::RgbImage;
use crate::domain::model::ModelFiles;
use crate::domain::precision::Precision;
use crate::domain::spec::GenerateSpec;

use adapted::{AdapterCache, AdapterSet, Loader};
pub use adapters::{
    Adaptable, AdaptedComponent, Adapter, AdapterError, AdapterReport, Change, Fault, LowRank, Magnitude, Matrix,
    ModuleChanges, NotUsed, UnusedTensors, WeightChange,
};
use admission::encode_part;
use checkpoint::{Checkpoint, LoadOptions};
pub use checkpoint::{
    CheckpointError, ComponentReport, FileContents, FileMetadata, Inspection, KeptAs, Problem, conditioning_of,
    controlnet_card, file_contents, inspect,
};
pub use convert::{Conversion, ConvertError, StoredCounts};
pub use device::{DeviceError, failure, free_bytes, name};
use device::{OpenDevice, device_error};
pub use doctor::{ExaminedDevice, memory_arrangements_within, memory_plan_within};
use draft::UnfinishedDraft;
pub use error::LoadError;
pub use kernel_choices::{ChosenKernel, KernelChoices};
pub use kernel_times::{KernelTiming, KernelTimings, time_kernels};
pub use kernel_trial::{KernelTrial, may_have_faster_kernels, try_kernel};
pub use memory::TooLarge;
use memory::{MemoryUse, PixelLimits, Room};
use models::flux1::{Flux1, Image, Residency, Stepped, Weights};
pub use ops::gemm::rounded::why_bf16_is_no_faster;
pub use reading::{LoadTimes, Reading, read_weights};
pub use self_test::{OperationEvent, OperationReport, run_operations};
pub use stages::{Stages, WriteError};
pub use storage::{AsStoredError, PrecisionError};
pub use trace::Trace;
use vision::VisionFiles;
pub use vision::style_card;

/// A FLUX model on one device, and the images it is generating.
pub struct FluxEngine {
    model: Flux1,
    adapters: AdapterCache,
    limits: EngineLimits,
    /// Maximum pixels of an image in the device's memory.
    pixels: PixelLimits,
    memory: MemoryUse,
    /// Maximum bytes of the caches of all images.
    caches_bytes_max: usize,
    /// Whether an image with a cache is refused.
    refuses_caches: bool,
    /// Whether each image of a step is computed by itself.
    is_unbatched: bool,
    images: BTreeMap<Slot, Image>,
    /// The draft that is not finished.
    draft: Option<UnfinishedDraft>,
    next_slot: u64,
    load_times: LoadTimes,
    /// Closed last, after all tensors are dropped.
    device: OpenDevice,
}

impl FluxEngine {
    /// Loads a checkpoint, in either published layout, onto a device. bf16 on CUDA, f32 on the CPU; latents are f32 on
    /// both.
    ///
    /// The engine must stay on the thread that loads it, which holds its libraries.
    ///
    /// # Errors
    /// When the device is not available, the checkpoint is incomplete, or memory does not suffice.
    pub fn load(files: &ModelFiles, settings: impl Into<EngineSettings>) -> Result<Self, LoadError> {
        Self::load_watched(files, settings, Arc::new(()))
    }

    /// [`Self::load`], which reports its progress to `observer`.
    ///
    /// # Errors
    /// As there.
    pub fn load_watched(
        files: &ModelFiles,
        settings: impl Into<EngineSettings>,
        observer: Arc<dyn LoadObserver>,
    ) -> Result<Self, LoadError> {
        let (started, settings) = (Instant::now(), settings.into());
        // Opening a device can take as long as opening the files, and most of either is waiting.
        let (device, device_seconds, checkpoint) = std::thread::scope(|scope| {
            let checkpoint = scope.spawn(|| Checkpoint::open(files));
            let device = device::open(settings.device);
            let device_seconds = started.elapsed().as_secs_f64();
            (device, device_seconds, checkpoint.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (device, checkpoint) = (device?, checkpoint?);
        let check_seconds = started.elapsed().as_secs_f64() - device_seconds;
        storage::check_widths(checkpoint.configs.transformer.block_linears(), &device, settings.precision)?;
        storage::check_device(&device, settings.precision)?;
        storage::check_kept(settings.weights, settings.precision, checkpoint.is_in_e4m3())?;
        storage::check_streamed(settings.offload, settings.precision)?;
        let vision = VisionFiles::open(files, checkpoint.configs.transformer.joint_attention_dim)?;
        let beside = vision.bytes_beside(device::dtype(&device), device.is_cpu());
        let room = memory::room_for(&checkpoint, &device, &settings, beside)?;
        let Room { limits, pixels, are_stored, is_text_streamed, adapters_bytes_max, blocks, .. } = room;
        warn_of_loss(&settings, checkpoint.block_linears_in_e4m3());
        let faults = settings.kernel_faults;
        ops::attention::KERNELS.choose(&device, settings.kernels, faults.attention)?;
        ops::convolution::KERNELS.choose(&device, settings.kernels, faults.convolution)?;
        let is_e4m3_kept = storage::is_e4m3_kept(settings.weights, settings.precision);
        let dtype = device::dtype(&device);
        let options = LoadOptions { dtype, is_text_streamed, are_stored, blocks, is_e4m3_kept };
        let loading = checkpoint.load_onto(&device, options, observer)?;
        let weights = Weights {
            decoder: loading.decoder(),
            encoder: loading.encoder(),
            clip: loading.clip(),
            t5: loading.t5(),
            transformer: loading.transformer(),
            controlnets: loading.controlnets(),
        };
        let (precision, whole_pixels_max) = (settings.precision, pixels.whole);
        let residency = Residency { precision, is_text_streamed, blocks, whole_pixels_max };
        let (configs, tokenizers) = (checkpoint.configs.clone(), checkpoint.tokenizers.clone());
        let loader = Loader::new(&checkpoint, options.dtype, adapters_bytes_max);
        let mut model = Flux1::load(configs, tokenizers, weights, residency)?;
        let (weights_bytes, weights_seconds) = loading.finish()?;
        model.vision = vision.load(&device, dtype)?;
        if settings.uses_graphs {
            // Blocks that are read for each step come over another stream.
            if blocks.is_some() {
                tracing::warn!("`--graphs` is ignored: blocks of the transformer are read for each step");
            } else {
                model.record_steps();
            }
        }
        let fitting = Instant::now();
        model.fit_previews()?;
        let preview_seconds = fitting.elapsed().as_secs_f64();
        Ok(Self {
            model,
            adapters: AdapterCache::new(loader, &device),
            caches_bytes_max: room.caches_bytes_max,
            refuses_caches: settings.is_deterministic,
            // The CPU's own operations are batch-invariant.
            is_unbatched: settings.is_deterministic && !device.is_cpu(),
            limits,
            pixels,
            memory: MemoryUse::new(room.free),
            images: BTreeMap::new(),
            draft: None,
            next_slot: 0,
            load_times: LoadTimes { device_seconds, check_seconds, weights_seconds, weights_bytes, preview_seconds },
            device,
        })
    }

    /// The durations of the parts of loading.
    #[must_use]
    pub fn load_times(&self) -> LoadTimes {
        self.load_times
    }

    /// The image in a slot.
    fn held(&self, slot: Slot) -> Result<&Image, EngineError> {
        self.images.get(&slot).ok_or_else(|| EngineError::Fatal(format!("unknown {slot:?}")))
    }

    /// The outcomes of one step of each image.
    fn stepped(&mut self, slots: &[Slot]) -> candle_core::Result<Vec<Stepped>> {
        // A matrix product's bits depend on its number of rows, for which the library may pick another algorithm.
        let batch_size = if self.is_unbatched { 1 } else { slots.len().max(1) };
        let mut stepped = Vec::with_capacity(slots.len());
        for batch in slots.chunks(batch_size) {
            let chosen = self.images.iter_mut().filter(|(slot, _)| batch.contains(slot));
            self.model.modulate_ahead(&mut chosen.map(|(_, image)| image).collect::<Vec<_>>())?;
            let images: Vec<&Image> = batch.iter().filter_map(|slot| self.images.get(slot)).collect();
            stepped.extend(self.model.step(&images)?);
        }
        // Calls only enqueue work: the queue measures time after this, and the device may still fail.
        self.device.synchronize()?;
        Ok(stepped)
    }

    /// Removes an image that has run all its steps. An error after this drops the image.
    fn take_done(&mut self, slot: Slot) -> Result<Image, EngineError> {
        let image = self.images.remove(&slot).ok_or_else(|| EngineError::Fatal(format!("unknown {slot:?}")))?;
        if image.is_done() { Ok(image) } else { Err(EngineError::Request("the image has steps left".to_owned())) }
    }

    /// Lets go of the adapters of an image that is to be decoded, which needs them no more; a large one needs their memory.
    fn make_room_to_decode(&mut self, image: &mut Image) {
        image.adapters = AdapterSet::default();
        // It needs the same memory.
        self.draft = None;
        if self.pixels.needs_that_of_adapters(image.width as usize * image.height as usize) {
            self.adapters.drop_unused();
        }
    }
}

/// Tells the log that a precision is lossy, and where so many layers of all keep the weights of their file.
fn warn_of_loss(settings: &EngineSettings, in_e4m3: [usize; 2]) {
    let precision = settings.precision;
    if precision.is_lossy() {
        tracing::warn!(%precision, "the engine runs in a lossy precision: images differ slightly from the model's");
    }
    if let (Precision::Bf16, Some(why)) = (precision, why_bf16_is_no_faster()) {
        tracing::warn!("{why}");
    }
    if let Some(words) = storage::words_for_e4m3(settings.weights, precision, in_e4m3) {
        tracing::info!("{words}: nothing more is lost of them");
    }
}

impl StepEngine for FluxEngine {
    fn limits(&self) -> EngineLimits {
        self.limits
    }

    fn attention_balance_tokens(&self) -> usize {
        self.model.transformer.attention_balance_tokens()
    }

    fn prepare(&mut self, spec: &GenerateSpec) -> Result<bool, EngineError> {
        self.adapters.prepare(spec.loras())
    }

    fn admit(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.check(spec)?;
        self.check_cache(spec)?;
        let adapters = self.adapters.load(spec.loras())?;
        self.check_adapters(spec, &adapters)?;
        let mut image = self.model.admit(spec, adapters.clone());
        if matches!(image, Err(EngineError::OutOfMemory(_))) && self.free_spare_memory() {
            image = self.model.admit(spec, adapters);
        }
        let image = image?;
        self.wait()?;
        let slot = Slot(self.next_slot);
        self.next_slot += 1;
        self.images.insert(slot, image);
        Ok(slot)
    }

    fn encode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        // It needs the same memory.
        self.draft = None;
        // Taken out: an error frees the slot.
        let mut image = self.images.remove(&slot).ok_or_else(|| EngineError::Fatal(format!("unknown {slot:?}")))?;
        let is_left = encode_part(&self.model, &mut self.adapters, &mut image)?;
        self.wait()?;
        self.images.insert(slot, image);
        Ok(!is_left)
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        let mut tokens = 0;
        for slot in slots {
            let image = self.held(*slot)?;
            if image.is_done() {
                return Err(EngineError::Fatal(format!("{slot:?} has run all its steps")));
            }
            tokens += image.step_tokens();
        }
        self.encode_rest(slots)?;
        let stepped = self.stepped(slots).map_err(device_error);
        if let Err(EngineError::OutOfMemory(_)) = stepped {
            self.limits = device::limits_after_out_of_memory(self.limits, tokens);
            self.free_spare_memory();
        }
        for (slot, stepped) in slots.iter().zip(stepped?) {
            if let Some(image) = self.images.get_mut(slot) {
                image.advance(stepped);
            }
        }
        Ok(())
    }

    fn decode_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        let mut image = self.take_done(slot)?;
        self.make_room_to_decode(&mut image);
        let is_left = self.model.decode_part(&mut image)?;
        self.wait()?;
        self.images.insert(slot, image);
        Ok(!is_left)
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        let mut image = self.take_done(slot)?;
        self.make_room_to_decode(&mut image);
        let finished = self.model.finish(image);
        self.memory.report(device::most_used_bytes(&self.device));
        finished
    }

    fn preview(&mut self, slot: Slot) -> Result<Option<RgbImage>, EngineError> {
        let Some(image) = self.images.get(&slot) else { return Ok(None) };
        self.model.preview(image).map_err(device_error)
    }

    fn draft_part(&mut self, slot: Slot) -> Result<Draft, EngineError> {
        self.next_draft_part(slot)
    }

    fn release(&mut self, slot: Slot) {
        self.drop_draft_of(slot);
        self.images.remove(&slot);
    }
}
