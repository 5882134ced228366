//! Options of the images that `generate` takes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::control_args::{ControlArg, ControlArgs};
use crate::app::ImageFile;
use crate::domain::conditioning::{ImageOptions, ImageRole};
use crate::domain::model::Attachments;

/// Options of images.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct ImageArgs {
    /// The image to start from, or to repaint: PNG, JPEG or WebP. Width and height default to its own
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// How much to change it: above 0; 1 ignores it [default: 0.6, or 1 for FLUX.1-Fill]
    #[arg(long, value_name = "X", requires = "image", allow_negative_numbers = true)]
    pub strength: Option<f64>,
    /// Which part of the image to repaint: white is
    #[arg(long, value_name = "FILE", requires = "image")]
    pub mask: Option<PathBuf>,
    /// Generate only the region around the mask, with so many pixels around it, and put it back into the image
    #[arg(long, value_name = "PIXELS", requires = "mask")]
    pub mask_padding: Option<u32>,
    /// An image that the prompt speaks of, for FLUX.1-Kontext; repeatable
    #[arg(long = "reference", value_name = "FILE")]
    pub references: Vec<PathBuf>,
    /// Control images.
    #[command(flatten)]
    pub control: ControlArgs,
    /// The folder of FLUX.1-Redux, with its image encoder, for --style
    #[arg(long, value_name = "DIR")]
    pub redux: Option<PathBuf>,
    /// An image to vary, with its strength [default: 1]; repeatable
    #[arg(long = "style", value_name = "FILE[=SCALE]", requires = "redux", value_parser = parse_style)]
    pub styles: Vec<ImageFile>,
    /// Depth-Anything V2 small, for --preprocess depth: its folder or file
    #[arg(long, value_name = "PATH")]
    pub depth_model: Option<PathBuf>,
}

/// A file, and what follows the last `=`, if it is a number.
pub(super) fn with_number(text: &str) -> Result<(PathBuf, Option<f64>), String> {
    let numbered = text.rsplit_once('=').and_then(|(file, number)| Some((file, Some(number.parse().ok()?))));
    let (file, number) = numbered.unwrap_or((text, None));
    if file.is_empty() { Err("names no file".to_owned()) } else { Ok((file.into(), number)) }
}

fn parse_style(text: &str) -> Result<ImageFile, String> {
    let (file, scale) = with_number(text)?;
    let options = ImageOptions { scale, ..ImageOptions::default() };
    Ok(ImageFile { role: ImageRole::Style, file, options })
}

impl ImageArgs {
    /// The images, and what has to be loaded beside the model for them.
    pub(super) fn into_parts(self) -> (Vec<ImageFile>, Attachments) {
        let plain = |role| move |file: PathBuf| ImageFile { role, file, options: ImageOptions::default() };
        let mut images: Vec<ImageFile> = self.image.into_iter().map(plain(ImageRole::Input)).collect();
        images.extend(self.mask.map(plain(ImageRole::Mask)));
        let mut controlnets: Vec<(Arc<str>, PathBuf)> = Vec::new();
        for ControlArg { file, controlnet, options } in self.control.controls {
            if let Some((name, path)) = options.controlnet.clone().zip(controlnet)
                && !controlnets.iter().any(|(known, _)| *known == name)
            {
                controlnets.push((name, path));
            }
            images.push(ImageFile { role: ImageRole::Control, file, options });
        }
        images.extend(self.references.into_iter().map(plain(ImageRole::Reference)));
        images.extend(self.styles);
        (images, Attachments { controlnets, redux: self.redux, depth: self.depth_model })
    }
}

/// Options of `serve` for what is loaded beside the models with a path.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct AttachmentArgs {
    /// A ControlNet for the models with a PATH: the name that requests use, and its folder or file; repeatable
    #[arg(long = "controlnet", value_name = "NAME=PATH", value_parser = parse_controlnet)]
    pub controlnets: Vec<(Arc<str>, PathBuf)>,
    /// FLUX.1-Redux for the models with a PATH: its folder, with its image encoder
    #[arg(long, value_name = "DIR")]
    pub redux: Option<PathBuf>,
    /// Depth-Anything V2 small for the models with a PATH: its folder or file
    #[arg(long, value_name = "PATH")]
    pub depth_model: Option<PathBuf>,
}

fn parse_controlnet(text: &str) -> Result<(Arc<str>, PathBuf), String> {
    let named = text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = named.ok_or_else(|| "not a ControlNet: use `NAME=PATH`".to_owned())?;
    Ok((name.into(), Path::new(path).to_owned()))
}

impl AttachmentArgs {
    /// What is loaded beside a model.
    ///
    /// # Errors
    /// When a ControlNet's name is taken, or no name.
    pub(super) fn attachments(&self) -> anyhow::Result<Attachments> {
        let Self { controlnets, redux, depth_model } = self.clone();
        let attachments = Attachments { controlnets, redux, depth: depth_model };
        match attachments.name_fault() {
            Some(fault) => anyhow::bail!("`--controlnet`: {fault}"),
            None => Ok(attachments),
        }
    }
}
