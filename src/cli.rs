//! The command line: what the words mean and what they print. Knows how to ask the application for things, not how they
//! are done.
//!
//! Output goes through the handles that [`run`] gets: what a script reads to `out`, what a person reads to `notes`. So does
//! the one thing that is read, a password.

mod admin;
mod backup;
mod bench;
mod generate;
mod key_argument;
mod keys;
mod kubernetes;
mod links;
mod load_bar;
mod models;
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
pub use generate::GenerateArgs;
pub use key_argument::{KeyArgument, without_secrets};
pub use keys::KeysCommand;
pub use kubernetes::KubernetesCommand;
pub use links::LinksCommand;
pub use models::{CheckModelArgs, DownloadModelArgs, ModelsCommand};
pub use shell::{CompletionsArgs, ManArgs};

use crate::config::{Config, Flags, VARIABLES};
use crate::domain::device::{Devices, Kernels, Offload};
use crate::domain::model_source::ModelSource;
use crate::domain::precision::Precision;
use crate::domain::spec::random_seed;
use crate::telemetry::pipe::Pipe;
use crate::{app, shutdown};

/// A worker that draws images with FLUX, and knows who may ask for them.
///
/// Without a command it serves, as `fluxserve serve` does.
#[derive(Debug, Parser)]
#[command(name = "fluxserve", version, long_version = version::long(), after_long_help = environment_help())]
pub struct Cli {
    /// What to do.
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
    /// Configuration file [default: ./fluxserve.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve over HTTP
    Serve(ServeArgs),
    /// Draw one image into a file, without a server
    Generate(GenerateArgs),
    /// Make, list, change and revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Set up a cluster whose namespaces keys can be let into
    #[command(subcommand)]
    Kubernetes(KubernetesCommand),
    /// Say who may manage the worker over HTTP
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Withdraw the links to images that need no key
    #[command(subcommand)]
    Links(LinksCommand),
    /// Copy the database into a file, also while a server runs
    Backup(BackupArgs),
    /// Fetch models, see which there are and whether they are complete
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Measure how fast this machine draws and loads, or what stands between an image's stages
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print the description of the HTTP API: OpenAPI 3.1, as JSON
    Openapi,
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for each command
    Man(ManArgs),
    /// Look for what keeps this machine from serving, and say how to mend it
    Doctor,
}

/// Options of `serve`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Where to listen [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Another address for the console and the management routes, which are then not to be had at the first
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// A model to serve, with the folder of its checkpoint unless it was downloaded; can be repeated [default:
    /// fluxserve/flux-shapes]
    #[arg(long = "model", value_name = "ID[=DIR]")]
    pub models: Vec<ModelSource>,
    /// Fetch models that are not here from the hub first, as `models download` does
    #[arg(long)]
    pub download: bool,
    /// Where to draw: auto, cpu, cuda, cuda:N, or several with commas between, each with an engine of its own [default:
    /// auto]
    #[arg(long, value_name = "DEVICE[,DEVICE]")]
    pub device: Option<Devices>,
    /// How to use it.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// How engines are built.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct EngineArgs {
    /// What does not stay on the device: none, or text, which comes for each new prompt only [default: none]
    #[arg(long, value_name = "WHAT")]
    pub offload: Option<Offload>,
    /// Draw the same bits in any company on CUDA, too, at the price of speed; on the CPU it is always so
    #[arg(long)]
    pub deterministic: bool,
    /// What computes attention and convolutions on CUDA: auto, the fastest kernels that prove right, or portable, those that
    /// every device has [default: auto]
    #[arg(long, value_name = "KERNELS")]
    pub kernels: Option<Kernels>,
    /// Linear layers in full, or in fp8: eight bits, which take half the memory, and are lossy [default: full]
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<Precision>,
}

impl EngineArgs {
    fn apply(self, flags: &mut Flags) {
        flags.offload = self.offload;
        flags.is_deterministic = self.deterministic;
        flags.kernels = self.kernels;
        flags.precision = self.precision;
    }
}

/// Does what the command line asks for.
///
/// # Errors
/// Whatever kept it from being done, in words for the person who asked.
pub async fn run(cli: Cli, input: PasswordInput<'_>, out: &mut dyn Write, notes: &mut dyn Write) -> anyhow::Result<()> {
    shutdown::outlive_file_size_limit();
    let mut flags = Flags { config_file: cli.shared.config, data_dir: cli.shared.data_dir, ..Flags::default() };
    match cli.command.unwrap_or(Command::Serve(ServeArgs::default())) {
        Command::Serve(arguments) => {
            flags.listen = arguments.listen;
            flags.admin_listen = arguments.admin_listen;
            flags.models = arguments.models;
            flags.device = arguments.device;
            arguments.engine.apply(&mut flags);
            flags.download = arguments.download;
            let config = Config::load(flags)?;
            // Not by way of `out`, which would have the worker wait for its reader.
            let greeting = Pipe::start("greeting", io::stdout())?;
            app::serve(config, shutdown::on_signals()?, greeting).await
        }
        Command::Generate(arguments) => {
            flags.device = arguments.device.map(Into::into);
            arguments.engine.clone().apply(&mut flags);
            let config = Config::load(flags)?;
            let request = arguments.into_request(&config, || Ok(random_seed()?), notes)?;
            generate::run(&config, request)
        }
        Command::Keys(command) => keys::run(command, &Config::load(flags)?, out, notes).await,
        Command::Kubernetes(command) => kubernetes::run(command, &Config::load(flags)?, out, notes).await,
        Command::Admin(command) => admin::run(command, &Config::load(flags)?, input, notes).await,
        Command::Links(command) => links::run(&command, &Config::load(flags)?, notes),
        Command::Backup(arguments) => backup::run(&arguments, &Config::load(flags)?, notes).await,
        Command::Models(command) => models::run(command, &Config::load(flags)?, out, notes).await,
        Command::Bench(command) => {
            command.apply(&mut flags);
            bench::run(command, &Config::load(flags)?, out, notes)
        }
        Command::Openapi => Ok(writeln!(out, "{}", app::api_description())?),
        Command::Completions(arguments) => shell::completions(&arguments, out),
        Command::Man(arguments) => shell::man(&arguments, out),
        Command::Doctor => app::doctor(&Config::load(flags)?, out).await,
    }
}

fn environment_help() -> String {
    use std::fmt::Write as _;

    let mut help = String::from(
        "Environment variables (a file's fields win over defaults, these over the file, options over these):\n",
    );
    for variable in VARIABLES {
        writeln!(help, "  {:<36} {}", variable.name, variable.meaning).expect("a string takes all");
    }
    help
}

#[cfg(test)]
mod tests;
