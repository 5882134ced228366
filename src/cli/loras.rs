//! `fluxserve loras`: inspect.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::part_args::PartArgs;
use crate::app;
use crate::config::Config;
use crate::domain::model_source::ModelSource;

/// What to do with LoRAs.
#[derive(Debug, Subcommand)]
pub enum LorasCommand {
    /// Say what a LoRA's file changes in a model, and what in it is not used
    Inspect(InspectLoraArgs),
}

/// Options of `loras inspect`.
#[derive(Debug, Args)]
pub struct InspectLoraArgs {
    /// The file, of any trainer
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// A model whose layers it is compared with, with the folder or file of its checkpoint unless it was downloaded [default:
    /// the dimensions of FLUX.1-dev]
    #[arg(long, value_name = "ID[=PATH]")]
    pub model: Option<ModelSource>,
    /// Where the model's parts come from.
    #[command(flatten)]
    pub parts: PartArgs,
}

pub(super) fn run(command: LorasCommand, config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let LorasCommand::Inspect(InspectLoraArgs { file, model, parts }) = command;
    if model.is_none() && parts != PartArgs::default() {
        anyhow::bail!("`--base`, `--text-encoder` and `--vae` are for the model of `--model`");
    }
    let model = model.map(|model| parts.of(model));
    app::inspect_lora(config, &file, model.as_ref(), out)
}
