//! `/v1/kubernetes`: the cluster, and the namespaces that keys can be let into.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::json;

use super::wire::kubernetes::{ClusterView, KubeconfigView, NamespaceBody, NamespaceListView, NamespaceView};
use crate::auth::AuditAction;
use crate::domain::spec::FieldError;
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::json::ApiJson;
use crate::http::extract::path::NamespacePath;
use crate::http::extract::query::Parameters;
use crate::http::openapi::schema::{one_of, yes};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::kubernetes::{ExecVersion, Namespace};

const UNAVAILABLE: [ErrorCode; 2] = [ErrorCode::KubernetesNotConfigured, ErrorCode::KubernetesUnavailable];

pub(in crate::http) async fn cluster(
    State(state): State<HttpState>,
    _: Administrator,
) -> Result<Json<ClusterView>, ApiError> {
    Ok(Json(state.kubernetes.status().await?.into()))
}

pub(in crate::http) fn cluster_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "get_cluster", "How the cluster stands")
        .answers::<ClusterView>(StatusCode::OK, "The cluster, also where it does not answer.")
        .refuses(UNAVAILABLE)
}

pub(in crate::http) async fn list(
    State(state): State<HttpState>,
    _: Administrator,
) -> Result<Json<NamespaceListView>, ApiError> {
    let namespaces = state.kubernetes.namespaces().await?;
    let data = namespaces.into_iter().map(|namespace| view(&state, namespace)).collect::<Result<_, _>>()?;
    Ok(Json(NamespaceListView { data }))
}

pub(in crate::http) fn list_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "list_namespaces", "The namespaces that keys can be let into, by name")
        .answers::<NamespaceListView>(StatusCode::OK, "All of them.")
        .refuses(UNAVAILABLE)
}

pub(in crate::http) async fn create(
    State(state): State<HttpState>,
    administrator: Administrator,
    ApiJson { value: NamespaceBody(name), .. }: ApiJson<NamespaceBody>,
) -> Result<(StatusCode, Json<NamespaceView>), ApiError> {
    let administrator = administrator.again(&state).await?;
    let namespace = state.kubernetes.create_namespace(&name).await?;
    note(&state, &administrator, AuditAction::NamespaceCreated, &namespace).await?;
    Ok((StatusCode::CREATED, Json(view(&state, namespace)?)))
}

pub(in crate::http) fn create_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "create_namespace", "Enter a namespace of the cluster")
        .says("It is open once the cluster has the two `objects` of the answer; the worker looks for them by itself.")
        .body::<NamespaceBody>(json!({ "name": "team-a" }))
        .answers::<NamespaceView>(StatusCode::CREATED, "The namespace.")
        .refuses(UNAVAILABLE)
        .refuses([ErrorCode::NamespaceExists])
}

pub(in crate::http) async fn edit(
    State(state): State<HttpState>,
    administrator: Administrator,
    NamespacePath(id): NamespacePath,
    ApiJson { value: NamespaceBody(name), .. }: ApiJson<NamespaceBody>,
) -> Result<Json<NamespaceView>, ApiError> {
    let administrator = administrator.again(&state).await?;
    let before = state.kubernetes.namespace(id).await?;
    let namespace = state.kubernetes.rename_namespace(id, &name).await?;
    if namespace.name != before.name {
        let detail = json!({ "namespace": namespace.name, "namespace_id": id, "was": before.name });
        state.admin.note(&administrator.actor(), AuditAction::NamespaceRenamed, None, detail).await?;
    }
    Ok(Json(view(&state, namespace)?))
}

pub(in crate::http) fn edit_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "rename_namespace", "Have an id stand for another namespace of the cluster")
        .says("Keys that name the id are let into the other one from now on; their tokens for the old one die.")
        .body::<NamespaceBody>(json!({ "name": "team-b" }))
        .answers::<NamespaceView>(StatusCode::OK, "The namespace as it is now.")
        .refuses(UNAVAILABLE)
        .refuses([ErrorCode::NamespaceExists])
}

pub(in crate::http) async fn remove(
    State(state): State<HttpState>,
    administrator: Administrator,
    NamespacePath(id): NamespacePath,
    mut parameters: Parameters,
) -> Result<StatusCode, ApiError> {
    let is_forced = parameters.take("force", "`true`, or left out").unwrap_or(false);
    parameters.finish()?;
    let namespace = state.kubernetes.namespace(id).await?;
    if is_forced {
        state.keys.withdraw_namespace(id, &administrator.actor()).await?;
    } else {
        let keys = state.keys.naming(id).await?;
        if !keys.is_empty() {
            let says = "take it out of their scopes first, or have that done with `force=true`, which revokes keys that \
                        are left with none";
            let key = |key: &crate::auth::KeyRecord| {
                FieldError::new(key.id.to_string(), format!("{} ({})", key.name, key.prefix))
            };
            let errors = keys.iter().map(key).collect();
            return Err(ApiError::new(ErrorCode::NamespaceInUse).with_detail(says).with_errors(errors));
        }
    }
    state.kubernetes.delete_namespace(&namespace).await?;
    note(&state, &administrator, AuditAction::NamespaceDeleted, &namespace).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in crate::http) fn remove_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "delete_namespace", "Take a namespace out")
        .says(
            "Refused while keys name it, which `errors` then lists by their ids. What was applied in the cluster stays \
             there, unless the worker has opened the namespace by itself.",
        )
        .query("force", yes(), "Take it out of the keys' scopes, and revoke keys that are left with none.")
        .answers_nothing(StatusCode::NO_CONTENT, "It is taken out; all tokens for it die.")
        .refuses(UNAVAILABLE)
        .refuses([ErrorCode::NamespaceInUse])
}

pub(in crate::http) async fn kubeconfig(
    State(state): State<HttpState>,
    _: Administrator,
    NamespacePath(id): NamespacePath,
    origin: Origin,
    mut parameters: Parameters,
) -> Result<Json<KubeconfigView>, ApiError> {
    let version: ExecVersion = parameters.take("api_version", "`v1` or `v1beta1`").unwrap_or_default();
    parameters.finish()?;
    let namespace = state.kubernetes.namespace(id).await?;
    let worker = origin.of_clients(&state.settings).ok_or_else(|| {
        let reason = "does not tell where clients reach this worker: set `http.public_url`";
        ApiError::invalid(vec![FieldError::new("host", reason)])
    })?;
    Ok(Json(KubeconfigView {
        namespace: namespace.name.to_string(),
        filename: format!("{}.kubeconfig", namespace.name),
        kubeconfig: state.kubernetes.kubeconfig(&namespace, &worker, version)?,
    }))
}

pub(in crate::http) fn kubeconfig_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "get_kubeconfig", "A file for kubectl")
        .says("It asks this worker for tokens with the key in `REMOTEGPU_API_KEY`, by way of sh and curl.")
        .query(
            "api_version",
            one_of(ExecVersion::ALL.map(ExecVersion::as_str)),
            "`v1beta1` for kubectl before 1.22. `v1`, when it is left out.",
        )
        .answers::<KubeconfigView>(StatusCode::OK, "The file.")
        .refuses(UNAVAILABLE)
}

fn view(state: &HttpState, namespace: Namespace) -> Result<NamespaceView, ApiError> {
    let objects = state.kubernetes.objects(&namespace.name)?;
    Ok(NamespaceView::of(namespace, objects))
}

async fn note(
    state: &HttpState,
    administrator: &Administrator,
    action: AuditAction,
    namespace: &Namespace,
) -> Result<(), ApiError> {
    let detail = json!({ "namespace": namespace.name, "namespace_id": namespace.id });
    Ok(state.admin.note(&administrator.actor(), action, None, detail).await?)
}
