//! The FLUX transformer over a packed token stream, which batches images of any sizes, at any steps.
//!
//! Follows `Flux.forward` of the reference implementation (black-forest-labs/flux, `model.py`), whose tensor names it
//! uses. Where that has a batch dimension, here is one stream of tokens, cut into sequences: every linear layer runs
//! once over the whole stream, modulation is per sequence, and attention stays inside each sequence.

mod block;
mod blocks;
mod controlnet;
mod embedders;
mod feed_forward;
mod first_block;
mod head_norm;
mod modulation;
mod remembered;
pub(in crate::engine) mod replay;
mod residuals;
mod stream;

use std::ops::{ControlFlow, Range};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::config::TransformerConfig;
use super::positions;
use crate::domain::conditioning::Conditioning;
use crate::domain::precision::Precision;
use crate::engine::adapted::{AdapterSet, Changes, joined_inputs_of};
use crate::engine::checkpoint::{Matrix, StreamedBlocks, Tensors};
use crate::engine::linear::Linear;
use crate::engine::ops::modulation::modulated_layer_norm;
use crate::engine::ops::rope::Rotary;

use block::{DoubleBlock, SingleBlock};
use blocks::Blocks;
pub(crate) use controlnet::{ControlNet, Controlled, NetPrompt};
use embedders::Embedders;
use first_block::Course;
use modulation::{FINAL_PARTS, Modulations, ModulationsLoader};
pub(crate) use remembered::{CacheOutcome, CacheUse, Prediction, Remembered};
pub(crate) use residuals::Residuals;
use stream::Stream;
pub(crate) use stream::{Conditioned, Sequence};

/// The transformer's weights.
pub(crate) struct Transformer {
    config: TransformerConfig,
    img_in: Linear,
    /// Where `img_in` reads latents alone: a layer of zeros for what is joined to them, which adapters change.
    joined_in: Option<Linear>,
    embedders: Embedders,
    blocks: Blocks<Block>,
    modulations: Modulations,
    /// The first part of the final layer's modulation.
    final_modulation: usize,
    final_linear: Linear,
    device: Device,
    dtype: DType,
}

/// Of either kind.
enum Block {
    Double(Box<DoubleBlock>),
    Single(Box<SingleBlock>),
}

impl Block {
    /// The block of a number: those with two streams come first. Its modulation goes into `modulations`.
    fn load(
        config: &TransformerConfig,
        number: usize,
        precision: Precision,
        modulations: &mut ModulationsLoader,
        vb: &Tensors,
    ) -> Result<Self> {
        match number.checked_sub(config.num_layers) {
            None => {
                let vb = vb.pp(format!("double_blocks.{number}"));
                DoubleBlock::load(config, precision, modulations, &vb).map(|block| Self::Double(Box::new(block)))
            }
            Some(index) => {
                let vb = vb.pp(format!("single_blocks.{index}"));
                SingleBlock::load(config, precision, modulations, &vb).map(|block| Self::Single(Box::new(block)))
            }
        }
    }
}

/// The token streams between two blocks.
enum Tokens {
    Apart { text: Tensor, image: Tensor },
    Joint(Tensor),
}

impl Tokens {
    fn joint(self, stream: &Stream) -> Result<Tensor> {
        match self {
            Self::Apart { text, image } => stream.join(&text, &image),
            Self::Joint(joint) => Ok(joint),
        }
    }

    /// Text and image tokens.
    fn apart(self, stream: &Stream) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Apart { text, image } => Ok((text, image)),
            Self::Joint(joint) => stream.split(&joint),
        }
    }

    /// What they are behind a block.
    fn through(self, block: &Block, stream: &Stream) -> Result<Self> {
        match (block, self) {
            (Block::Double(block), Self::Apart { text, image }) => {
                let (text, image) = block.forward(&text, &image, stream)?;
                Ok(Self::Apart { text, image })
            }
            (Block::Double(_), Self::Joint(_)) => bail!("a block with two streams behind one with a joint stream"),
            (Block::Single(block), tokens) => block.forward(&tokens.joint(stream)?, stream).map(Self::Joint),
        }
    }

    /// Those of images.
    fn image(&self, stream: &Stream) -> Result<Tensor> {
        match self {
            Self::Apart { image, .. } => Ok(image.clone()),
            Self::Joint(joint) => Ok(stream.split(joint)?.1),
        }
    }

    /// Adds what ControlNets give behind a block, by its number, in place: the rows of images without any keep their bits. Nothing
    /// else may hold the tokens. `blocks` are the transformer's, of both kinds.
    fn add_residuals(&self, number: usize, blocks: [usize; 2], stream: &Stream) -> Result<()> {
        for (sequence, residuals) in stream.residuals.iter().enumerate() {
            let Some(residual) = residuals.and_then(|residuals| residuals.behind(number, blocks)) else { continue };
            let (tokens, start) = match self {
                Self::Apart { image, .. } => (image, stream.image_segments.range(sequence).start),
                Self::Joint(joint) => {
                    let text = stream.text_segments.range(sequence).len();
                    (joint, stream.joint_segments.range(sequence).start + text)
                }
            };
            let sum = (tokens.narrow(0, start, residual.dim(0)?)? + residual)?;
            tokens.slice_set(&sum, 0, start)?;
        }
        Ok(())
    }
}

/// A layer of zeros for channels that are joined to the latents, as many as these have.
fn joined_in(config: &TransformerConfig, vb: &Tensors) -> Result<Linear> {
    let (hidden, inputs) = (config.hidden_size(), config.latent_width());
    let weight = Matrix::Full(Tensor::zeros((hidden, inputs), vb.dtype(), vb.device())?);
    Linear::of(weight, None, [(joined_inputs_of("img_in"), hidden)], vb.device())
}

impl Transformer {
    /// Loads the weights; those of the blocks' linear layers are kept in `precision`. Blocks in `streamed` are read for each
    /// step, and the modulations for several steps.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(crate) fn load(
        config: &TransformerConfig,
        vb: &Tensors,
        precision: Precision,
        streamed: Option<StreamedBlocks>,
    ) -> Result<Self> {
        let hidden = config.hidden_size();
        let (img_in, embedders) = Embedders::load(config, vb)?;
        let joined_in =
            (config.conditioning() == Some(Conditioning::Prompt)).then(|| joined_in(config, vb)).transpose()?;
        let count = config.num_layers + config.num_single_layers;
        let (mut modulations, blocks) = match streamed {
            None => {
                let mut modulations = ModulationsLoader::new(config, vb)?;
                let load = |number| Block::load(config, number, precision, &mut modulations, vb);
                let blocks = Blocks::kept((0..count).map(load).collect::<Result<_>>()?);
                (modulations, blocks)
            }
            Some(streamed) => {
                let (config, tensors) = (config.clone(), vb.clone());
                let behind_all = ModulationsLoader::counting(&config, count);
                let read = move |number: usize| {
                    let mut modulations = ModulationsLoader::counting(&config, number);
                    Block::load(&config, number, precision, &mut modulations, &tensors)
                };
                (behind_all, Blocks::read_by(Box::new(read), count, |number| streamed.has(number), vb.clone())?)
            }
        };
        Ok(Self {
            img_in,
            joined_in,
            embedders,
            blocks,
            final_modulation: modulations.load(FINAL_PARTS, &vb.pp("final_layer.adaLN_modulation.1"))?,
            modulations: modulations.finish(config, vb)?,
            final_linear: Linear::load(hidden, config.latent_width(), &vb.pp("final_layer.linear"))?,
            device: vb.device().clone(),
            dtype: vb.dtype(),
            config: config.clone(),
        })
    }

    /// The length of a sequence at which attention costs as much as everything else, in tokens. Both kinds of blocks have
    /// 24 × hidden² floating-point operations a token in their linear layers (an MLP is four times as wide as the stream),
    /// and 4 × hidden for each pair of tokens in attention.
    pub(crate) fn attention_balance_tokens(&self) -> usize {
        6 * self.config.hidden_size()
    }

    /// Bytes that the first-block cache of a sequence with so many image tokens keeps between two steps.
    pub(crate) fn cache_bytes(&self, image_tokens: usize) -> usize {
        2 * image_tokens * self.config.hidden_size() * self.dtype.size_in_bytes()
    }

    /// T5's sequence `[tokens, joint_attention_dim]` as the blocks take it, `[tokens, hidden]`. The same in every step.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn embed_text(&self, sequence: &Tensor, adapters: &AdapterSet) -> Result<Tensor> {
        self.embedders.text(sequence, adapters)
    }

    /// The part of the modulation's input that is the same in every step: guidance and CLIP's pooled vector
    /// `[1, pooled_projection_dim]` -> `[1, hidden]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn embed_condition(&self, pooled: &Tensor, guidance: f64, adapters: &AdapterSet) -> Result<Tensor> {
        self.embedders.condition(pooled, guidance, adapters)
    }

    /// The rotary tables of an image of `rows × columns` tokens behind its text, and of reference images of so many rows and columns
    /// behind it.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn rotary(&self, text_tokens: usize, image: [usize; 2], references: &[[usize; 2]]) -> Result<Rotary> {
        positions::tables(image, references, self.config.axes_dims_rope, &self.device)?.after_text(text_tokens)
    }

    /// Predicts the velocity (noise minus image) of every sequence: `[image tokens, latent width]` each, f32, in the
    /// order of `sequences`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn velocities(&self, sequences: &[Sequence]) -> Result<Vec<Tensor>> {
        Ok(self.predictions(sequences)?.into_iter().map(|prediction| prediction.velocity).collect())
    }

    /// [`Self::velocities`], with what the caches of sequences are to remember.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn predictions(&self, sequences: &[Sequence]) -> Result<Vec<Prediction>> {
        let stream = self.stream(sequences)?;
        let texts: Vec<&Tensor> = sequences.iter().map(|sequence| sequence.text).collect();
        let image = self.embed_image(sequences, &stream)?;
        let mut course = Course::new(sequences, &image);
        let mut tokens = Some(Tokens::Apart { text: Tensor::cat(&texts, 0)?, image });
        let (mut number, blocks) = (0, [self.config.num_layers, self.config.num_single_layers]);
        self.blocks.each_until(|block| {
            // Taken: a block with a joint stream must not hold those that it is made of, too.
            tokens = tokens.take().map(|before| before.through(block, course.stream(&stream))).transpose()?;
            if let Some(tokens) = &tokens {
                tokens.add_residuals(number, blocks, course.stream(&stream))?;
            }
            number += 1;
            if course.is_to_be_split() {
                let apart = tokens.take().map(|tokens| tokens.apart(&stream)).transpose()?;
                let rest = apart.map(|apart| course.split(apart, &stream)).transpose()?.flatten();
                tokens = rest.map(|(text, image)| Tokens::Apart { text, image });
            }
            Ok(if tokens.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        let image = tokens.map(|tokens| tokens.apart(course.stream(&stream))).transpose()?.map(|(_, image)| image);
        let (image, outcomes) = course.finish(image, &stream)?;
        let (shift, scale) =
            (stream.modulated.part(self.final_modulation)?, stream.modulated.part(self.final_modulation + 1)?);
        let image = modulated_layer_norm(&image, &shift, &scale, &stream.image_segments)?;
        let out = self.final_linear.changed(&image, &stream.image_changes)?.to_dtype(DType::F32)?;
        // Nothing is predicted of the reference images behind an image.
        let predicted = stream.image_segments.ranges().zip(sequences);
        let velocity = |(range, sequence): (Range<usize>, &Sequence)| {
            out.narrow(0, range.start, sequence.latents.dim(0)?)?.contiguous()
        };
        Prediction::each(predicted.map(velocity), outcomes)
    }

    /// The image tokens of all sequences as the blocks take them, each with what is joined to it, and with its reference images
    /// behind it: `[tokens, hidden]`.
    fn embed_image(&self, sequences: &[Sequence], stream: &Stream) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(sequences.len());
        for Sequence { latents, joined, references, .. } in sequences {
            rows.push(match joined.filter(|_| self.joined_in.is_none()) {
                Some(joined) => Tensor::cat(&[*latents, joined], 1)?.to_dtype(self.dtype)?,
                None => latents.to_dtype(self.dtype)?,
            });
            if let Some(references) = references {
                rows.push(references.to_dtype(self.dtype)?);
            }
        }
        let image = self.img_in.changed(&Tensor::cat(&rows, 0)?, &stream.image_changes)?;
        match &self.joined_in {
            Some(joined_in) if sequences.iter().any(|sequence| sequence.joined.is_some()) => {
                self.with_joined(&image, joined_in, sequences, stream)
            }
            _ => Ok(image),
        }
    }

    /// Image tokens with what adapters make of the channels that are joined to the latents of their images.
    fn with_joined(
        &self,
        image: &Tensor,
        joined_in: &Linear,
        sequences: &[Sequence],
        stream: &Stream,
    ) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(sequences.len());
        for (range, sequence) in stream.image_segments.ranges().zip(sequences) {
            let own = image.narrow(0, range.start, range.len())?;
            let Some(joined) = sequence.joined else {
                rows.push(own);
                continue;
            };
            let count = joined.dim(0)?;
            let changes = Changes::of([(0..count, sequence.adapters)]);
            let added = joined_in.changed(&joined.to_dtype(self.dtype)?, &changes)?;
            rows.push((own.narrow(0, 0, count)? + added)?);
            if count < range.len() {
                rows.push(own.narrow(0, count, range.len() - count)?);
            }
        }
        Tensor::cat(&rows, 0)
    }

    fn stream<'a>(&self, sequences: &[Sequence<'a>]) -> Result<Stream<'a>> {
        let known: Option<Vec<&Tensor>> = sequences.iter().map(|sequence| sequence.modulation).collect();
        let rows = if let Some(rows) = known {
            Tensor::cat(&rows, 0)?
        } else {
            self.modulation_rows(&sequences.iter().map(Sequence::conditioned).collect::<Vec<_>>())?
        };
        Stream::new(sequences, self.modulations.of_rows(rows))
    }

    /// The modulations of steps, `[1, parts × hidden]` for each noise level and condition. All weights are read once,
    /// however many steps there are.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn modulations(&self, steps: &[Conditioned]) -> Result<Vec<Tensor>> {
        let rows = self.modulation_rows(steps)?;
        (0..steps.len()).map(|row| rows.narrow(0, row, 1)).collect()
    }

    fn modulation_rows(&self, steps: &[Conditioned]) -> Result<Tensor> {
        let changes = Changes::of(steps.iter().enumerate().map(|(row, step)| (row..row + 1, step.adapters)));
        self.modulations.forward(&self.embedders.steps(steps, &changes)?, &changes)
    }
}
