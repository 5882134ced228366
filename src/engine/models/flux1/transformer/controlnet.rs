//! A ControlNet: blocks of its own, over a packed stream of the noisy latents and a control image, whose results are added behind
//! the transformer's blocks.
//!
//! Follows `FluxControlNetModel.forward` of diffusers (`controlnet_flux.py`).

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::super::positions;
use super::embedders::Embedders;
use super::modulation::{Modulations, ModulationsLoader};
use super::residuals::Residuals;
use super::stream::{Conditioned, Sequence, Stream};
use super::{Block, Tokens};
use crate::domain::conditioning::ControlMode;
use crate::domain::precision::Precision;
use crate::engine::adapted::{AdapterSet, Changes};
use crate::engine::checkpoint::ControlNetWeights;
use crate::engine::linear::Linear;
use crate::engine::models::flux1::config::controlnet::ControlNetConfig;
use crate::engine::ops::rope::Rotary;

/// The weights of a ControlNet. Adapters do not change it.
pub(crate) struct ControlNet {
    /// The name that requests use.
    pub(crate) name: Arc<str>,
    pub(crate) config: ControlNetConfig,
    img_in: Linear,
    /// Of the control image's tokens.
    control_in: Linear,
    embedders: Embedders,
    /// Of a union, `[modes, hidden]`.
    modes: Option<Tensor>,
    blocks: Vec<Block>,
    modulations: Modulations,
    /// What each block's image tokens go through; zero when training began.
    outputs: Vec<Linear>,
    device: Device,
    dtype: DType,
}

/// A prompt as a net takes it, in every step.
pub(crate) struct NetPrompt {
    /// `[text tokens, hidden]`, with the mode's token before them.
    text: Tensor,
    /// `[1, hidden]`
    condition: Tensor,
    /// Of the text and image tokens.
    rotary: Rotary,
}

/// A control image in one step.
#[derive(Clone, Copy)]
pub(crate) struct Controlled<'a> {
    /// Noisy latents as packed tokens, `[image tokens, in_channels]`, f32.
    pub(crate) latents: &'a Tensor,
    /// The latents of the control image, as those.
    pub(crate) control: &'a Tensor,
    pub(crate) prompt: &'a NetPrompt,
    /// Noise level, 1 down to 0.
    pub(crate) sigma: f32,
    /// What the residuals are multiplied by.
    pub(crate) scale: f64,
    /// How many residuals of each kind are wanted.
    pub(crate) wanted: [usize; 2],
}

impl ControlNet {
    /// Loads the weights; those of linear layers in `precision`, if it quantizes nothing.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(crate) fn load(weights: &ControlNetWeights, precision: Precision) -> Result<Self> {
        let precision = if precision.quantizes() { Precision::Full } else { precision };
        let ControlNetWeights { name, config, tensors } = weights;
        let (trunk, [double, single]) = (&config.trunk, config.blocks());
        let hidden = trunk.hidden_size();
        let (img_in, embedders) = Embedders::load(trunk, tensors)?;
        let mut modulations = ModulationsLoader::without_final_layer(trunk, tensors)?;
        let load = |number| Block::load(trunk, number, precision, &mut modulations, tensors);
        let blocks: Vec<Block> = (0..double + single).map(load).collect::<Result<_>>()?;
        let control_in = Linear::load(trunk.in_channels, hidden, &tensors.pp("controlnet_x_embedder"))?;
        let mode_rows = |modes: u32| tensors.pp("controlnet_mode_embedder").get((modes as usize, hidden), "weight");
        let modes = config.modes.map(mode_rows).transpose()?;
        let names = (0..double).map(|index| format!("controlnet_blocks.{index}"));
        let names = names.chain((0..single).map(|index| format!("controlnet_single_blocks.{index}")));
        Ok(Self {
            name: Arc::clone(name),
            config: config.clone(),
            img_in,
            control_in,
            embedders,
            modes,
            blocks,
            modulations: modulations.finish(trunk, tensors)?,
            outputs: names
                .map(|name| Linear::load_in(precision, hidden, hidden, &tensors.pp(name)))
                .collect::<Result<_>>()?,
            device: tensors.device().clone(),
            dtype: tensors.dtype(),
        })
    }

    /// Why a control image cannot have this mode, if it cannot.
    pub(crate) fn mode_error(&self, mode: Option<ControlMode>) -> Option<String> {
        let name = &self.name;
        match (mode, self.config.modes) {
            (Some(ControlMode(mode)), Some(modes)) if mode >= modes => {
                Some(format!("the ControlNet `{name}` has modes from 0 to {}, not {mode}", modes.saturating_sub(1)))
            }
            (None, Some(_)) => Some(format!("the ControlNet `{name}` needs the kind of the control image, its mode")),
            (Some(_), None) => Some(format!("the ControlNet `{name}` has no modes")),
            _ => None,
        }
    }

    /// A prompt and a mode as it takes them for images of `rows × columns` tokens: T5's sequence `[tokens, joint_attention_dim]`
    /// and CLIP's pooled vector `[1, pooled_projection_dim]`. The mode is one that it has.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn prompt(
        &self,
        (sequence, pooled): (&Tensor, &Tensor),
        guidance: f64,
        mode: Option<ControlMode>,
        (rows, columns): (usize, usize),
    ) -> Result<NetPrompt> {
        let none = AdapterSet::default();
        let text = self.embedders.text(sequence, &none)?;
        let text = match (&self.modes, mode) {
            (Some(modes), Some(ControlMode(mode))) => Tensor::cat(&[&modes.narrow(0, mode as usize, 1)?, &text], 0)?,
            (None, None) => text,
            _ => bail!("a control image has a mode and the net none, or the other way round"),
        };
        let condition = self.embedders.condition(pooled, guidance, &none)?;
        let image = positions::tables([rows, columns], &[], self.config.trunk.axes_dims_rope, &self.device)?;
        // The mode's token stands where text does.
        let rotary = image.after_text(text.dim(0)?)?;
        Ok(NetPrompt { text, condition, rotary })
    }

    /// What is added of each control image, in their order, all computed as one batch.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn residuals(&self, controlled: &[Controlled]) -> Result<Vec<Residuals>> {
        let none = AdapterSet::default();
        let sequences: Vec<Sequence> = controlled.iter().map(|part| part.sequence(&none)).collect();
        let stream = self.stream(&sequences)?;
        let image = self.img_in.forward(&self.packed(controlled.iter().map(|part| part.latents))?)?;
        let control = self.control_in.forward(&self.packed(controlled.iter().map(|part| part.control))?)?;
        let texts: Vec<&Tensor> = sequences.iter().map(|sequence| sequence.text).collect();
        let mut tokens = Tokens::Apart { text: Tensor::cat(&texts, 0)?, image: (image + control)? };
        let double = self.config.blocks()[0];
        let mut residuals: Vec<[Vec<Tensor>; 2]> = controlled.iter().map(|_| [Vec::new(), Vec::new()]).collect();
        for (number, (block, output)) in self.blocks.iter().zip(&self.outputs).enumerate() {
            tokens = tokens.through(block, &stream)?;
            let kind = usize::from(number >= double);
            let is_wanted = |of_one: &[Vec<Tensor>; 2], part: &Controlled| of_one[kind].len() < part.wanted[kind];
            if !residuals.iter().zip(controlled).any(|(of_one, part)| is_wanted(of_one, part)) {
                continue;
            }
            let out = output.forward(&tokens.image(&stream)?)?;
            for ((of_one, part), rows) in residuals.iter_mut().zip(controlled).zip(stream.image_segments.ranges()) {
                if is_wanted(of_one, part) {
                    of_one[kind].push((out.narrow(0, rows.start, rows.len())? * part.scale)?);
                }
            }
        }
        Ok(residuals.into_iter().map(|[double, single]| Residuals::new(double, single)).collect())
    }

    fn stream<'a>(&self, sequences: &[Sequence<'a>]) -> Result<Stream<'a>> {
        let steps: Vec<Conditioned> = sequences.iter().map(Sequence::conditioned).collect();
        let changes = Changes::default();
        let rows = self.modulations.forward(&self.embedders.steps(&steps, &changes)?, &changes)?;
        Stream::new(sequences, self.modulations.of_rows(rows))
    }

    /// Tokens one below the other, in the type of the computation.
    fn packed<'a>(&self, parts: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
        let parts: Vec<Tensor> = parts.map(|part| part.to_dtype(self.dtype)).collect::<Result<_>>()?;
        Tensor::cat(&parts, 0)
    }
}

impl Controlled<'_> {
    /// Its sequence in the net's stream, without adapters.
    fn sequence<'s>(&'s self, none: &'s AdapterSet) -> Sequence<'s> {
        let NetPrompt { text, condition, rotary } = self.prompt;
        Sequence {
            latents: self.latents,
            joined: None,
            references: None,
            text,
            condition,
            modulation: None,
            rotary,
            sigma: self.sigma,
            adapters: none,
            cache: None,
            residuals: None,
        }
    }
}
