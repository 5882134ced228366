//! Options that say where the parts of a model come from.

use std::path::PathBuf;

use clap::Args;

use crate::domain::model_source::{ModelParts, ModelSource};

/// Options of every command that names a model.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct PartArgs {
    /// A complete checkpoint for what the model's file lacks: its folder, or the id of a downloaded model
    #[arg(long, value_name = "ID|DIR")]
    pub base: Option<PathBuf>,
    /// A file or folder of a text encoder (clip_l, t5xxl) in place of the model's own; repeatable
    #[arg(long = "text-encoder", value_name = "PATH")]
    pub text_encoders: Vec<PathBuf>,
    /// The autoencoder's file or folder (ae) in place of the model's own
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
}

impl PartArgs {
    /// A model with these parts.
    pub(super) fn of(self, model: ModelSource) -> ModelSource {
        let Self { base, text_encoders, vae } = self;
        ModelSource { parts: ModelParts { base, text_encoders, vae, ..ModelParts::default() }, ..model }
    }
}
