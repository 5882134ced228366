//! The route that kubectl's plugin asks for a token: `client.authentication.k8s.io`, an ExecCredential for another.

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
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::extract::caller::KubernetesCaller;
use crate::http::extract::json::{ApiJson, Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, one_of};
use crate::http::openapi::{Operation, Tag};
use crate::kubernetes::{CredentialRecord, ExecVersion, Holder};

const KIND: &str = "ExecCredential";

/// What kubectl has put into `KUBERNETES_EXEC_INFO`. Only the version of it is heeded, in which the answer has to be.
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
        ObjectSchema::new("What kubectl has put into `KUBERNETES_EXEC_INFO`.")
            .required("kind", one_of([KIND]))
            .required("apiVersion", one_of(ExecVersion::ALL.map(ExecVersion::api_version)))
            .optional(
                "spec",
                ObjectBuilder::new().schema_type(Type::Object).description(Some("Let be, whatever stands in it.")),
            )
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
    /// When to ask for another one: a little before its end.
    #[serde(rename = "expirationTimestamp", with = "rfc3339")]
    expiration_timestamp: OffsetDateTime,
}

pub(in crate::http) async fn issue(
    State(state): State<HttpState>,
    caller: KubernetesCaller,
    ApiJson { value: ExecInfo { version }, .. }: ApiJson<ExecInfo>,
) -> Result<([(HeaderName, HeaderValue); 1], Json<ExecCredentialView>), ApiError> {
    let KubernetesCaller { principal, namespace, address } = caller.again(&state).await?;
    let holder = Holder { key: principal.key_id, prefix: principal.prefix.to_string() };
    let credential = state.kubernetes.issue(&holder, namespace).await?;
    // Written down before it is given away: what is not in the log is in nobody's hands.
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
        .says(
            "What the kubeconfig of a namespace asks by itself. The token is good in this namespace alone, for ten minutes, \
             and no longer than the key's right to it.",
        )
        .body::<ExecInfo>(json!({ "apiVersion": v1, "kind": KIND, "spec": { "interactive": false } }))
        .answers::<ExecCredentialView>(StatusCode::OK, "The token, in the version that was asked for.")
        .refuses([
            ErrorCode::KubernetesNotConfigured,
            ErrorCode::KubernetesUnavailable,
            ErrorCode::NamespacePending,
        ])
}
