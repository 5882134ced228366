//! Management of namespaces that keys can be granted.

use super::cluster::{Cluster, ClusterError};
use super::error::KubernetesError;
use super::manifest::{ExecVersion, kubeconfig, namespace_objects};
use super::namespace::{NAMESPACES_MAX, Namespace, ReservedNamespace, Standing};
use super::service::{Inner, Kubernetes};
use super::store::KubernetesStore;
use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;
use crate::store::Store;

/// Problem of a namespace that is no longer the one that the worker opened.
const RECREATED: &str = "the cluster's namespace was deleted and recreated since the worker opened it, so it is not opened for \
                         the keys granted before: delete it here and add it again, or apply its objects by hand";

/// Those of `ids` without a namespace in `store`, with or without a cluster.
///
/// # Errors
/// When the database fails.
pub async fn unknown_namespaces(store: &Store, ids: &[NamespaceId]) -> Result<Vec<NamespaceId>, KubernetesError> {
    KubernetesStore::new(store.clone()).unknown(ids).await
}

impl Kubernetes {
    /// All namespaces, by name.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`], or when the database fails.
    pub async fn namespaces(&self) -> Result<Vec<Namespace>, KubernetesError> {
        self.0.cluster()?;
        self.0.store.namespaces().await
    }

    /// Those of `ids` without a namespace.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unknown(&self, ids: &[NamespaceId]) -> Result<Vec<NamespaceId>, KubernetesError> {
        self.0.store.unknown(ids).await
    }

    /// A namespace.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`], [`KubernetesError::NamespaceNotFound`], or when the database fails.
    pub async fn namespace(&self, id: NamespaceId) -> Result<Namespace, KubernetesError> {
        self.0.cluster()?;
        self.0.namespace(id).await
    }

    /// Adds a namespace and checks its status in the cluster. It need not exist there yet.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`], [`KubernetesError::Reserved`], [`KubernetesError::NameTaken`],
    /// [`KubernetesError::TooManyNamespaces`], or when the database fails.
    pub async fn create_namespace(&self, name: &NamespaceName) -> Result<Namespace, KubernetesError> {
        let cluster = self.0.cluster()?;
        refuse_reserved(name, cluster)?;
        if self.0.store.count_namespaces().await? >= NAMESPACES_MAX {
            return Err(KubernetesError::TooManyNamespaces);
        }
        let id = NamespaceId::generate();
        self.0.store.insert_namespace(id, name, self.0.now()).await?;
        let namespace = self.0.namespace(id).await?;
        self.0.check(cluster, &namespace).await?;
        self.0.namespace(id).await
    }

    /// Points an id to another namespace of the cluster. Scopes with the id follow; tokens are revoked. Closes the old
    /// namespace if the worker opened it.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`], [`KubernetesError::NamespaceNotFound`], [`KubernetesError::Reserved`],
    /// [`KubernetesError::NameTaken`], or when the database fails.
    pub async fn rename_namespace(&self, id: NamespaceId, name: &NamespaceName) -> Result<Namespace, KubernetesError> {
        let cluster = self.0.cluster()?;
        let namespace = self.0.namespace(id).await?;
        if namespace.name == *name {
            return Ok(namespace);
        }
        refuse_reserved(name, cluster)?;
        if !self.0.store.rename_namespace(&namespace, name, self.0.auto_open, self.0.now()).await? {
            return Err(KubernetesError::NamespaceNotFound);
        }
        self.0.check(cluster, &self.0.namespace(id).await?).await?;
        self.0.namespace(id).await
    }

    /// Removes a namespace and revokes all tokens for it. Objects that the administrator applied in the cluster stay; what the
    /// worker opened, it closes.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`], [`KubernetesError::NamespaceNotFound`], or when the database fails.
    pub async fn delete_namespace(&self, namespace: &Namespace) -> Result<(), KubernetesError> {
        self.0.cluster()?;
        let is_deleted = self.0.store.delete_namespace(namespace, self.0.auto_open, self.0.now()).await?;
        if is_deleted { Ok(()) } else { Err(KubernetesError::NamespaceNotFound) }
    }

    /// Objects that open a namespace, for the administrator to apply, as YAML.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`].
    pub fn objects(&self, namespace: &NamespaceName) -> Result<String, KubernetesError> {
        Ok(namespace_objects(self.0.cluster()?.holder(), namespace))
    }

    /// The kubeconfig for clients. `worker` is this worker's address for clients: scheme, host and port, without characters
    /// special to a shell.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`].
    pub fn kubeconfig(
        &self,
        namespace: &Namespace,
        worker: &str,
        version: ExecVersion,
    ) -> Result<String, KubernetesError> {
        Ok(kubeconfig(self.0.cluster()?.server(), namespace, worker, version))
    }
}

impl Inner {
    pub(super) async fn namespace(&self, id: NamespaceId) -> Result<Namespace, KubernetesError> {
        self.store.namespace(id).await?.ok_or(KubernetesError::NamespaceNotFound)
    }

    /// Checks the status of a namespace, opens it if the worker does that, and records the status.
    pub(super) async fn check(&self, cluster: &Cluster, namespace: &Namespace) -> Result<Standing, KubernetesError> {
        let name = &namespace.name;
        if let Some(reserved) = reserved(name, cluster.holder()) {
            let standing = Standing { problem: Some(reserved.to_string()), ..Standing::default() };
            self.store.note_standing(namespace, &standing, self.now()).await?;
            return Ok(standing);
        }
        let mut found = cluster.status_of(name).await;
        let mut has_opened = false;
        if self.auto_open && namespace.cluster_uid.is_none() && matches!(&found, Ok(standing) if standing.is_open) {
            // Opened by hand, or before the worker recorded uids. A failure here recurs below when it matters.
            let _ = self.is_still_the_same(cluster, namespace).await?;
        }
        if self.auto_open && matches!(&found, Ok(standing) if !standing.is_open) {
            found = match self.is_still_the_same(cluster, namespace).await? {
                Ok(true) => {
                    has_opened = true;
                    match cluster.open_namespace(name).await {
                        Ok(()) => cluster.status_of(name).await,
                        Err(error) => Err(error),
                    }
                }
                Ok(false) => found.map(|standing| Standing { problem: Some(RECREATED.to_owned()), ..standing }),
                Err(error) => Err(error),
            };
        }
        let standing = found.unwrap_or_else(|error| Standing {
            // Stays open if it was: a cluster that is unreachable for a moment closes nothing.
            problem: Some(error.to_string()),
            ..namespace.standing.clone()
        });
        if standing.is_open != namespace.standing.is_open {
            tracing::info!(namespace = %name, is_open = standing.is_open, "the status of a namespace has changed");
        }
        if let Some(problem) = standing.problem.as_deref().filter(|_| standing.problem != namespace.standing.problem) {
            tracing::warn!(namespace = %name, problem, "a namespace has a problem");
        }
        let is_noted = self.store.note_standing(namespace, &standing, self.now()).await?;
        if has_opened && !is_noted {
            // It was renamed or removed meanwhile, and this may have reopened what that closed.
            self.store.close_unless_entered(name, self.now()).await?;
        }
        Ok(standing)
    }

    /// Whether the cluster's namespace is still the one that the worker opened before, if it did.
    async fn is_still_the_same(
        &self,
        cluster: &Cluster,
        namespace: &Namespace,
    ) -> Result<Result<bool, ClusterError>, KubernetesError> {
        let uid = match cluster.uid_of(&namespace.name).await {
            Ok(uid) => uid,
            Err(error) => return Ok(Err(error)),
        };
        Ok(Ok(self.store.note_uid(namespace, &uid).await? == Some(uid)))
    }
}

fn refuse_reserved(name: &NamespaceName, cluster: &Cluster) -> Result<(), KubernetesError> {
    reserved(name, cluster.holder()).map_or(Ok(()), |reserved| Err(KubernetesError::Reserved(reserved)))
}

/// Why a namespace of this name cannot be granted to keys, if so.
pub(super) fn reserved(name: &NamespaceName, holder: &NamespaceName) -> Option<ReservedNamespace> {
    if name == holder {
        Some(ReservedNamespace::Holder(name.clone()))
    } else if name.as_str().starts_with("kube-") {
        Some(ReservedNamespace::System(name.clone()))
    } else {
        None
    }
}
