//! The namespaces that keys can be let into: the administrator's side.

use super::manifest::{ExecVersion, kubeconfig, namespace_objects};
use super::namespace::{Namespace, ReservedNamespace, Standing};
use super::store::KubernetesStore;
use super::{Cluster, ClusterError, Inner, Kubernetes, KubernetesError, NAMESPACES_MAX};
use crate::domain::ids::NamespaceId;
use crate::domain::namespace::NamespaceName;
use crate::store::Store;

/// What the administrator reads of a namespace that is not the one which the worker has opened.
const MADE_ANEW: &str = "the cluster's namespace was deleted and made anew since the worker opened it, so it is not opened \
                         for the keys of before: delete it here and enter it again, or apply its objects by hand";

/// Those of `ids` that stand for no namespace in `store`, with or without a cluster.
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

    /// Those of `ids` that stand for no namespace.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unknown(&self, ids: &[NamespaceId]) -> Result<Vec<NamespaceId>, KubernetesError> {
        self.0.store.unknown(ids).await
    }

    /// One namespace.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`], [`KubernetesError::NamespaceNotFound`], or when the database fails.
    pub async fn namespace(&self, id: NamespaceId) -> Result<Namespace, KubernetesError> {
        self.0.cluster()?;
        self.0.namespace(id).await
    }

    /// Enters a namespace, and looks how it stands in the cluster. That it is not there yet is no error.
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
        self.0.look(cluster, &namespace).await?;
        self.0.namespace(id).await
    }

    /// Has an id stand for another namespace of the cluster. Scopes that name the id go with it, tokens do not: they die.
    /// What the worker has opened by the old name it closes.
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
        self.0.look(cluster, &self.0.namespace(id).await?).await?;
        self.0.namespace(id).await
    }

    /// Forgets a namespace. All tokens for it die. What the administrator has applied in the cluster stays; what the
    /// worker has opened it closes.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`], [`KubernetesError::NamespaceNotFound`], or when the database fails.
    pub async fn delete_namespace(&self, namespace: &Namespace) -> Result<(), KubernetesError> {
        self.0.cluster()?;
        let is_deleted = self.0.store.delete_namespace(namespace, self.0.auto_open, self.0.now()).await?;
        if is_deleted { Ok(()) } else { Err(KubernetesError::NamespaceNotFound) }
    }

    /// What the administrator applies to open a namespace, as YAML.
    ///
    /// # Errors
    /// [`KubernetesError::NotConfigured`].
    pub fn objects(&self, namespace: &NamespaceName) -> Result<String, KubernetesError> {
        Ok(namespace_objects(self.0.cluster()?.holder(), namespace))
    }

    /// The file for kubectl. `worker` is where clients reach this worker: scheme, host and port, of characters that mean
    /// nothing to a shell.
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

    /// Looks how a namespace stands, opens it where that is the worker's to do, and notes what was found.
    pub(super) async fn look(&self, cluster: &Cluster, namespace: &Namespace) -> Result<Standing, KubernetesError> {
        let name = &namespace.name;
        if let Some(reserved) = reserved(name, cluster.holder()) {
            let standing = Standing { problem: Some(reserved.to_string()), ..Standing::default() };
            self.store.note_standing(namespace, &standing, self.now()).await?;
            return Ok(standing);
        }
        let mut found = cluster.look_at(name).await;
        let mut has_opened = false;
        if self.auto_open && namespace.cluster_uid.is_none() && matches!(&found, Ok(standing) if standing.is_open) {
            // It was opened by hand, or before the worker remembered which one it was. What fails here fails again below, on
            // the day that it counts.
            let _ = self.is_still_what_it_was(cluster, namespace).await?;
        }
        if self.auto_open && matches!(&found, Ok(standing) if !standing.is_open) {
            found = match self.is_still_what_it_was(cluster, namespace).await? {
                Ok(true) => {
                    has_opened = true;
                    match cluster.open_namespace(name).await {
                        Ok(()) => cluster.look_at(name).await,
                        Err(error) => Err(error),
                    }
                }
                Ok(false) => found.map(|standing| Standing { problem: Some(MADE_ANEW.to_owned()), ..standing }),
                Err(error) => Err(error),
            };
        }
        let standing = found.unwrap_or_else(|error| Standing {
            // Whether it is open is as the last look found: a cluster that is away for a moment closes nothing.
            problem: Some(error.to_string()),
            ..namespace.standing.clone()
        });
        if standing.is_open != namespace.standing.is_open {
            tracing::info!(namespace = %name, is_open = standing.is_open, "a namespace stands otherwise than before");
        }
        if let Some(problem) = standing.problem.as_deref().filter(|_| standing.problem != namespace.standing.problem) {
            tracing::warn!(namespace = %name, problem, "a namespace is to be seen to");
        }
        let is_noted = self.store.note_standing(namespace, &standing, self.now()).await?;
        if has_opened && !is_noted {
            // It was renamed or forgotten meanwhile, and what that closed may have been opened again just now.
            self.store.close_unless_entered(name, self.now()).await?;
        }
        Ok(standing)
    }

    /// Whether the cluster's namespace is the one that the worker has opened before, where it has.
    async fn is_still_what_it_was(
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

/// Why no key is let into a namespace of this name, if so.
pub(super) fn reserved(name: &NamespaceName, holder: &NamespaceName) -> Option<ReservedNamespace> {
    if name == holder {
        Some(ReservedNamespace::Holder(name.clone()))
    } else if name.as_str().starts_with("kube-") {
        Some(ReservedNamespace::System(name.clone()))
    } else {
        None
    }
}
