//! The service: its parts, and the status of the cluster.

use std::fmt;
use std::sync::Arc;

use time::OffsetDateTime;

use super::cluster::{Cluster, ClusterError};
use super::error::KubernetesError;
use super::granted::Granted;
use super::rights::Rights;
use super::store::{KubernetesStore, Removal};
use crate::domain::clock::{Clock, to_the_millisecond};
use crate::domain::namespace::NamespaceName;
use crate::domain::rates::Rates;
use crate::store::Store;

/// The parts of the service.
pub struct KubernetesParts {
    /// The database.
    pub store: Store,
    /// The cluster. `None` if none is configured: only the names of namespaces are known.
    pub cluster: Option<Cluster>,
    /// The keys' side.
    pub rights: Arc<dyn Rights>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Whether the worker opens namespaces by itself.
    pub auto_open: bool,
}

/// Status of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Address of the API server for clients.
    pub server: String,
    /// The namespace that the worker owns.
    pub holder: NamespaceName,
    /// Whether the worker opens namespaces by itself.
    pub auto_open: bool,
    /// Version of Kubernetes, or why it is unknown.
    pub version: Result<String, ClusterError>,
    /// Pending removals from the cluster.
    pub removals: Vec<Removal>,
}

/// The service. Cheap to clone; clones share all state.
#[derive(Clone)]
pub struct Kubernetes(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) store: KubernetesStore,
    pub(super) cluster: Option<Cluster>,
    pub(super) rights: Arc<dyn Rights>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) auto_open: bool,
    pub(super) rates: Rates,
    pub(super) granted: Granted,
}

impl Kubernetes {
    /// The service with these parts.
    #[must_use]
    pub fn new(parts: KubernetesParts) -> Self {
        let KubernetesParts { store, cluster, rights, clock, auto_open } = parts;
        let store = KubernetesStore::new(store);
        Self(Arc::new(Inner {
            store,
            cluster,
            rights,
            clock,
            auto_open,
            rates: Rates::new(),
            granted: Granted::default(),
        }))
    }

    /// Status of the cluster. Asks it, for some seconds at most.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`], or when the database fails.
    pub async fn status(&self) -> Result<ClusterStatus, KubernetesError> {
        let cluster = self.0.cluster()?;
        Ok(ClusterStatus {
            server: cluster.server().url.clone(),
            holder: cluster.holder().clone(),
            auto_open: self.0.auto_open,
            version: cluster.version().await,
            removals: self.0.store.removals().await?,
        })
    }
}

impl Inner {
    pub(super) fn cluster(&self) -> Result<&Cluster, KubernetesError> {
        self.cluster.as_ref().ok_or(KubernetesError::NotConfigured)
    }

    pub(super) fn now(&self) -> OffsetDateTime {
        to_the_millisecond(self.clock.now())
    }
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes").field("cluster", &self.0.cluster).finish_non_exhaustive()
    }
}
