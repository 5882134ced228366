//! Pod Security: whether pods of a namespace are isolated from their node. Without it, a client that may start pods controls
//! the node, with every pod and token there.

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::deadline::in_time;
use super::error::ClusterError;
use crate::domain::namespace::NamespaceName;
use crate::kubernetes::manifest::USER_ROLE;

/// The label with a namespace's Pod Security level.
const LABEL: &str = "pod-security.kubernetes.io/enforce";
/// The strictest level.
const RESTRICTED: &str = "restricted";
/// The levels that isolate pods from their node.
const LEVELS: [&str; 2] = [RESTRICTED, "baseline"];

/// Problem of a namespace whose pods may take over their node, read with the rights of `client`.
pub(super) async fn fault(client: &Client, namespace: &NamespaceName) -> Result<Option<String>, ClusterError> {
    match level(client, namespace).await {
        Ok(Some(level)) if LEVELS.contains(&level.as_str()) => Ok(None),
        Ok(level) => {
            let found = level.map_or_else(
                || format!("the namespace has no label `{LABEL}`"),
                |level| format!("the namespace's label `{LABEL}` is `{level}`"),
            );
            Ok(Some(format!(
                "{found}: unless the cluster forbids it otherwise, clients can start pods that take over their node; \
                 run `kubectl label --overwrite namespace {namespace} {LABEL}={RESTRICTED}`"
            )))
        }
        Err(ClusterError::Forbidden(_)) => Ok(Some(format!(
            "cannot tell whether its pods are isolated from their node, because the role `{USER_ROLE}` has no `get` on \
             namespaces: apply what `fluxserve kubernetes manifest` prints"
        ))),
        Err(error) => Err(error),
    }
}

/// Isolates the pods of a namespace from their node, unless it has a level already. Running pods are not affected.
pub(super) async fn restrict(client: &Client, namespace: &NamespaceName) -> Result<(), ClusterError> {
    if level(client, namespace).await?.is_some() {
        return Ok(());
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let labeled = Patch::Merge(json!({ "metadata": { "labels": { LABEL: RESTRICTED } } }));
    in_time(namespaces.patch(namespace.as_str(), &PatchParams::default(), &labeled)).await.map(drop)
}

async fn level(client: &Client, namespace: &NamespaceName) -> Result<Option<String>, ClusterError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = in_time(namespaces.get(namespace.as_str())).await?;
    Ok(found.metadata.labels.and_then(|mut labels| labels.remove(LABEL)))
}
