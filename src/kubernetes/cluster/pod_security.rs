//! Pod Security: whether the pods of a namespace are kept from the node that they run on. Who may start pods in a namespace
//! where they are not has the node, and with it every pod and token there.

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::{ClusterError, in_time};
use crate::domain::namespace::NamespaceName;
use crate::kubernetes::manifest::USER_ROLE;

/// The label by which a namespace says what its pods may be.
const LABEL: &str = "pod-security.kubernetes.io/enforce";
/// The level that leaves pods least.
const RESTRICTED: &str = "restricted";
/// The levels that keep pods from their node.
const LEVELS: [&str; 2] = [RESTRICTED, "baseline"];

/// What is to be seen to in a namespace whose pods may take over their node, seen with the rights of `client`.
pub(super) async fn fault(client: &Client, namespace: &NamespaceName) -> Result<Option<String>, ClusterError> {
    match level(client, namespace).await {
        Ok(Some(level)) if LEVELS.contains(&level.as_str()) => Ok(None),
        Ok(level) => {
            let found = level.map_or_else(
                || format!("the namespace has no label `{LABEL}`"),
                |level| format!("the namespace's label `{LABEL}` is `{level}`"),
            );
            Ok(Some(format!(
                "{found}: unless the cluster forbids it otherwise, whoever is let in can start pods that take over their \
                 node; run `kubectl label --overwrite namespace {namespace} {LABEL}={RESTRICTED}`"
            )))
        }
        Err(ClusterError::Forbidden(_)) => Ok(Some(format!(
            "whether its pods are kept from their node cannot be told, because the role `{USER_ROLE}` has no `get` on \
             namespaces: apply what `fluxserve kubernetes manifest` prints"
        ))),
        Err(error) => Err(error),
    }
}

/// Keeps the pods of a namespace from their node, unless it says already what they may be. Pods that are there go on.
pub(super) async fn restrict(client: &Client, namespace: &NamespaceName) -> Result<(), ClusterError> {
    if level(client, namespace).await?.is_some() {
        return Ok(());
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let labelled = Patch::Merge(json!({ "metadata": { "labels": { LABEL: RESTRICTED } } }));
    in_time(namespaces.patch(namespace.as_str(), &PatchParams::default(), &labelled)).await.map(drop)
}

async fn level(client: &Client, namespace: &NamespaceName) -> Result<Option<String>, ClusterError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = in_time(namespaces.get(namespace.as_str())).await?;
    Ok(found.metadata.labels.and_then(|mut labels| labels.remove(LABEL)))
}
