//! `fluxserve kubernetes`: setting up a cluster whose namespaces keys can be let into.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::table::to_the_second;
use crate::app;
use crate::config::Config;

/// What to do about the cluster.
#[derive(Debug, Subcommand)]
pub enum KubernetesCommand {
    /// Print what a cluster needs, once, as YAML: for `kubectl apply -f -`
    Manifest(ManifestArgs),
    /// Get the worker its own way into the cluster, by way of an administrator's kubeconfig
    ///
    /// Makes a token of the worker's account, good for a week and renewed by the worker while it runs, and writes it into
    /// the data folder. Nothing of the administrator's is kept.
    Connect(ConnectArgs),
    /// Say what works and what is missing
    Check,
}

/// Options of `kubernetes manifest`.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    /// With the rights to open any namespace by itself, which make the worker as good as an administrator of the cluster
    #[arg(long)]
    pub auto_open: bool,
}

/// Options of `kubernetes connect`.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The kubeconfig of somebody who may do anything in the worker's namespace
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Which of its contexts [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Runs one of the commands.
pub(super) async fn run(
    command: KubernetesCommand,
    config: &Config,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    match command {
        KubernetesCommand::Manifest(arguments) => {
            write!(out, "{}", app::kubernetes_manifest(config, arguments.auto_open))?;
            Ok(())
        }
        KubernetesCommand::Connect(arguments) => {
            let connected = app::kubernetes_connect(config, arguments.kubeconfig, arguments.context).await?;
            writeln!(out, "{}", connected.kubeconfig.display())?;
            writeln!(
                notes,
                "the worker has a way into the cluster, good until {} and renewed while it runs; it is used from the next \
                 start of `fluxserve serve` on this data folder",
                to_the_second(connected.token_ends_at)
            )?;
            if connected.is_unverified {
                writeln!(
                    notes,
                    "warning: the API server's certificate is not looked at, because the administrator's kubeconfig says \
                     `insecure-skip-tls-verify`; the worker's says so, too, and those for holders of keys will"
                )?;
            }
            Ok(())
        }
        KubernetesCommand::Check => app::kubernetes_check(config, out).await,
    }
}
