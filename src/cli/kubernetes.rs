//! `fluxserve kubernetes`: setup of a cluster whose namespaces keys can be granted.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::table::to_the_second;
use crate::app;
use crate::config::Config;

/// Commands on the cluster.
#[derive(Debug, Subcommand)]
pub enum KubernetesCommand {
    /// Print the objects that a cluster needs once, as YAML for `kubectl apply -f -`
    Manifest(ManifestArgs),
    /// Create the worker's own access to the cluster, with an administrator's kubeconfig
    ///
    /// Makes a token of the worker's account, valid for a week and renewed by the running worker, and writes it into the data
    /// folder. Keeps nothing of the administrator's credentials.
    Connect(ConnectArgs),
    /// Check what works and what is missing
    Check,
}

/// Options of `kubernetes manifest`.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    /// Include the rights to open any namespace, which make the worker an administrator of the cluster
    #[arg(long)]
    pub auto_open: bool,
}

/// Options of `kubernetes connect`.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// A kubeconfig with full rights in the worker's namespace
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Its context [default: the current one]
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
                "the worker has access to the cluster, valid until {} and renewed while it runs; `fluxserve serve` on this data \
                 folder uses it from its next start",
                to_the_second(connected.token_ends_at)
            )?;
            if connected.is_unverified {
                writeln!(
                    notes,
                    "warning: the API server's certificate is not verified, because the administrator's kubeconfig has \
                     `insecure-skip-tls-verify`; so have the worker's and those for keys"
                )?;
            }
            Ok(())
        }
        KubernetesCommand::Check => app::kubernetes_check(config, out).await,
    }
}
