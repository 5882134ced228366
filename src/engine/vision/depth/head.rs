//! The head of Depth-Anything: the backbone's states to a map of inverse depth.
//!
//! Follows `DepthAnythingNeck` and `DepthAnythingDepthEstimationHead` in transformers' `modeling_depth_anything.py`.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Module as _};

use super::config::DepthConfig;
use super::names::STAGES;
use crate::engine::linear::Linear;
use crate::engine::ops::convolution::Convolution;
use crate::engine::vision::resize::{Filter, Size, resized};
use crate::engine::vision::weights::Reader;

/// The head.
pub(super) struct Head {
    stages: Vec<Stage>,
    first: Convolution,
    second: Convolution,
    last: Convolution,
    patch: usize,
}

/// What becomes of one of the backbone's states.
struct Stage {
    project: Linear,
    resize: Resize,
    reduce: Convolution,
    /// Of the stage's own map, before it is added to that of the stages behind it. The last stage has nothing behind it.
    skip: Residual,
    refine: Residual,
    out: Convolution,
}

/// How a stage's map gets its size.
enum Resize {
    /// By a transposed convolution whose stride is its kernel's side: a linear layer over the pixels.
    Enlarge {
        by: usize,
        spread: Linear,
    },
    Keep,
    Halve(Conv2d),
}

/// Two convolutions, each behind a ReLU, on a residual.
struct Residual {
    first: Convolution,
    second: Convolution,
}

fn convolution(reader: Reader, module: &str) -> Result<Convolution> {
    Convolution::new(&reader.tensor(&format!("{module}.weight"))?, &reader.tensor(&format!("{module}.bias"))?)
}

impl Residual {
    fn load(reader: Reader, module: &str) -> Result<Self> {
        let of = |part: &str| convolution(reader, &format!("{module}.{part}"));
        Ok(Self { first: of("first")?, second: of("second")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.first.forward(&x.relu()?)?.relu()?;
        self.second.forward_onto(&hidden, x)
    }
}

impl Resize {
    /// That of a stage: the first two enlarge, the last one halves.
    fn load(stage: usize, reader: Reader) -> Result<Self> {
        let module = format!("stages.{stage}.resize");
        let tensors = || -> Result<(Tensor, Tensor)> {
            Ok((reader.tensor(&format!("{module}.weight"))?, reader.tensor(&format!("{module}.bias"))?))
        };
        match stage {
            0 | 1 => {
                let (weight, bias) = tensors()?;
                let (inputs, outputs, by, _) = weight.dims4()?;
                // Of each output channel all pixels that one becomes.
                let spread = weight.reshape((inputs, outputs * by * by))?.t()?.contiguous()?;
                let bias = bias.reshape((outputs, 1))?.broadcast_as((outputs, by * by))?.flatten_all()?;
                Ok(Self::Enlarge { by, spread: Linear::new(spread, Some(bias)) })
            }
            2 => Ok(Self::Keep),
            _ => {
                let (weight, bias) = tensors()?;
                let config = Conv2dConfig { padding: 1, stride: 2, ..Conv2dConfig::default() };
                Ok(Self::Halve(Conv2d::new(weight, Some(bias), config)))
            }
        }
    }

    /// `rows [height × width, channels]` -> `[1, channels, height, width]`, resized.
    fn forward(&self, rows: &Tensor, size: Size) -> Result<Tensor> {
        let Size { height, width } = size;
        match self {
            Self::Enlarge { by, spread } => {
                let spread = spread.forward(rows)?;
                let channels = spread.dim(1)? / (by * by);
                let pixels = spread.reshape((height, width, channels, *by, *by))?.permute((2, 0, 3, 1, 4))?;
                pixels.contiguous()?.reshape((1, channels, height * by, width * by))
            }
            Self::Keep => in_planes(rows, size),
            Self::Halve(convolution) => convolution.forward(&in_planes(rows, size)?),
        }
    }
}

/// Rows of pixels as an image.
fn in_planes(rows: &Tensor, Size { height, width }: Size) -> Result<Tensor> {
    rows.t()?.contiguous()?.reshape((1, rows.dim(1)?, height, width))
}

impl Stage {
    fn load(stage: usize, reader: Reader) -> Result<Self> {
        let name = |module: &str| format!("stages.{stage}.{module}");
        let weight = reader.tensor(&name("reduce.weight"))?;
        let no_bias = Tensor::zeros(weight.dim(0)?, DType::F32, &Device::Cpu)?;
        Ok(Self {
            project: reader.linear(&name("project"))?,
            resize: Resize::load(stage, reader)?,
            reduce: Convolution::new(&weight, &no_bias)?,
            skip: Residual::load(reader, &name("skip"))?,
            refine: Residual::load(reader, &name("refine"))?,
            out: convolution(reader, &name("out"))?,
        })
    }

    /// The stage's own map, `[1, fusion, height, width]`, of a state `[patches, width]` of so many patches.
    fn own(&self, state: &Tensor, patches: Size) -> Result<Tensor> {
        self.reduce.forward(&self.resize.forward(&self.project.forward(state)?, patches)?)
    }

    /// The map of this stage and those `behind` it, enlarged to `target`.
    fn fused(&self, own: &Tensor, behind: Option<&Tensor>, target: Size) -> Result<Tensor> {
        let joined = match behind {
            Some(behind) => (behind + self.skip.forward(own)?)?,
            None => own.clone(),
        };
        self.out.forward(&enlarged(&self.refine.forward(&joined)?, target)?)
    }
}

/// An image `[1, channels, height, width]` in another size; its corners stay where they are.
fn enlarged(image: &Tensor, target: Size) -> Result<Tensor> {
    let size = size_of(image)?;
    let channels = image.dim(1)?;
    let values = image.flatten_all()?.to_vec1::<f32>()?;
    let values = resized(&values, size, target, Filter::Corners);
    Tensor::from_vec(values, (1, channels, target.height, target.width), &Device::Cpu)
}

fn size_of(image: &Tensor) -> Result<Size> {
    let (_, _, height, width) = image.dims4()?;
    Ok(Size { height, width })
}

impl Head {
    /// Reads the weights.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn load(config: &DepthConfig, reader: Reader) -> Result<Self> {
        Ok(Self {
            stages: (0..STAGES).map(|stage| Stage::load(stage, reader)).collect::<Result<_>>()?,
            first: convolution(reader, "head.first")?,
            second: convolution(reader, "head.second")?,
            last: convolution(reader, "head.last")?,
            patch: config.patch,
        })
    }

    /// The states `[patches, width]` of an image of size `seen` -> its inverse depth `[1, 1, height, width]`, not negative.
    ///
    /// # Errors
    /// When the memory does not suffice.
    pub(super) fn forward(&self, states: &[Tensor], seen: Size) -> Result<Tensor> {
        let patches = Size { height: seen.height / self.patch, width: seen.width / self.patch };
        let own = self.stages.iter().zip(states).map(|(stage, state)| stage.own(state, patches));
        let own: Vec<Tensor> = own.collect::<Result<_>>()?;
        let mut fused: Option<Tensor> = None;
        for (index, (stage, map)) in self.stages.iter().zip(&own).enumerate().rev() {
            // In the size of the stage before it; the first one doubles its own.
            let target = if let Some(before) = index.checked_sub(1) {
                size_of(&own[before])?
            } else {
                let Size { height, width } = size_of(map)?;
                Size { height: 2 * height, width: 2 * width }
            };
            fused = Some(stage.fused(map, fused.as_ref(), target)?);
        }
        let Some(fused) = fused else { candle_core::bail!("the head has no stages") };
        let hidden = enlarged(&self.first.forward(&fused)?, seen)?;
        self.last.forward(&self.second.forward(&hidden)?.relu()?)?.relu()
    }
}
