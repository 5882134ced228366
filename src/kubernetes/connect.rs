//! `kubernetes connect`: creates the worker's own access to the cluster, once, with an administrator's rights.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::cluster::{Cluster, ClusterError, ClusterSettings, NoCluster};
use super::manifest::worker_kubeconfig;
use crate::store::private_file::{create_private_folder, open_private};

/// Why no access was created.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The administrator's kubeconfig cannot be used.
    #[error(transparent)]
    NoCluster(#[from] NoCluster),
    /// The worker's account does not exist.
    #[error("the cluster does not know the worker yet: first run `fluxserve kubernetes manifest | kubectl apply -f -`")]
    NoAccount,
    /// The cluster failed.
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    /// The files cannot be written.
    #[error("writing `{}`", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The worker's access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The worker's kubeconfig.
    pub kubeconfig: PathBuf,
    /// When its token expires, unless the worker renews it.
    pub token_ends_at: OffsetDateTime,
    /// Whether the API server's certificate is not verified, as the administrator's kubeconfig says.
    pub is_unverified: bool,
}

/// Requests a token for the worker's own account with the rights of `administrator`, and writes it into `folder` with a
/// kubeconfig beside it, readable by this user alone. The administrator's credentials are not kept.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(administrator: &ClusterSettings, folder: &Path) -> Result<Connected, ConnectError> {
    let cluster = Cluster::open(administrator).await?;
    let minted = cluster.mint_own().await.map_err(|error| match error {
        ClusterError::Missing { .. } => ConnectError::NoAccount,
        error => error.into(),
    })?;
    let kubeconfig = folder.join("kubeconfig");
    let written = (|| {
        create_private_folder(folder)?;
        // The kubeconfig last: if it exists, its token does too.
        write_private(&folder.join("token"), minted.token.reveal())?;
        write_private(&kubeconfig, &worker_kubeconfig(cluster.server(), cluster.holder()))
    })();
    written.map_err(|source| ConnectError::File { path: folder.to_owned(), source })?;
    Ok(Connected { kubeconfig, token_ends_at: minted.expires_at, is_unverified: cluster.server().is_unverified })
}

/// Writes a file atomically, readable by this user alone.
pub(super) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = open_private(OpenOptions::new().write(true).create(true).truncate(true), &new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}
