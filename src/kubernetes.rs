//! kubectl for holders of keys: the namespaces of a cluster that keys can be granted, tokens for them, and the end of these
//! tokens when the key's permission ends.
//!
//! Each open namespace has a service account of its own, in the one namespace that the worker owns. A key gets ten-minute
//! tokens of that account, bound to a Secret per key value and namespace; deleting the Secret invalidates them. What a token
//! may do is decided by the account's rights in the cluster: the worker itself has none there.
//!
//! Must not know how keys are stored: asks [`Rights`] whether a key has a permission. Only `cluster.rs` talks to the
//! cluster.

mod check;
mod cluster;
mod connect;
mod credential;
mod error;
mod granted;
mod keeper;
mod manifest;
mod namespace;
mod namespaces;
mod rights;
mod service;
mod store;
mod token;

pub use check::{CheckLine, check};
pub use cluster::{Cluster, ClusterAccess, ClusterError, ClusterSettings, NoCluster};
pub use connect::{ConnectError, Connected, connect};
pub use credential::{Credential, CredentialRecord};
pub use error::KubernetesError;
pub use manifest::{ExecVersion, UnknownExecVersion, manifest, namespace_objects};
pub use namespace::{Missing, NAMESPACES_MAX, Namespace, ReservedNamespace, Standing};
pub use namespaces::unknown_namespaces;
pub use rights::{Holder, Rights, RightsUnknown};
pub use service::{ClusterStatus, Kubernetes, KubernetesParts};
pub use store::Removal;
pub use token::{CREDENTIALS_PER_MINUTE, Token};
