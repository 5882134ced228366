//! `fluxserve models`: download, list, check, convert.

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use super::load_bar::LoadBar;
use super::part_args::PartArgs;
use crate::app::{self, ConvertRequest, DownloadRequest, Downloaded, Progress, ProgressLines};
use crate::config::Config;
use crate::domain::conversion::{ConvertedComponent, WeightFormat};
use crate::domain::ids::ModelId;
use crate::domain::model_source::ModelSource;

/// Maximum progress lines that wait to be written. More are dropped, because the next one is newer.
const LINES_WAITING_MAX: usize = 256;

/// What to do with models.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Download a model from the hub, or its missing files
    Download(DownloadModelArgs),
    /// List the known models, their licenses, and where their weights are
    List,
    /// Check that a checkpoint has every tensor that its model needs
    Check(CheckModelArgs),
    /// Write a model's transformer, or its T5, to a file in another form, which can be smaller
    Convert(ConvertModelArgs),
}

/// Options of `models download`.
#[derive(Debug, Args)]
pub struct DownloadModelArgs {
    /// The model, named as its repository: black-forest-labs/FLUX.1-dev
    #[arg(value_name = "ID")]
    pub model: String,
    /// A branch, a tag or a commit [default: main]
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Folder for the files [default: the cache of Hugging Face's tools, HF_HOME]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Only this file of the repository: its name, or a part of it that no other file has, such as Q4_K_S; repeatable
    #[arg(long = "file", value_name = "NAME")]
    pub files: Vec<String>,
}

/// Options of `models check`.
#[derive(Debug, Args)]
pub struct CheckModelArgs {
    /// The model, with the folder or file of its checkpoint unless it was downloaded
    #[arg(value_name = "ID[=PATH]")]
    pub model: ModelSource,
    /// Where its parts come from.
    #[command(flatten)]
    pub parts: PartArgs,
    /// Verify the checksums of the large files, too, which reads all of them
    #[arg(long)]
    pub checksums: bool,
}

/// Options of `models convert`.
#[derive(Debug, Args)]
pub struct ConvertModelArgs {
    /// What to convert: a folder, a file, or the id of a downloaded model
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The new file
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Form of the new file: gguf:q8_0, gguf:q4_0, gguf:q4_k, fp8 (e4m3 with a scale for each matrix), or bf16
    #[arg(long, value_name = "FORMAT")]
    pub to: WeightFormat,
    /// The component to convert: transformer or t5 [default: transformer]
    #[arg(long, value_name = "COMPONENT")]
    pub component: Option<ConvertedComponent>,
    /// Replace the new file if it exists
    #[arg(long)]
    pub force: bool,
}

pub(super) async fn run(
    command: ModelsCommand,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        ModelsCommand::List => app::list_models(config, out),
        ModelsCommand::Check(arguments) => {
            let model = arguments.parts.of(arguments.model);
            app::check_model(config, &model, arguments.checksums, out)
        }
        ModelsCommand::Download(arguments) => download(arguments, config, out, notes).await,
        ModelsCommand::Convert(arguments) => convert(arguments, config, out, notes),
    }
}

fn convert(
    arguments: ConvertModelArgs,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let ConvertModelArgs { input, output, to: format, component, force: replaces } = arguments;
    let component = component.unwrap_or_default();
    let request = ConvertRequest { input, component, format, output, replaces };
    app::convert_model(config, &request, &*LoadBar::new()?, notes)?;
    let file = request.output.display();
    let option = match component {
        ConvertedComponent::Transformer => format!("--model ID={file} --base BASE"),
        ConvertedComponent::T5 => format!("--model ID=PATH --base BASE --text-encoder {file}"),
    };
    let base = "where BASE is a checkpoint that has the rest, or its id";
    writeln!(notes, "serve it with `fluxserve serve {option}`, {base}")?;
    writeln!(out, "{file}")?;
    Ok(())
}

async fn download(
    arguments: DownloadModelArgs,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let model = ModelId::new(arguments.model.clone());
    let request = DownloadRequest {
        model: model.clone(),
        revision: arguments.revision.clone(),
        folder: arguments.to.clone(),
        files: arguments.files,
    };
    let downloaded =
        with_progress(notes, async move |progress: &dyn Progress| app::download_model(config, request, progress).await)
            .await?;
    let Downloaded { folder, commit, files, chosen, bytes_fetched } = &downloaded;
    let noun = if *files == 1 { "file" } else { "files" };
    let commit = commit.as_ref().map_or_else(|| "as in the cache".to_owned(), |commit| format!("commit {commit}"));
    let is_pipeline = chosen.is_empty();
    let tensors = if is_pipeline { ", tensors complete" } else { "" };
    writeln!(notes, "{files} {noun}, {commit}, {bytes_fetched} bytes downloaded, checksums verified{tensors}")?;
    if !is_pipeline {
        for line in app::uses_of(config, &model, &downloaded) {
            writeln!(notes, "{line}")?;
        }
        for path in chosen {
            writeln!(out, "{}", path.display())?;
        }
        return Ok(());
    }
    // Without options, `serve` finds the model by its name.
    let id = arguments.model;
    let is_found = arguments.to.is_none() && arguments.revision.is_none();
    let source = if is_found { id } else { format!("{id}={}", folder.display()) };
    writeln!(notes, "serve it with `fluxserve serve --model {source}`")?;
    writeln!(out, "{}", folder.display())?;
    Ok(())
}

/// Downloads, and shows the progress: as bars on a terminal, as lines elsewhere.
pub(super) async fn with_progress<T>(
    notes: &mut dyn Write,
    download: impl AsyncFnOnce(&dyn Progress) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if std::io::stderr().is_terminal() {
        let bars = Bars::new()?;
        let outcome = download(&bars).await;
        bars.clear()?;
        return outcome;
    }
    let (sender, mut lines) = mpsc::channel::<String>(LINES_WAITING_MAX);
    let progress = ProgressLines::new(move |line: &str| drop(sender.try_send(line.to_owned())));
    let mut download = std::pin::pin!(download(&progress));
    let outcome = loop {
        tokio::select! {
            biased;
            Some(line) = lines.recv() => writeln!(notes, "{line}")?,
            outcome = &mut download => break outcome,
        }
    };
    while let Ok(line) = lines.try_recv() {
        writeln!(notes, "{line}")?;
    }
    outcome
}

/// Progress bars: one for the download, and one for each file in transfer.
struct Bars {
    all: ProgressBar,
    place: MultiProgress,
    files: std::sync::Mutex<std::collections::BTreeMap<String, ProgressBar>>,
    style: ProgressStyle,
}

impl Bars {
    fn new() -> anyhow::Result<Self> {
        let rest = "{binary_bytes:>11} of {binary_total_bytes:<11} {binary_bytes_per_sec:>13} {eta:>5} left";
        let style = ProgressStyle::with_template(&format!("{{bar:24}} {rest}  {{msg}}"))?;
        let place = MultiProgress::new();
        let all = place.add(ProgressBar::new(0).with_style(style.clone()).with_message("total"));
        Ok(Self { all, place, files: std::sync::Mutex::default(), style })
    }

    fn clear(&self) -> std::io::Result<()> {
        self.place.clear()
    }

    fn with(&self, path: &str, change: impl FnOnce(&ProgressBar)) {
        let files = self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = files.get(path) {
            change(bar);
        }
    }
}

impl Progress for Bars {
    fn chosen(&self, path: &str, bytes: u64) {
        // Without a terminal there is no place for it.
        drop(self.place.println(format!("{path}, {}", HumanBytes(bytes))));
    }

    fn planned(&self, _: usize, bytes: u64, bytes_here: u64) {
        self.all.set_length(bytes);
        self.all.set_position(bytes_here);
        // Bytes from an earlier download do not count for the rate.
        self.all.reset_eta();
    }

    fn begun(&self, path: &str, bytes: u64, bytes_here: u64) {
        let bar = ProgressBar::new(bytes).with_style(self.style.clone()).with_message(path.to_owned());
        let bar = self.place.insert_before(&self.all, bar);
        bar.set_position(bytes_here);
        bar.reset_eta();
        self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(path.to_owned(), bar);
    }

    fn received(&self, path: &str, bytes: u64) {
        self.all.inc(bytes);
        self.with(path, |bar| bar.inc(bytes));
    }

    fn lost(&self, path: &str, bytes: u64) {
        self.all.dec(bytes);
        self.with(path, |bar| bar.set_position(0));
    }

    fn ended(&self, path: &str) {
        let mut files = self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = files.remove(path) {
            bar.finish_and_clear();
            self.place.remove(&bar);
        }
    }

    fn waiting(&self, reason: &str, wait: Duration) {
        // Without a terminal there is no place for the message either.
        drop(self.place.println(format!("{reason}; retrying in {} s", wait.as_secs_f64().ceil())));
    }
}
