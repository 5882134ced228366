//! `fluxserve models`: fetch, list, check.

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use crate::app::{self, DownloadRequest, Downloaded, Progress, Told};
use crate::config::Config;
use crate::domain::ids::ModelId;
use crate::domain::model_source::ModelSource;

/// Lines about a download that wait to be written. More are left out: the next one says more.
const LINES_WAITING_MAX: usize = 256;

/// What to do with models.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Fetch a model from the hub, or what is missing of it
    Download(DownloadModelArgs),
    /// List the known models, their licences, and where their weights are
    List,
    /// Compare a checkpoint, tensor by tensor, with what its model needs
    Check(CheckModelArgs),
}

/// Options of `models download`.
#[derive(Debug, Args)]
pub struct DownloadModelArgs {
    /// The model, as its repository is called: black-forest-labs/FLUX.1-dev
    #[arg(value_name = "ID")]
    pub model: String,
    /// A branch, a tag or a commit [default: main]
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// A folder of its own [default: the cache of Hugging Face's tools, HF_HOME]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// Options of `models check`.
#[derive(Debug, Args)]
pub struct CheckModelArgs {
    /// The model, with the folder of its checkpoint in either published layout unless it was downloaded
    #[arg(value_name = "ID[=DIR]")]
    pub model: ModelSource,
    /// Compare the large files with the hub's checksums, too: reads all of them
    #[arg(long)]
    pub checksums: bool,
}

pub(super) async fn run(
    command: ModelsCommand,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        ModelsCommand::List => app::list_models(config, out),
        ModelsCommand::Check(arguments) => app::check_model(config, &arguments.model, arguments.checksums, out),
        ModelsCommand::Download(arguments) => download(arguments, config, out, notes).await,
    }
}

async fn download(
    arguments: DownloadModelArgs,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let request = DownloadRequest {
        model: ModelId::new(arguments.model.clone()),
        revision: arguments.revision.clone(),
        folder: arguments.to.clone(),
    };
    let downloaded = if std::io::stderr().is_terminal() {
        let bars = Bars::new()?;
        let outcome = app::download_model(config, request, &bars).await;
        bars.clear()?;
        outcome?
    } else {
        with_lines(config, request, notes).await?
    };
    let Downloaded { folder, commit, files, bytes_fetched } = downloaded;
    let commit = commit.map_or_else(|| "as the cache has it".to_owned(), |commit| format!("commit {commit}"));
    writeln!(notes, "{files} files, {commit}, {bytes_fetched} bytes fetched, checksums compared, tensors complete")?;
    // Without options the model is found by its name.
    let id = arguments.model;
    let is_found = arguments.to.is_none() && arguments.revision.is_none();
    let source = if is_found { id } else { format!("{id}={}", folder.display()) };
    writeln!(notes, "serve it with `fluxserve serve --model {source}`")?;
    writeln!(out, "{}", folder.display())?;
    Ok(())
}

/// Downloads, and writes now and then how far it is.
async fn with_lines(config: &Config, request: DownloadRequest, notes: &mut dyn Write) -> anyhow::Result<Downloaded> {
    let (sender, mut lines) = mpsc::channel::<String>(LINES_WAITING_MAX);
    let progress = Told::new(move |line: &str| drop(sender.try_send(line.to_owned())));
    let mut download = std::pin::pin!(app::download_model(config, request, &progress));
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

/// A bar for all, and one for each file that is being fetched.
struct Bars {
    all: ProgressBar,
    place: MultiProgress,
    files: std::sync::Mutex<std::collections::BTreeMap<String, ProgressBar>>,
    style: ProgressStyle,
}

impl Bars {
    fn new() -> anyhow::Result<Self> {
        let rest = "{binary_bytes:>11} of {binary_total_bytes:<11} {binary_bytes_per_sec:>13} {eta:>5} to go";
        let style = ProgressStyle::with_template(&format!("{{bar:24}} {rest}  {{msg}}"))?;
        let place = MultiProgress::new();
        let all = place.add(ProgressBar::new(0).with_style(style.clone()).with_message("in all"));
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
    fn planned(&self, _: usize, bytes: u64, bytes_here: u64) {
        self.all.set_length(bytes);
        self.all.set_position(bytes_here);
        // What was here before says nothing of the rate.
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
        // Where nothing can be drawn, nothing can be said either.
        drop(self.place.println(format!("{reason}; asking again in {} s", wait.as_secs_f64().ceil())));
    }
}
