//! `/v1/kubernetes`: the cluster, and the namespaces that keys can have access to.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::json;

use super::wire::kubernetes::{ClusterView, KubeconfigView, NamespaceBody, NamespaceListView, NamespaceView};
use crate::auth::AuditAction;
use crate::domain::spec::FieldError;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::administrator::Administrator;
use crate::http::extract::json::ApiJson;
use crate::http::extract::path::NamespacePath;
use crate::http::extract::query::Parameters;
use crate::http::openapi::schema::{one_of, only_true};
use crate::http::openapi::{Operation, Tag};
use crate::http::origin::Origin;
use crate::http::state::HttpState;
use crate::kubernetes::{ExecVersion, Namespace};

const UNAVAILABLE: [ErrorCode; 2] = [ErrorCode::KubernetesNotConfigured, ErrorCode::KubernetesUnavailable];

pub(in crate::http) async fn cluster(
    State(state): State<HttpState>,
    _: Administrator,
) -> Result<Json<ClusterView>, ApiError> {
    Ok(Json(state.kubernetes.status().await?.into()))
}

pub(in crate::http) fn cluster_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "get_cluster", "State of the cluster")
        .answers::<ClusterView>(StatusCode::OK, "The cluster, also if it is unreachable.")
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
    Operation::new(Tag::Kubernetes, "list_namespaces", "Namespaces that keys can have access to, by name")
        .answers::<NamespaceListView>(StatusCode::OK, "All namespaces.")
        .refuses(UNAVAILABLE)
}

pub(in crate::http) async fn create(
    State(state): State<HttpState>,
    administrator: Administrator,
    ApiJson { value: NamespaceBody(name), .. }: ApiJson<NamespaceBody>,
) -> Result<(StatusCode, Json<NamespaceView>), ApiError> {
    let administrator = administrator.recheck(&state).await?;
    let namespace = state.kubernetes.create_namespace(&name).await?;
    note(&state, &administrator, AuditAction::NamespaceCreated, &namespace).await?;
    Ok((StatusCode::CREATED, Json(view(&state, namespace)?)))
}

pub(in crate::http) fn create_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "create_namespace", "Add a namespace of the cluster")
        .description(
            "It is open once the cluster has the two `objects` of the response; the worker checks for them by itself.",
        )
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
    let administrator = administrator.recheck(&state).await?;
    let before = state.kubernetes.namespace(id).await?;
    let namespace = state.kubernetes.rename_namespace(id, &name).await?;
    if namespace.name != before.name {
        let detail = json!({ "namespace": namespace.name, "namespace_id": id, "was": before.name });
        state.admin.note(&administrator.actor(), AuditAction::NamespaceRenamed, None, detail).await?;
    }
    Ok(Json(view(&state, namespace)?))
}

pub(in crate::http) fn edit_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "rename_namespace", "Point an id to another namespace of the cluster")
        .description(
            "Keys with this id in scope get access to the other namespace instead; their tokens for the old one end.",
        )
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
            let detail = "remove it from their scopes first, or do so with `force=true`, which revokes keys that are \
                          left without a namespace";
            let key = |key: &crate::auth::KeyRecord| {
                FieldError::new(key.id.to_string(), format!("{} ({})", key.name, key.prefix))
            };
            let errors = keys.iter().map(key).collect();
            return Err(ApiError::new(ErrorCode::NamespaceInUse).with_detail(detail).with_errors(errors));
        }
    }
    state.kubernetes.delete_namespace(&namespace).await?;
    note(&state, &administrator, AuditAction::NamespaceDeleted, &namespace).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in crate::http) fn remove_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "delete_namespace", "Delete a namespace")
        .description(
            "Refused while keys have it in scope; `errors` then lists the keys by id. Objects applied in the cluster \
             stay there, unless the worker has opened the namespace itself.",
        )
        .query(
            "force",
            only_true(),
            "Remove it from the keys' scopes, and revoke keys that are left without a namespace.",
        )
        .answers_nothing(StatusCode::NO_CONTENT, "The namespace is deleted; all its tokens end.")
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
        let reason = "does not show where clients reach this worker: set `http.public_url`";
        ApiError::invalid(vec![FieldError::new("host", reason)])
    })?;
    Ok(Json(KubeconfigView {
        namespace: namespace.name.to_string(),
        filename: format!("{}.kubeconfig", namespace.name),
        kubeconfig: state.kubernetes.kubeconfig(&namespace, &worker, version)?,
    }))
}

pub(in crate::http) fn kubeconfig_operation() -> Operation {
    Operation::new(Tag::Kubernetes, "get_kubeconfig", "Kubeconfig for a namespace")
        .description("It requests tokens from this worker with the key in `REMOTEGPU_API_KEY`, using sh and curl.")
        .query(
            "api_version",
            one_of(ExecVersion::ALL.map(ExecVersion::as_str)),
            "`v1beta1` for kubectl before 1.22. Defaults to `v1`.",
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
