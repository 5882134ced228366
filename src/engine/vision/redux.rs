//! FLUX.1-Redux: an image as rows behind those of a prompt.
//!
//! Follows `ReduxImageEncoder` in diffusers' `pipelines/flux/modeling_flux.py`. Its files are the published folder, whose two
//! models are `image_encoder/` and `image_embedder/`; or the single files `sigclip_vision_patch14_384.safetensors` and
//! `flux1-redux-dev.safetensors` in place of either.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};

use super::json;
use super::siglip::{Siglip, SiglipConfig};
use super::unusable;
use super::weights::{Wanted, Weights};
use crate::domain::conditioning::StyleCard;
use crate::domain::image::RgbImage;
use crate::engine::checkpoint::{CheckpointError, Problem, TensorFile};
use crate::engine::linear::Linear;
use crate::engine::ops::activation::silu;

/// The image encoder's files.
const ENCODER: &str = "image_encoder/model.safetensors";
const ENCODER_CONFIG: &str = "image_encoder/config.json";
/// The same model in one file, as other tools have it.
const ENCODER_FILE: &str = "sigclip_vision_patch14_384.safetensors";

/// The embedder's files, of which the first that is there is read.
const EMBEDDERS: [&str; 2] = ["image_embedder/diffusion_pytorch_model.safetensors", "flux1-redux-dev.safetensors"];

/// The embedder widens what it reads to so many times its output.
const WIDENING: usize = 3;

/// The files of FLUX.1-Redux, opened and checked.
pub(super) struct ReduxFiles {
    config: SiglipConfig,
    encoder: Weights,
    embedder: Weights,
}

/// Which file is the image encoder, and its configuration.
///
/// # Errors
/// With what is missing, or wrong with the configuration.
fn encoder_of(folder: &Path) -> std::result::Result<(SiglipConfig, PathBuf), Problem> {
    let (config_path, file) = (folder.join(ENCODER_CONFIG), folder.join(ENCODER_FILE));
    let (config, weights) = if config_path.is_file() || folder.join(ENCODER).is_file() {
        (json::read::<SiglipConfig>(&config_path)?, folder.join(ENCODER))
    } else if file.is_file() {
        (SiglipConfig::so400m(), file)
    } else {
        let hint = format!(", and so is {ENCODER_FILE}: FLUX.1-Redux needs its image encoder beside it");
        return Err(Problem::MissingFile { path: folder.join(ENCODER).display().to_string(), hint });
    };
    match config.fault() {
        Some(fault) => Err(Problem::unreadable(config_path.display().to_string(), fault)),
        None => Ok((config, weights)),
    }
}

/// What requests must know of FLUX.1-Redux in a folder.
///
/// # Errors
/// When there is no image encoder, or its configuration cannot be used.
pub(super) fn card(folder: &Path) -> std::result::Result<StyleCard, CheckpointError> {
    let (config, _) = encoder_of(folder).map_err(|problem| unusable(folder, vec![problem]))?;
    // A side has at most 4096 pixels.
    Ok(StyleCard { side: config.side() as u32, tokens: config.tokens() })
}

impl ReduxFiles {
    /// Opens the files in a folder, for a transformer whose text embeddings have `text_width` numbers.
    ///
    /// # Errors
    /// With everything that is missing, misshapen, or of another width.
    pub(super) fn open(folder: &Path, text_width: usize) -> std::result::Result<Self, CheckpointError> {
        let mut problems = Vec::new();
        let encoder = match encoder_of(folder) {
            Ok((config, path)) => opened(&path, config.wanted(), &mut problems).map(|weights| (config, weights)),
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        let width = encoder.as_ref().map(|(config, _)| config.hidden_size);
        let embedder = embedder_of(folder, width, text_width, &mut problems);
        match (encoder, embedder) {
            (Some((config, encoder)), Some(embedder)) if problems.is_empty() => Ok(Self { config, encoder, embedder }),
            _ => Err(unusable(folder, problems)),
        }
    }

    /// Numbers in all weights.
    pub(super) fn elements(&self) -> usize {
        self.encoder.elements() + self.embedder.elements()
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// When they cannot be read, or the device is out of memory.
    pub(super) fn load(&self, device: &Device, dtype: DType) -> Result<StyleEncoder> {
        let embedder = self.embedder.onto(device, dtype);
        Ok(StyleEncoder {
            encoder: Siglip::load(&self.config, self.encoder.onto(device, dtype))?,
            up: embedder.linear("redux_up")?,
            down: embedder.linear("redux_down")?,
        })
    }
}

fn opened(path: &Path, wanted: Vec<Wanted>, problems: &mut Vec<Problem>) -> Option<Weights> {
    match TensorFile::open(path) {
        Ok(file) => Weights::check(file, wanted, problems),
        Err(problem) => {
            problems.push(problem);
            None
        }
    }
}

/// The embedder's weights. Its widths follow from the first layer's shape, as its file may be without a configuration. They must be
/// that of the image encoder, if it is known, and `text_width`.
fn embedder_of(
    folder: &Path,
    encoder_width: Option<usize>,
    text_width: usize,
    problems: &mut Vec<Problem>,
) -> Option<Weights> {
    let paths = EMBEDDERS.map(|name| folder.join(name));
    let Some(path) = paths.iter().find(|path| path.is_file()) else {
        let hint = format!(", and so is {}", EMBEDDERS[1]);
        problems.push(Problem::MissingFile { path: paths[0].display().to_string(), hint });
        return None;
    };
    let file = TensorFile::open(path).map_err(|problem| problems.push(problem)).ok()?;
    let first = "redux_up.weight";
    let shape = file.names().any(|name| name == first).then(|| file.shape(first).to_vec());
    let before = problems.len();
    if let Some([rows, columns]) = shape.as_deref() {
        if let Some(width) = encoder_width.filter(|width| width != columns) {
            let reason = format!("it reads images of {columns} numbers a patch, and the image encoder gives {width}");
            problems.push(Problem::unreadable(file.path(), reason));
        }
        if *rows != WIDENING * text_width {
            let reason = format!(
                "its rows are {} numbers wide, and this model's text embeddings (joint_attention_dim) {text_width}",
                rows / WIDENING
            );
            problems.push(Problem::unreadable(file.path(), reason));
        }
    }
    if problems.len() > before {
        return None;
    }
    // Where the image encoder is not known, which is a problem already, any width is right.
    let width = encoder_width.or_else(|| shape?.last().copied()).unwrap_or_default();
    let inner = WIDENING * text_width;
    let module = |name: &str, shape: &[usize]| Wanted::module(name, &[name.to_owned()], shape);
    let up = module("redux_up", &[inner, width]);
    let wanted = [up, module("redux_down", &[text_width, inner])].concat();
    Weights::check(file, wanted, problems)
}

/// FLUX.1-Redux on a device: its image encoder, and what makes a prompt's rows of that.
pub(crate) struct StyleEncoder {
    pub(crate) encoder: Siglip,
    up: Linear,
    down: Linear,
}

impl StyleEncoder {
    /// Pixels of a side of the images that it takes.
    pub(crate) fn side(&self) -> usize {
        self.encoder.side()
    }

    /// Rows of an image's embedding.
    pub(crate) fn tokens(&self) -> usize {
        self.encoder.tokens()
    }

    /// The embedding of an image of [`Self::side`], `[tokens, text width]`.
    ///
    /// # Errors
    /// When its size is another one, or the device is out of memory or fails.
    pub(crate) fn embed(&self, image: &RgbImage) -> Result<Tensor> {
        self.rows(&self.encoder.forward(&self.encoder.pixels(image)?)?)
    }

    /// The image encoder's hidden states `[tokens, width]` as rows of a prompt, `[tokens, text width]`.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    pub(crate) fn rows(&self, states: &Tensor) -> Result<Tensor> {
        self.down.forward(&silu(&self.up.forward(states)?)?)
    }
}
