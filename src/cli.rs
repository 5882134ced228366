//! The command line: its commands, options and output. Calls the application, and does not know how it works.
//!
//! Output goes through the handles that [`run`] gets: `out` for scripts, `notes` for people. So does the only input, a
//! password.

mod admin;
mod backup;
mod bench;
mod cache_argument;
mod control_args;
mod doctor;
mod engine_args;
mod exit;
mod generate;
mod image_args;
mod key_argument;
mod keys;
mod kubernetes;
mod links;
mod load_bar;
mod loras;
mod models;
mod part_args;
mod shell;
mod table;
mod version;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use admin::{AdminCommand, PasswordInput};
pub use backup::BackupArgs;
pub use bench::BenchCommand;
pub use control_args::{ControlArg, ControlArgs};
pub use doctor::{DoctorArgs, FaultyOperations};
pub use engine_args::EngineArgs;
pub use exit::exit_code;
pub use generate::GenerateArgs;
pub use image_args::{AttachmentArgs, ImageArgs};
pub use key_argument::{KeyArgument, without_secrets};
pub use keys::KeysCommand;
pub use kubernetes::KubernetesCommand;
pub use links::LinksCommand;
pub use loras::{AddLoraArgs, DownloadLoraArgs, InspectLoraArgs, LorasCommand, RemoveLoraArgs};
pub use models::{CheckModelArgs, ConvertModelArgs, DownloadModelArgs, ModelsCommand};
pub use part_args::PartArgs;
pub use shell::{CompletionsArgs, ManArgs};

use crate::app::CommandLogs;
use crate::config::{Config, Flags, VARIABLES};
use crate::domain::device::{DeviceChoice, Devices, FasterKernel};
use crate::domain::model_source::{ModelParts, ModelSource};
use crate::domain::spec::random_seed;
use crate::telemetry::pipe::Pipe;
use crate::{app, shutdown};

/// A FLUX image generation server with built-in API keys.
///
/// Without a command it serves, like `fluxserve serve`.
#[derive(Debug, Parser)]
#[command(name = "fluxserve", version, long_version = version::long(), after_long_help = environment_help())]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of every command.
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
pub struct SharedArgs {
    /// Folder of the database and the results [default: ./data]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Configuration file [default: ./fluxserve.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve over HTTP
    Serve(ServeArgs),
    /// Generate one image into a file, without a server
    Generate(Box<GenerateArgs>),
    /// Create, list, change and revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Set up a Kubernetes cluster whose namespaces keys can be granted
    #[command(subcommand)]
    Kubernetes(KubernetesCommand),
    /// Set the administrator's password
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Revoke the links to images that need no key
    #[command(subcommand)]
    Links(LinksCommand),
    /// Copy the database into a file, even while a server runs
    Backup(BackupArgs),
    /// Download, list, check and convert models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Inspect, add, list, remove and download LoRAs
    #[command(subcommand)]
    Loras(LorasCommand),
    /// Measure generation, loading and single kernels on this machine, or export an image's intermediate tensors
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print the description of the HTTP API: OpenAPI 3.1, as JSON
    Openapi,
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for each command
    Man(ManArgs),
    /// Check whether this machine can serve, and how to fix what prevents it; or test each operation of a device
    Doctor(DoctorArgs),
    /// Compare one of the device's faster kernels with the portable one; run by every other command that loads a model
    #[command(hide = true)]
    ProbeKernel(ProbeKernelArgs),
}

/// Options of `probe-kernel`.
#[derive(Debug, Clone, Args)]
pub struct ProbeKernelArgs {
    /// The kernel: attention or convolution
    #[arg(value_name = "KERNEL")]
    pub kernel: FasterKernel,
    /// Device
    #[arg(long, value_name = "DEVICE")]
    pub device: DeviceChoice,
}

/// Options of `serve`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Where to listen [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// A separate address for the console and the management routes
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// A model to serve, with the folder or file of its checkpoint unless it was downloaded; repeatable [default:
    /// fluxserve/flux-shapes]
    #[arg(long = "model", value_name = "ID[=PATH]")]
    pub models: Vec<ModelSource>,
    /// Where the parts of the models with a PATH come from.
    #[command(flatten)]
    pub parts: PartArgs,
    /// What is loaded beside them.
    #[command(flatten)]
    pub attachments: AttachmentArgs,
    /// Download missing models and bases from the hub first, like `models download`
    #[arg(long)]
    pub download: bool,
    /// Device: auto, cpu, cuda, cuda:N, or several separated by commas, each with its own engine [default: auto]
    #[arg(long, value_name = "DEVICE[,DEVICE]")]
    pub device: Option<Devices>,
    /// Options of the engines.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Runs the command on a runtime of its own. Polled here and not in `main.rs`, because the crate that polls a future compiles
/// all that it awaits: the whole program a second time.
///
/// # Errors
/// As [`run`]; also when the system gives no threads.
pub fn run_to_end(
    cli: Cli,
    input: PasswordInput<'_>,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(cli, input, out, notes, CommandLogs::start))
}

/// Starts the logs of commands other than `serve`. A process can do that once, so tests do not.
pub type StartLogs = fn(&Config) -> anyhow::Result<CommandLogs>;

/// Runs the command.
///
/// # Errors
/// Why it failed, as a message for the user.
pub async fn run(
    cli: Cli,
    input: PasswordInput<'_>,
    out: &mut dyn Write,
    notes: &mut dyn Write,
    start_logs: StartLogs,
) -> anyhow::Result<()> {
    shutdown::outlive_file_size_limit();
    let mut flags = Flags { config_file: cli.shared.config, data_dir: cli.shared.data_dir, ..Flags::default() };
    match cli.command.unwrap_or(Command::Serve(ServeArgs::default())) {
        Command::Serve(arguments) => {
            flags.listen = arguments.listen;
            flags.admin_listen = arguments.admin_listen;
            flags.models = with_parts(arguments.models, &arguments.parts, &arguments.attachments)?;
            flags.device = arguments.device;
            arguments.engine.apply(&mut flags);
            flags.download = arguments.download;
            let config = Config::load(flags)?;
            // Not through `out`, whose reader could block the worker.
            let greeting = Pipe::start("greeting", io::stdout())?;
            app::serve(config, shutdown::on_signals()?, greeting).await
        }
        Command::Generate(arguments) => {
            flags.device = arguments.device.map(Into::into);
            flags.download = arguments.download;
            arguments.engine.clone().apply(&mut flags);
            let config = Config::load(flags)?;
            let _logs = start_logs(&config)?;
            app::start_compute_threads(&config);
            let request = arguments.into_request(&config, || Ok(random_seed()?), notes)?;
            let request = generate::with_downloads(&config, request, notes).await?;
            generate::run(&config, request, notes)
        }
        Command::Keys(command) => keys::run(command, &Config::load(flags)?, out, notes).await,
        Command::Kubernetes(command) => kubernetes::run(command, &Config::load(flags)?, out, notes).await,
        Command::Admin(command) => admin::run(command, &Config::load(flags)?, input, notes).await,
        Command::Links(command) => links::run(&command, &Config::load(flags)?, notes),
        Command::Backup(arguments) => backup::run(&arguments, &Config::load(flags)?, notes).await,
        Command::Models(command) => models::run(command, &Config::load(flags)?, out, notes).await,
        Command::Loras(command) => loras::run(command, &Config::load(flags)?, out, notes).await,
        Command::Bench(command) => {
            command.apply(&mut flags);
            let config = Config::load(flags)?;
            let _logs = start_logs(&config)?;
            app::start_compute_threads(&config);
            bench::run(command, &config, out, notes)
        }
        Command::Openapi => Ok(writeln!(out, "{}", app::api_description())?),
        Command::Completions(arguments) => shell::completions(&arguments, out),
        Command::Man(arguments) => shell::man(&arguments, out),
        Command::ProbeKernel(ProbeKernelArgs { kernel, device }) => app::try_kernel(device, kernel),
        Command::Doctor(arguments) => {
            arguments.apply(&mut flags);
            let config = Config::load(flags)?;
            let _logs = start_logs(&config)?;
            app::start_compute_threads(&config);
            doctor::run(arguments, &config, out).await
        }
    }
}

/// The models of the command line, with the parts and attachments that were named for those with a path.
fn with_parts(
    models: Vec<ModelSource>,
    parts: &PartArgs,
    attachments: &AttachmentArgs,
) -> anyhow::Result<Vec<ModelSource>> {
    let takes_parts = |model: &ModelSource| model.directory.is_some();
    let attachments = attachments.attachments()?;
    if !models.iter().any(takes_parts) {
        if *parts != PartArgs::default() {
            anyhow::bail!("`--base`, `--text-encoder` and `--vae` are for a model with a path: `--model ID=PATH`");
        }
        if !attachments.is_empty() {
            let options = "`--controlnet`, `--redux` and `--depth-model`";
            anyhow::bail!("{options} are for a model with a path: `--model ID=PATH`");
        }
    }
    let with = |model: ModelSource| {
        if !takes_parts(&model) {
            return model;
        }
        let model = parts.clone().of(model);
        ModelSource { parts: ModelParts { attachments: attachments.clone(), ..model.parts }, ..model }
    };
    Ok(models.into_iter().map(with).collect())
}

fn environment_help() -> String {
    use std::fmt::Write as _;

    let mut help = String::from("Environment variables (they override the file, and options override them):\n");
    for variable in VARIABLES {
        writeln!(help, "  {:<36} {}", variable.name, variable.meaning).expect("writing to a string never fails");
    }
    help
}

#[cfg(test)]
mod tests;
