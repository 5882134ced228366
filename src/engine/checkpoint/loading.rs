//! Loads a checkpoint onto a device: which tensors, in which order, by which path.
//!
//! To a CUDA device tensors come in one stream through all components, so that reading never waits for the model to ask.
//! Into the host's memory each is read when it is asked for, on all threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;

use super::builder::{Observed, Streamed, Streaming, Tensors, Weights};
use super::controlnets::ControlNetWeights;
use super::names::transformer::is_block_linear;
use super::recipe::Recipe;
use super::repeated::{BlockBytes, Reading, Repeated, StreamedBlocks};
use super::stream::nowhere::Nowhere;
use super::stream::{Asked, Destination, TensorStream, WeightStream};
use super::tensors::CheckedTensors;
use super::{Checkpoint, WeightBytes};
use crate::domain::engine::LoadObserver;

/// Bytes of stored matrices that are expanded at a time on a device.
pub(crate) const EXPANDED_BYTES_MAX: usize = 256 << 20;

/// T5's table of embeddings, which stays in the host's memory.
const T5_TABLE: &str = "shared.";
/// Named as part of a block, but used by all of them; stays in the host's memory, too.
const T5_BIAS: &str = "relative_attention_bias";

/// The parts of a checkpoint, in the order in which the model loads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Decoder,
    Encoder,
    Clip,
    T5,
    Transformer,
    /// Beside the checkpoint, by its number.
    ControlNet(usize),
}

/// The parts that every checkpoint has.
const PARTS: [Part; 5] = [Part::Decoder, Part::Encoder, Part::Clip, Part::T5, Part::Transformer];

/// How to load weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoadOptions {
    /// Of all weights.
    pub(crate) dtype: DType,
    /// Whether T5's blocks are streamed for each prompt instead of kept on the device.
    pub(crate) is_text_streamed: bool,
    /// Whether the matrices of the transformer and of T5 are given as their files store them.
    pub(crate) are_stored: bool,
    /// Which of the transformer's blocks are read for each step. `None`: they, and the modulations, are kept.
    pub(crate) blocks: Option<StreamedBlocks>,
    /// Whether the linear layers of the transformer's blocks that are stored in e4m3 are given so.
    pub(crate) is_e4m3_kept: bool,
}

/// A checkpoint that is being loaded.
pub(crate) struct Loading<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    options: LoadOptions,
    observer: Arc<dyn LoadObserver>,
    stream: Option<Arc<dyn TensorStream>>,
    /// Of what is read repeatedly.
    repeated: BTreeMap<Reading, Arc<dyn TensorStream>>,
    plan: Plan,
    started: Instant,
}

/// Which tensors go through which stream.
#[derive(Default)]
struct Plan {
    recipes: BTreeMap<Reading, Vec<Recipe>>,
    numbers: BTreeMap<Part, BTreeMap<String, Streaming>>,
    /// Bytes that are read while the model is loaded.
    bytes: usize,
}

impl Checkpoint {
    /// Begins to load onto a device. `observer` is told how much there is to read, and then the progress.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn load_onto(
        &self,
        device: &Device,
        options: LoadOptions,
        observer: Arc<dyn LoadObserver>,
    ) -> Result<Loading<'_>> {
        let loading = Loading::new(self, device, options, observer)?;
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            use super::stream::cuda::CudaMemory;

            return Ok(loading.through(|reading| match reading {
                Reading::Once | Reading::ForPrompts => Ok(CudaMemory::new(cuda.clone())),
                Reading::ForSteps | Reading::ForModulations => CudaMemory::beside(cuda.clone()),
            }));
        }
        Ok(loading)
    }

    /// Reads all weights as for loading, drops them, and returns the number of bytes.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn read_and_drop(&self) -> Result<usize> {
        let mut recipes = Vec::new();
        let beside = self.controlnets.iter().map(|net| &net.tensors);
        for tensors in [&self.vae, &self.clip, &self.t5, &self.transformer].into_iter().chain(beside) {
            for name in tensors.names() {
                let mut recipe = tensors.recipe(name, DType::BF16)?;
                // Without a conversion, where there can be none: only reading is measured.
                recipe.dtype = recipe.segments[0].numbers.plain().unwrap_or(DType::BF16);
                recipes.push(recipe);
            }
        }
        let count = recipes.len();
        let bytes = recipes.iter().map(Recipe::file_bytes).sum();
        let stream = WeightStream::start(Nowhere, recipes, Asked::Once)?;
        for number in 0..count {
            stream.fetch(number)?;
        }
        Ok(bytes)
    }
}

impl Checkpoint {
    /// The size of the weights where the matrices of the transformer and of T5 are kept as they are stored, and the others in
    /// `dtype`. `None` where that saves nothing.
    pub(crate) fn stored_weight_bytes(&self, dtype: DType) -> Option<WeightBytes> {
        let full = self.weight_bytes(dtype);
        let [transformer, t5] = [Part::Transformer, Part::T5].map(|part| part.stored_bytes(self, dtype));
        (transformer.is_some() || t5.is_some()).then(|| WeightBytes {
            transformer: transformer.unwrap_or(full.transformer),
            t5: t5.unwrap_or(full.t5),
            expanding: EXPANDED_BYTES_MAX,
            ..full
        })
    }

    /// The size of the transformer's blocks in `dtype`, their linear layers in a type of their own, or with their matrices as they are
    /// stored.
    pub(crate) fn block_bytes(&self, dtype: DType, of_linears: DType, are_stored: bool) -> BlockBytes {
        let config = &self.configs.transformer;
        let are_stored = are_stored && Part::Transformer.stored_bytes(self, dtype).is_some();
        // Every name has a tensor.
        let bytes = |name: &str| {
            self.transformer.recipe(name, dtype).map_or(0, |recipe| {
                if are_stored && recipe.shape.len() == 2 {
                    recipe.stored_bytes()
                } else if is_block_linear(name) {
                    Recipe { dtype: of_linears, ..recipe }.bytes()
                } else {
                    recipe.bytes()
                }
            })
        };
        let tensors = self.transformer.names().map(|name| (name, bytes(name)));
        BlockBytes::of(tensors, config.num_layers, config.num_layers + config.num_single_layers)
    }
}

impl Checkpoint {
    /// How many linear layers of the transformer's blocks are stored in e4m3, with one scale for each tensor, and how many there
    /// are.
    pub(crate) fn block_linears_in_e4m3(&self) -> [usize; 2] {
        let names = self.transformer.names().filter(|name| is_block_linear(name));
        let recipes = names.filter_map(|name| self.transformer.recipe(name, DType::U8).ok());
        recipes.fold([0, 0], |[kept, all], recipe| [kept + usize::from(recipe.e4m3_scales().is_some()), all + 1])
    }

    /// Whether all linear layers of the transformer's blocks are.
    pub(crate) fn is_in_e4m3(&self) -> bool {
        let [kept, all] = self.block_linears_in_e4m3();
        kept == all
    }
}

impl LoadOptions {
    /// Whether a tensor is given as its codes in e4m3.
    fn are_codes(self, part: Part, name: &str, recipe: &Recipe) -> bool {
        let is_kept = self.is_e4m3_kept && part == Part::Transformer && is_block_linear(name);
        is_kept && recipe.e4m3_scales().is_some()
    }
}

impl Part {
    fn tensors(self, checkpoint: &Checkpoint) -> &CheckedTensors {
        match self {
            Self::Decoder | Self::Encoder => &checkpoint.vae,
            Self::Clip => &checkpoint.clip,
            Self::T5 => &checkpoint.t5,
            Self::Transformer => &checkpoint.transformer,
            Self::ControlNet(number) => &checkpoint.controlnets[number].tensors,
        }
    }

    /// Those of a checkpoint, and of what is beside it.
    fn all(checkpoint: &Checkpoint) -> Vec<Self> {
        let beside = (0..checkpoint.controlnets.len()).map(Self::ControlNet);
        PARTS.into_iter().chain(beside).collect()
    }

    /// What of it is read repeatedly.
    fn repeated(self, options: LoadOptions) -> Repeated {
        Repeated {
            is_text: self == Self::T5 && options.is_text_streamed,
            blocks: options.blocks.filter(|_| self == Self::Transformer),
        }
    }

    /// Whether its matrices are given as they are stored.
    fn are_stored(self, checkpoint: &Checkpoint, options: LoadOptions) -> bool {
        options.are_stored && self.stored_bytes(checkpoint, options.dtype).is_some()
    }

    /// Its bytes where matrices are kept as they are stored. `None` where they never are, or it saves nothing.
    fn stored_bytes(self, checkpoint: &Checkpoint, dtype: DType) -> Option<usize> {
        let is_full: fn(&str) -> bool = match self {
            Self::Decoder | Self::Encoder | Self::Clip | Self::ControlNet(_) => return None,
            // The table is not counted to the device's memory by its stored size: it stays in the host's.
            Self::T5 => |name| name.starts_with(T5_TABLE) || name.contains(T5_BIAS),
            Self::Transformer => |_| false,
        };
        self.tensors(checkpoint).stored_bytes(dtype, is_full)
    }

    fn has(self, name: &str) -> bool {
        match self {
            Self::Decoder => name.starts_with("decoder."),
            Self::Encoder => name.starts_with("encoder."),
            Self::Clip | Self::T5 | Self::Transformer | Self::ControlNet(_) => true,
        }
    }
}

impl Plan {
    fn new(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Self> {
        let mut plan = Self::default();
        for part in Part::all(checkpoint) {
            let (tensors, dtype) = (part.tensors(checkpoint), options.dtype);
            let mut numbers = BTreeMap::new();
            let (are_stored, repeated) = (part.are_stored(checkpoint, options), part.repeated(options));
            for name in tensors.names().filter(|name| part.has(name)) {
                let mut recipe = tensors.recipe(name, dtype)?;
                let are_codes = options.are_codes(part, name, &recipe);
                if are_codes {
                    recipe.dtype = DType::U8;
                }
                let reading = repeated.reading(name);
                if reading == Reading::Once {
                    plan.bytes += recipe.file_bytes();
                }
                let is_on_host = part == Part::T5 && (name.starts_with(T5_TABLE) || name.contains(T5_BIAS))
                    || are_stored && recipe.shape.len() == 2 && !are_codes;
                if !is_on_host {
                    let recipes = plan.recipes.entry(reading).or_default();
                    let number = recipes.len();
                    numbers.insert(name.to_owned(), Streaming { reading, number, dtype: recipe.dtype });
                    recipes.push(recipe);
                }
            }
            plan.numbers.insert(part, numbers);
        }
        Ok(plan)
    }
}

impl<'a> Loading<'a> {
    /// Through the host's memory.
    fn new(
        checkpoint: &'a Checkpoint,
        device: &Device,
        options: LoadOptions,
        observer: Arc<dyn LoadObserver>,
    ) -> Result<Self> {
        let plan = Plan::new(checkpoint, options)?;
        observer.planned(plan.bytes as u64);
        let (device, started) = (device.clone(), Instant::now());
        let repeated = BTreeMap::new();
        Ok(Self { checkpoint, device, options, observer, stream: None, repeated, plan, started })
    }

    /// Through streams to `destination`. Falls back to the host's memory where they cannot be started.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only CUDA copies asynchronously"))]
    fn through<D: Destination>(mut self, destination: impl Fn(Reading) -> Result<D>) -> Self {
        for (reading, recipes) in std::mem::take(&mut self.plan.recipes) {
            let asked = if reading == Reading::Once { Asked::Once } else { Asked::Repeatedly };
            let started = destination(reading).and_then(|device| WeightStream::start(device, recipes, asked));
            match started {
                Ok(stream) if reading == Reading::Once => self.stream = Some(Arc::new(stream)),
                Ok(stream) => {
                    self.repeated.insert(reading, Arc::new(stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "no memory for reading ahead: weights are loaded one after the other, which is slow");
                }
            }
        }
        self
    }

    /// The autoencoder's decoder.
    pub(crate) fn decoder(&self) -> VarBuilder<'static> {
        self.builder(Part::Decoder)
    }

    /// The autoencoder's encoder.
    pub(crate) fn encoder(&self) -> VarBuilder<'static> {
        self.builder(Part::Encoder)
    }

    /// CLIP.
    pub(crate) fn clip(&self) -> VarBuilder<'static> {
        self.builder(Part::Clip)
    }

    /// T5; its blocks can be asked for repeatedly, also after loading.
    pub(crate) fn t5(&self) -> Tensors {
        self.tensors(Part::T5)
    }

    /// The transformer.
    pub(crate) fn transformer(&self) -> Tensors {
        self.tensors(Part::Transformer)
    }

    /// The ControlNets beside it.
    pub(crate) fn controlnets(&self) -> Vec<ControlNetWeights> {
        let nets = self.checkpoint.controlnets.iter().enumerate().map(|(number, net)| ControlNetWeights {
            name: Arc::clone(&net.name),
            config: net.config.clone(),
            tensors: self.tensors(Part::ControlNet(number)),
        });
        nets.collect()
    }

    fn tensors(&self, part: Part) -> Tensors {
        let are_stored = part.are_stored(self.checkpoint, self.options);
        let streams = self.repeated_of(part).into_values().collect();
        let is_e4m3_kept = self.options.is_e4m3_kept && part == Part::Transformer;
        let coded = is_e4m3_kept.then(|| part.tensors(self.checkpoint).clone());
        Tensors::new(self.builder(part), are_stored.then(|| self.observed(part)), streams, coded)
    }

    fn observed(&self, part: Part) -> Observed {
        Observed {
            tensors: part.tensors(self.checkpoint).clone(),
            observer: Arc::clone(&self.observer),
            repeated: part.repeated(self.options),
        }
    }

    /// The streams of what is read repeatedly of a part.
    fn repeated_of(&self, part: Part) -> BTreeMap<Reading, Arc<dyn TensorStream>> {
        let numbers = self.plan.numbers.get(&part);
        let is_used =
            |reading| numbers.is_some_and(|numbers| numbers.values().any(|streaming| streaming.reading == reading));
        let streams = self.repeated.iter().filter(|(reading, _)| is_used(**reading));
        streams.map(|(reading, stream)| (*reading, Arc::clone(stream))).collect()
    }

    fn builder(&self, part: Part) -> VarBuilder<'static> {
        let streamed = Streamed {
            once: self.stream.as_ref().map(Arc::downgrade),
            repeated: self.repeated_of(part),
            numbers: self.plan.numbers.get(&part).cloned().unwrap_or_default(),
        };
        Weights { observed: self.observed(part), streamed }.builder(self.options.dtype, &self.device)
    }

    /// Waits for the last copies, ends the threads, frees the buffers, and returns bytes and seconds.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn finish(self) -> Result<(usize, f64)> {
        if let Some(stream) = &self.stream {
            // Another order than the plan's costs time, and nothing else.
            tracing::debug!(restarts = stream.restarts(), "the weights were read");
        }
        drop(self.stream);
        self.device.synchronize()?;
        Ok((self.plan.bytes, self.started.elapsed().as_secs_f64()))
    }
}

#[cfg(test)]
mod tests;
