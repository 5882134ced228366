//! The route that gives kubectl's plugin a token: `client.authentication.k8s.io`, one ExecCredential for another.

use axum::Json;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::auth::{Actor, AuditAction, AuditedKey};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::KubernetesCaller;
use crate::http::extract::json::{ApiJson, Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, one_of};
use crate::http::openapi::{Operation, Tag};
use crate::http::state::HttpState;
use crate::kubernetes::{CredentialRecord, ExecVersion, Holder};

const KIND: &str = "ExecCredential";

/// The content of kubectl's `KUBERNETES_EXEC_INFO`. Only its version is used: the answer must have the same one.
pub(in crate::http) struct ExecInfo {
    version: ExecVersion,
}

impl FromFields for ExecInfo {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let kind = fields.required_text("kind");
        if kind.as_deref().is_some_and(|kind| kind != KIND) {
            fields.refuse("kind", format!("must be `{KIND}`, as kubectl writes it into KUBERNETES_EXEC_INFO"));
        }
        let asked = fields.required_text("apiVersion");
        let version = ExecVersion::ALL.into_iter().find(|version| asked.as_deref() == Some(version.api_version()));
        if asked.is_some() && version.is_none() {
            let [v1, v1beta1] = ExecVersion::ALL.map(ExecVersion::api_version);
            fields.refuse("apiVersion", format!("must be `{v1}` or `{v1beta1}`"));
        }
        fields.given("spec");
        version.map(|version| Self { version })
    }
}

impl ToSchema for ExecInfo {}

impl PartialSchema for ExecInfo {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new("The content of kubectl's `KUBERNETES_EXEC_INFO`.")
            .required("kind", one_of([KIND]))
            .required("apiVersion", one_of(ExecVersion::ALL.map(ExecVersion::api_version)))
            .optional("spec", ObjectBuilder::new().schema_type(Type::Object).description(Some("Ignored.")))
            .into()
    }
}

/// An ExecCredential, as kubectl reads it.
#[derive(Serialize, ToSchema)]
#[schema(as = ExecCredential)]
pub(in crate::http) struct ExecCredentialView {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    status: ExecStatusView,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ExecStatus)]
struct ExecStatusView {
    /// A bearer token for the API server.
    token: String,
    /// When to request a new one: shortly before it expires.
    #[serde(rename = "expirationTimestamp", with = "rfc3339")]
    expiration_timestamp: OffsetDateTime,
}

pub(in crate::http) async fn issue(
    State(state): State<HttpState>,
    caller: KubernetesCaller,
    ApiJson { value: ExecInfo { version }, .. }: ApiJson<ExecInfo>,
) -> Result<([(HeaderName, HeaderValue); 1], Json<ExecCredentialView>), ApiError> {
    let KubernetesCaller { principal, namespace, address } = caller.recheck(&state).await?;
    let holder = Holder { key: principal.key_id, prefix: principal.prefix.to_string() };
    let credential = state.kubernetes.issue(&holder, namespace).await?;
    // Logged before it is handed out, so that no token exists without an entry.
    let key = AuditedKey { id: principal.key_id, prefix: principal.prefix };
    let detail = of_credential(&credential.record);
    state.admin.note(&Actor::KeyHolder { address }, AuditAction::CredentialIssued, Some(key), detail).await?;
    let status =
        ExecStatusView { token: credential.token.reveal().to_owned(), expiration_timestamp: credential.expires_at };
    let view = ExecCredentialView { api_version: version.api_version(), kind: KIND, status };
    Ok(([(CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(view)))
}

fn of_credential(record: &CredentialRecord) -> Value {
    json!({
        "namespace": record.namespace,
        "namespace_id": record.namespace_id,
        "jti": record.jti,
        "secret": record.secret,
        "expires_at": record.expires_at.format(&Rfc3339).unwrap_or_default(),
    })
}

pub(in crate::http) fn issue_operation() -> Operation {
    let [v1, _] = ExecVersion::ALL.map(ExecVersion::api_version);
    Operation::new(Tag::Kubernetes, "issue_exec_credential", "A token for kubectl")
        .description(
            "Called by a namespace's kubeconfig. The token is valid in this namespace only, for ten minutes, and no \
             longer than the key's access.",
        )
        .body::<ExecInfo>(json!({ "apiVersion": v1, "kind": KIND, "spec": { "interactive": false } }))
        .answers::<ExecCredentialView>(StatusCode::OK, "The token, in the requested version.")
        .refuses([ErrorCode::KubernetesNotConfigured, ErrorCode::KubernetesUnavailable, ErrorCode::NamespacePending])
}
