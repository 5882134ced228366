//! A whole checkpoint on its way to a device: what comes in which order, and by which way.
//!
//! To a CUDA device tensors come in one stream through all components, so that reading never waits for the model to ask.
//! Into the machine's memory each is read when it is asked for, by all threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;

use super::Checkpoint;
use super::backend::{CheckedTensors, Streamed, Weights};
use super::recipe::Recipe;
use super::stream::nowhere::Nowhere;
use super::stream::{Asked, BUFFER_BYTES, Destination, TensorStream, WeightStream, readers};
use crate::domain::engine::LoadObserver;

/// T5's table of embeddings, which stays in the machine's memory.
const T5_TABLE: &str = "shared.";
/// What of T5 may come for each prompt only.
const T5_BLOCKS: &str = "encoder.block.";
/// Stands among the blocks, serves all of them, and stays in the machine's memory, too.
const T5_BIAS: &str = "relative_attention_bias";

/// What is loaded, in the order in which the engine asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Decoder,
    Encoder,
    Clip,
    T5,
    Transformer,
}

const PARTS: [Part; 5] = [Part::Decoder, Part::Encoder, Part::Clip, Part::T5, Part::Transformer];

/// How weights are to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoadOptions {
    /// Of all but what encodes images, which is f32.
    pub(crate) dtype: DType,
    /// Whether T5's blocks come to the device for each prompt only.
    pub(crate) is_text_streamed: bool,
}

/// A checkpoint that is being loaded.
pub(crate) struct Loading<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    keeping: LoadOptions,
    observer: Arc<dyn LoadObserver>,
    stream: Option<Arc<dyn TensorStream>>,
    /// T5's blocks, again and again, where they do not stay.
    text: Option<Arc<dyn TensorStream>>,
    plan: Plan,
    started: Instant,
}

/// Which tensors go through which stream.
#[derive(Default)]
struct Plan {
    recipes: Vec<Recipe>,
    numbers: BTreeMap<Part, BTreeMap<String, (usize, DType)>>,
    text_recipes: Vec<Recipe>,
    text_numbers: BTreeMap<String, (usize, DType)>,
    /// What is read while the model is loaded.
    bytes: usize,
}

impl Checkpoint {
    /// Begins to load onto a device. `observer` hears how much there is to read, and then how far it is.
    ///
    /// # Errors
    /// When no thread is to be had for reading.
    pub(crate) fn load_onto(
        &self,
        device: &Device,
        keeping: LoadOptions,
        observer: Arc<dyn LoadObserver>,
    ) -> Result<Loading<'_>> {
        let loading = Loading::new(self, device, keeping, observer)?;
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            return Ok(loading.through(|| super::stream::cuda::CudaMemory(cuda.clone())));
        }
        Ok(loading)
    }

    /// Reads all weights as when they are loaded, and keeps nothing of them; how many bytes that were.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn read_to_nowhere(&self) -> Result<usize> {
        let mut recipes = Vec::new();
        for tensors in [&self.vae, &self.clip, &self.t5, &self.transformer] {
            for name in tensors.names() {
                let mut recipe = tensors.recipe(name, DType::BF16)?;
                // As it stands in the file: what is measured is reading.
                recipe.dtype = recipe.segments[0].dtype;
                recipes.push(recipe);
            }
        }
        let count = recipes.len();
        let bytes = recipes.iter().map(Recipe::file_bytes).sum();
        let stream = WeightStream::start(Nowhere, recipes, Asked::Once)?;
        for number in 0..count {
            stream.bring(number)?;
        }
        Ok(bytes)
    }
}

/// With how many threads weights are read, and how many bytes each reads at one time.
pub(crate) fn reading() -> (usize, usize) {
    (readers(), BUFFER_BYTES)
}

impl Part {
    fn tensors(self, checkpoint: &Checkpoint) -> &CheckedTensors {
        match self {
            Self::Decoder | Self::Encoder => &checkpoint.vae,
            Self::Clip => &checkpoint.clip,
            Self::T5 => &checkpoint.t5,
            Self::Transformer => &checkpoint.transformer,
        }
    }

    fn has(self, name: &str) -> bool {
        match self {
            Self::Decoder => name.starts_with("decoder."),
            Self::Encoder => name.starts_with("encoder."),
            Self::Clip | Self::T5 | Self::Transformer => true,
        }
    }

    fn dtype(self, keeping: LoadOptions) -> DType {
        if self == Self::Encoder { DType::F32 } else { keeping.dtype }
    }
}

impl Plan {
    fn new(checkpoint: &Checkpoint, keeping: LoadOptions) -> Result<Self> {
        let mut plan = Self::default();
        for part in PARTS {
            let (tensors, dtype) = (part.tensors(checkpoint), part.dtype(keeping));
            let mut numbers = BTreeMap::new();
            for name in tensors.names().filter(|name| part.has(name)) {
                let recipe = tensors.recipe(name, dtype)?;
                let is_on_host = part == Part::T5 && (name.starts_with(T5_TABLE) || name.contains(T5_BIAS));
                if part == Part::T5 && keeping.is_text_streamed && name.starts_with(T5_BLOCKS) {
                    if !is_on_host {
                        plan.text_numbers.insert(name.to_owned(), (plan.text_recipes.len(), dtype));
                        plan.text_recipes.push(recipe);
                    }
                    continue;
                }
                plan.bytes += recipe.file_bytes();
                if is_on_host {
                    continue;
                }
                numbers.insert(name.to_owned(), (plan.recipes.len(), dtype));
                plan.recipes.push(recipe);
            }
            plan.numbers.insert(part, numbers);
        }
        Ok(plan)
    }
}

impl<'a> Loading<'a> {
    /// Through the machine's memory.
    fn new(
        checkpoint: &'a Checkpoint,
        device: &Device,
        keeping: LoadOptions,
        observer: Arc<dyn LoadObserver>,
    ) -> Result<Self> {
        let plan = Plan::new(checkpoint, keeping)?;
        observer.planned(plan.bytes as u64);
        let (device, started) = (device.clone(), Instant::now());
        Ok(Self { checkpoint, device, keeping, observer, stream: None, text: None, plan, started })
    }

    /// Through streams to what `destination` makes. Where none can be had it stays with the machine's memory.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only CUDA copies by itself"))]
    fn through<D: Destination>(mut self, destination: impl Fn() -> D) -> Self {
        let start = |recipes: Vec<Recipe>, asked| -> Option<Arc<dyn TensorStream>> {
            if recipes.is_empty() {
                return None;
            }
            match WeightStream::start(destination(), recipes, asked) {
                Ok(stream) => Some(Arc::new(stream)),
                Err(error) => {
                    tracing::warn!(%error, "weights are loaded one after the other, which is slow");
                    None
                }
            }
        };
        self.stream = start(std::mem::take(&mut self.plan.recipes), Asked::Once);
        self.text = start(std::mem::take(&mut self.plan.text_recipes), Asked::Repeatedly);
        self
    }

    /// The autoencoder's way back.
    pub(crate) fn decoder(&self) -> VarBuilder<'static> {
        self.builder(Part::Decoder)
    }

    /// The autoencoder's way in, f32.
    pub(crate) fn encoder(&self) -> VarBuilder<'static> {
        self.builder(Part::Encoder)
    }

    /// CLIP.
    pub(crate) fn clip(&self) -> VarBuilder<'static> {
        self.builder(Part::Clip)
    }

    /// T5; its blocks can be asked for again and again, also when all else has been loaded.
    pub(crate) fn t5(&self) -> VarBuilder<'static> {
        self.builder(Part::T5)
    }

    /// The transformer.
    pub(crate) fn transformer(&self) -> VarBuilder<'static> {
        self.builder(Part::Transformer)
    }

    fn builder(&self, part: Part) -> VarBuilder<'static> {
        let is_text_streamed = part == Part::T5 && self.keeping.is_text_streamed;
        let streamed = if is_text_streamed {
            self.text.as_ref().map(|stream| (stream, &self.plan.text_numbers))
        } else {
            self.stream.as_ref().zip(self.plan.numbers.get(&part))
        };
        let weights = Weights {
            tensors: part.tensors(self.checkpoint).clone(),
            streamed: streamed
                .map(|(stream, numbers)| Streamed { stream: Arc::clone(stream), numbers: numbers.clone() }),
            observer: Arc::clone(&self.observer),
            untold: is_text_streamed.then_some(T5_BLOCKS),
        };
        weights.builder(part.dtype(self.keeping), &self.device)
    }

    /// Waits until all of it is there, and lets go of threads and buffers; bytes and seconds.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn finish(self) -> Result<(usize, f64)> {
        if let Some(stream) = &self.stream {
            // An order that is not kept costs time, and nothing else.
            tracing::debug!(restarts = stream.restarts(), "the weights have been read");
        }
        drop(self.stream);
        self.device.synchronize()?;
        Ok((self.plan.bytes, self.started.elapsed().as_secs_f64()))
    }
}

#[cfg(test)]
mod tests;
