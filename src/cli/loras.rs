//! `fluxserve loras`: inspect, add, list, remove, download.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use super::models::with_progress;
use super::part_args::PartArgs;
use super::table::{to_the_second, write_table};
use crate::app::{self, Loras, Progress};
use crate::auth::Actor;
use crate::config::Config;
use crate::domain::model_source::ModelSource;
use crate::loras::{Added, HubFile, Lora};

/// What to do with LoRAs.
#[derive(Debug, Subcommand)]
pub enum LorasCommand {
    /// Say what a LoRA's file changes in a model, and what in it is not used
    Inspect(InspectLoraArgs),
    /// Add a LoRA and print its id; a running server can use it from the next request on
    Add(AddLoraArgs),
    /// List all LoRAs, by name
    List,
    /// Remove a LoRA that no unfinished job uses
    Remove(RemoveLoraArgs),
    /// Download a LoRA from the hub and add it
    Download(DownloadLoraArgs),
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

/// Options of `loras add`.
#[derive(Debug, Args)]
pub struct AddLoraArgs {
    /// The file, of any trainer; it is copied
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Its name in requests [default: the file's name]
    #[arg(long)]
    pub name: Option<String>,
}

/// Options of `loras remove`.
#[derive(Debug, Args)]
pub struct RemoveLoraArgs {
    /// Its id or its name, as `loras list` shows them
    #[arg(value_name = "ID|NAME")]
    pub lora: String,
}

/// Options of `loras download`.
#[derive(Debug, Args)]
pub struct DownloadLoraArgs {
    /// The repository: OWNER/NAME
    #[arg(value_name = "ID")]
    pub repository: String,
    /// A branch, a tag or a commit [default: main]
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// The file: its name, or a part of it that no other file has [default: the only weight file]
    #[arg(long, value_name = "NAME")]
    pub file: Option<String>,
    /// Its name in requests [default: the file's name]
    #[arg(long)]
    pub name: Option<String>,
}

pub(super) async fn run(
    command: LorasCommand,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        LorasCommand::Inspect(arguments) => inspect(arguments, config, out),
        LorasCommand::Add(arguments) => add(arguments, config, out, notes).await,
        LorasCommand::List => {
            let loras = Loras::open_existing(config).await?;
            let outcome = list(&loras, out).await;
            loras.store.close().await;
            outcome
        }
        LorasCommand::Remove(RemoveLoraArgs { lora }) => {
            let loras = Loras::open_existing(config).await?;
            let removed = loras.catalog.remove(&lora, &Actor::CommandLine).await;
            loras.store.close().await;
            let removed = removed?;
            writeln!(notes, "the LoRA `{}` and its file are removed", removed.name)?;
            Ok(())
        }
        LorasCommand::Download(arguments) => {
            let DownloadLoraArgs { repository, revision, file, name } = arguments;
            let request = HubFile { repository, revision, file };
            let download = async move |progress: &dyn Progress| app::download_lora(config, request, progress).await;
            let file = with_progress(notes, download).await?;
            add(AddLoraArgs { file, name }, config, out, notes).await
        }
    }
}

fn inspect(arguments: InspectLoraArgs, config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let InspectLoraArgs { file, model, parts } = arguments;
    if model.is_none() && parts != PartArgs::default() {
        anyhow::bail!("`--base`, `--text-encoder` and `--vae` are for the model of `--model`");
    }
    let model = model.map(|model| parts.of(model));
    app::inspect_lora(config, &file, model.as_ref(), out)
}

async fn add(
    arguments: AddLoraArgs,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let AddLoraArgs { file, name } = arguments;
    let loras = Loras::open(config).await?;
    let added = loras.add(&file, name).await;
    loras.store.close().await;
    let Added { lora, is_new } = added?;
    let state = if is_new { "is added" } else { "was there already" };
    let name = &lora.name;
    writeln!(notes, "the LoRA `{name}` {state}: `\"loras\": [{{\"id\": \"{name}\"}}]` in a request uses it")?;
    for component in &lora.report.components {
        writeln!(notes, "  {}: {} of {} linear layers", component.name, component.layers, component.of)?;
    }
    for unused in &lora.report.unused {
        writeln!(notes, "  not used, {unused}")?;
    }
    writeln!(out, "{}", lora.id)?;
    Ok(())
}

async fn list(loras: &Loras, out: &mut dyn Write) -> anyhow::Result<()> {
    let all = loras.catalog.list().await?;
    let row = |lora: &Lora| {
        [
            lora.name.clone(),
            HumanBytes(lora.bytes).to_string(),
            lora.report.base.clone(),
            lora.report.license.clone().unwrap_or_else(|| "-".to_owned()),
            to_the_second(lora.created_at),
            lora.id.to_string(),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    write_table(out, ["NAME", "SIZE", "BASE", "LICENSE", "ADDED", "ID"], &rows)?;
    Ok(())
}
