//! kubectl for holders of keys: which namespaces of a cluster they can be let into, tokens for that, and the end of these
//! tokens when the key's right ends.
//!
//! Each open namespace has an account of its own, in the one namespace that the worker owns. A key gets tokens of that
//! account, ten minutes long, bound to a Secret that stands for this key and this namespace; when the Secret goes, they
//! die. What a token is good for is the cluster's to say, by the rights of the account: the worker has none there.
//!
//! Must not know how keys are stored; whether one has a right is asked of [`Rights`]. Speaks to the cluster in
//! `cluster.rs` alone.

mod check;
mod cluster;
mod connect;
mod credential;
mod granted;
mod keeper;
mod manifest;
mod namespace;
mod namespaces;
mod store;
mod token;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use time::OffsetDateTime;

pub use check::{CheckLine, check};
pub use cluster::{Cluster, ClusterAccess, ClusterError, ClusterSettings, NoCluster};
pub use connect::{ConnectError, Connected, connect};
pub use credential::{Credential, CredentialRecord};
pub use manifest::{ExecVersion, UnknownExecVersion, manifest, namespace_objects};
pub use namespace::{Missing, Namespace, ReservedNamespace, Standing};
pub use namespaces::unknown_namespaces;
pub use store::Removal;
pub use token::Token;

use crate::domain::clock::{Clock, to_the_millisecond};
use crate::domain::ids::{KeyId, NamespaceId};
use crate::domain::namespace::NamespaceName;
use crate::domain::rates::Rates;
use crate::store::{Store, StoreError};
use granted::Granted;
use store::KubernetesStore;

/// Most namespaces of one worker.
pub const NAMESPACES_MAX: u32 = 1000;
/// Tokens that one key gets in a minute. kubectl asks for one in each of its runs, and up to ten times where its token
/// has just died.
pub const CREDENTIALS_PER_MINUTE: u32 = 60;

/// Who tokens are made for: one value of a key. After a rotation the old value and the new one are two of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The key.
    pub key: KeyId,
    /// The public part of its value.
    pub prefix: String,
}

/// What the keys' side tells: whether somebody has a right now.
pub trait Rights: Send + Sync {
    /// Whether the key's value works and its scope covers the namespace.
    fn covers<'a>(&'a self, holder: &'a Holder, namespace: NamespaceId) -> BoxFuture<'a, Result<bool, RightsUnknown>>;
}

/// It cannot be told now. The text is for the log.
#[derive(Debug, thiserror::Error)]
#[error("whether a key has a right cannot be told: {0}")]
pub struct RightsUnknown(pub String);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// Nothing says where a cluster is.
    #[error("no cluster is configured")]
    NotConfigured,
    /// There is no such namespace here.
    #[error("there is no such namespace")]
    NamespaceNotFound,
    /// Another namespace has that name.
    #[error("there is a namespace of that name already")]
    NameTaken,
    /// No key is to be let in there.
    #[error(transparent)]
    Reserved(ReservedNamespace),
    /// [`NAMESPACES_MAX`].
    #[error("there are {NAMESPACES_MAX} namespaces already")]
    TooManyNamespaces,
    /// The cluster lacks what opens the namespace.
    #[error("the namespace {0} is not open in the cluster yet")]
    Pending(NamespaceName),
    /// The key has got as many tokens as it may.
    #[error("more than {CREDENTIALS_PER_MINUTE} tokens a minute, try again in {retry_after_seconds} s")]
    RateLimited {
        /// When the next one can be had.
        retry_after_seconds: u64,
    },
    /// The key's right has ended while its token was made.
    #[error("the key's right has ended meanwhile")]
    RightEnded,
    /// The cluster did not do as asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The keys cannot be read.
    #[error(transparent)]
    Rights(#[from] RightsUnknown),
    /// The database failed.
    #[error(transparent)]
    Store(StoreError),
    /// Somebody else has written into a table.
    #[error("a row cannot be read: column {column}")]
    CorruptRow {
        /// The column that makes no sense.
        column: &'static str,
    },
}

/// What the service is made of.
pub struct KubernetesParts {
    /// The database.
    pub store: Store,
    /// The cluster. `None`: there is none, and nothing but the names of namespaces can be told.
    pub cluster: Option<Cluster>,
    /// The keys' side.
    pub rights: Arc<dyn Rights>,
    /// Where "now" comes from.
    pub clock: Arc<dyn Clock>,
    /// Whether the worker opens namespaces by itself.
    pub auto_open: bool,
}

/// How the cluster stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Where clients find the API server.
    pub server: String,
    /// The namespace that the worker owns.
    pub holder: NamespaceName,
    /// Whether the worker opens namespaces by itself.
    pub auto_open: bool,
    /// Which Kubernetes it is, or why that cannot be told.
    pub version: Result<String, ClusterError>,
    /// What has to go from the cluster, and is not known to be gone.
    pub removals: Vec<Removal>,
}

/// The service. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Kubernetes(Arc<Inner>);

struct Inner {
    store: KubernetesStore,
    cluster: Option<Cluster>,
    rights: Arc<dyn Rights>,
    clock: Arc<dyn Clock>,
    auto_open: bool,
    rates: Rates,
    granted: Granted,
}

impl Kubernetes {
    /// The service, made of `parts`.
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

    /// How the cluster stands. Asks it, for some seconds at most.
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
    fn cluster(&self) -> Result<&Cluster, KubernetesError> {
        self.cluster.as_ref().ok_or(KubernetesError::NotConfigured)
    }

    fn now(&self) -> OffsetDateTime {
        to_the_millisecond(self.clock.now())
    }
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes").field("cluster", &self.0.cluster).finish_non_exhaustive()
    }
}
