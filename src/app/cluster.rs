//! `kubernetes`: the objects that a cluster needs, the worker's access to it, and a check of both.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::config::Config;
use crate::domain::clock::{Clock as _, SystemClock};
use crate::kubernetes::{self, Cluster, ClusterAccess, ClusterSettings, Connected};

/// How to reach the cluster. `None` if none is configured.
pub(super) fn cluster_settings(config: &Config) -> Option<ClusterSettings> {
    let kubernetes = &config.kubernetes;
    let own = || Some(config.own_kubeconfig()).filter(|path| path.exists());
    let access = if kubernetes.in_cluster {
        ClusterAccess::InCluster
    } else {
        ClusterAccess::Kubeconfig {
            path: kubernetes.kubeconfig.clone().or_else(own)?,
            context: None,
            allow_exec_plugins: kubernetes.allow_exec_plugins,
        }
    };
    Some(ClusterSettings { access, server: kubernetes.server.clone(), holder: kubernetes.namespace.clone() })
}

/// The objects that a cluster needs, as YAML.
pub fn kubernetes_manifest(config: &Config, auto_open: bool) -> String {
    kubernetes::manifest(&config.kubernetes.namespace, auto_open || config.kubernetes.auto_open)
}

/// Creates the worker's own access to a cluster, with the rights of an administrator's kubeconfig.
///
/// # Errors
/// When the cluster refuses, or the files cannot be written.
pub async fn kubernetes_connect(
    config: &Config,
    administrator: PathBuf,
    context: Option<String>,
) -> anyhow::Result<Connected> {
    let settings = ClusterSettings {
        // Whoever names it on the command line lets kubectl run the same programs.
        access: ClusterAccess::Kubeconfig { path: administrator, context, allow_exec_plugins: true },
        server: None,
        holder: config.kubernetes.namespace.clone(),
    };
    Ok(kubernetes::connect(&settings, &config.kubernetes_dir()).await?)
}

/// Writes what works and what is missing.
///
/// # Errors
/// When anything is missing.
pub async fn kubernetes_check(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let settings = cluster_settings(config).context(
        "no cluster is configured: run `fluxserve kubernetes connect --kubeconfig ~/.kube/config`, or set \
         `kubernetes.kubeconfig`",
    )?;
    let cluster = Cluster::open(&settings).await.context("finding the cluster")?;
    let lines = kubernetes::check(&cluster, config.kubernetes.auto_open, SystemClock.now()).await;
    for line in &lines {
        match &line.found {
            Ok(fact) => writeln!(out, "ok     {}: {fact}", line.subject)?,
            Err(fault) => writeln!(out, "FAULT  {}: {fault}", line.subject)?,
        }
    }
    let faults = lines.iter().filter(|line| line.found.is_err()).count();
    if faults > 0 {
        bail!("{faults} of the above keep keys out of their namespaces");
    }
    Ok(())
}
