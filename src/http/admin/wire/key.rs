//! A key in requests and responses.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::limits::{self, LimitsView};
use crate::auth::{Change, CreatedKey, KeyEdit, KeyRecord, NewKey};
use crate::domain::ids::{KeyId, ProjectId};
use crate::domain::scope::Scope;
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, integer, moment, only_true, or_null, text};

/// The field of the project.
const PROJECT: &str = "project";

/// A key to create.
pub(in crate::http) struct CreateKey {
    pub(in crate::http) new: NewKey,
    /// The project that it belongs to.
    pub(in crate::http) project: Option<ProjectId>,
}

impl FromFields for CreateKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required_text("name");
        let scope = fields.required("scope").and_then(|value| scope(fields, &value));
        let expires_at = fields.moment("expires_at");
        let limits = limits::of_new(fields);
        let project = fields.word(PROJECT);
        Some(Self { new: NewKey { name: name?, scope: scope?, expires_at, limits }, project })
    }
}

impl ToSchema for CreateKey {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ScopeSchema::note(schemas);
    }
}

impl PartialSchema for CreateKey {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new("A key to create.")
            .required("name", text().description(Some("A name for people.")))
            .required("scope", ScopeSchema::reference())
            .optional("expires_at", moment().description(Some("When it expires. Never by default.")))
            .optional("limits", limits::schema("The key's limits.", |limit| limit))
            .optional(PROJECT, text().description(Some("The id of the project that it belongs to. None by default.")))
            .into()
    }
}

/// Changes to a key. Absent fields stay; `null` removes what can be removed.
pub(in crate::http) struct EditKey(pub(in crate::http) KeyEdit);

impl FromFields for EditKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.lasting_text("name");
        let scope = fields.given("scope").and_then(|value| scope(fields, &value));
        let expires_at = fields.moment_change("expires_at");
        let limits = limits::of_edit(fields);
        let project = if fields.is_null(PROJECT) {
            Change::Remove
        } else {
            fields.word(PROJECT).map_or(Change::Keep, Change::Set)
        };
        Some(Self(KeyEdit { name, scope, expires_at, limits, project }))
    }
}

impl ToSchema for EditKey {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ScopeSchema::note(schemas);
    }
}

impl PartialSchema for EditKey {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new("Changes to a key. Absent fields stay as they are.")
            .optional("name", text())
            .optional("scope", ScopeSchema::reference())
            .optional("expires_at", or_null(moment()).description(Some("`null`: it never expires.")))
            .optional("limits", limits::edit_schema())
            .optional(PROJECT, or_null(text()).description(Some("The id of a project. `null`: none.")))
            .into()
    }
}

/// A key's scope in a request.
struct ScopeSchema;

impl ScopeSchema {
    fn reference() -> RefOr<Schema> {
        utoipa::openapi::Ref::from_schema_name(Self::name()).into()
    }

    fn note(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Self::name().into_owned(), Self::schema()));
    }
}

impl ToSchema for ScopeSchema {
    fn name() -> std::borrow::Cow<'static, str> {
        "Scope".into()
    }
}

impl PartialSchema for ScopeSchema {
    fn schema() -> RefOr<Schema> {
        let everywhere = ObjectSchema::new("All namespaces.").required("all_namespaces", only_true());
        let ids = ArrayBuilder::new().items(text()).min_items(Some(1)).unique_items(true);
        let some = ObjectSchema::new("Some namespaces.").required("namespace_ids", ids);
        let namespaces = OneOfBuilder::new().item(RefOr::from(everywhere)).item(RefOr::from(some));
        let scopes: [RefOr<Schema>; 3] = [
            ObjectSchema::new("Everything: inference and Kubernetes.").required("all", only_true()).into(),
            ObjectSchema::new("Image generation.").required("inference", only_true()).into(),
            ObjectSchema::new("kubectl in these namespaces.").required("kubernetes_exec", namespaces).into(),
        ];
        scopes.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item).into()
    }
}

fn scope(fields: &mut Fields, value: &Value) -> Option<Scope> {
    Scope::from_json(value).inspect_err(|rule| fields.refuse("scope", rule.to_string())).ok()
}

/// Options for rotating a key.
#[derive(Default)]
pub(in crate::http) struct RotateKey {
    /// How long the old value keeps working.
    pub(in crate::http) grace_seconds: u64,
}

impl FromFields for RotateKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self { grace_seconds: fields.whole_number("grace_seconds").unwrap_or_default() })
    }
}

impl ToSchema for RotateKey {}

impl PartialSchema for RotateKey {
    fn schema() -> RefOr<Schema> {
        let grace = integer(0).description(Some("How long the old value keeps working. Defaults to 0: not at all."));
        ObjectSchema::new("Options for rotating a key.").optional("grace_seconds", grace).into()
    }
}

/// A key.
#[derive(Serialize, ToSchema)]
#[schema(as = Key)]
pub(in crate::http) struct KeyView {
    #[schema(value_type = String)]
    id: KeyId,
    name: String,
    prefix: String,
    #[schema(value_type = ScopeSchema)]
    scope: Value,
    state: &'static str,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    revoked_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    last_used_at: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    rotated_at: Option<OffsetDateTime>,
    limits: LimitsView,
    /// The id of the project that it belongs to.
    #[schema(value_type = Option<String>)]
    project: Option<ProjectId>,
    /// The value before the last rotation, while it still works.
    overlap: Option<OverlapView>,
}

/// A replaced value that still works.
#[derive(Serialize, ToSchema)]
#[schema(as = KeyOverlap)]
pub(in crate::http) struct OverlapView {
    prefix: String,
    #[serde(with = "rfc3339")]
    until: OffsetDateTime,
}

impl From<KeyRecord> for KeyView {
    fn from(record: KeyRecord) -> Self {
        Self {
            id: record.id,
            name: record.name,
            prefix: record.prefix.to_string(),
            scope: record.scope.to_json(),
            state: record.state.as_str(),
            created_at: record.created_at,
            expires_at: record.expires_at,
            revoked_at: record.revoked_at,
            last_used_at: record.last_used_at,
            rotated_at: record.rotated_at,
            project: record.limits.project.map(|project| project.id),
            limits: record.limits.into(),
            overlap: record
                .overlap
                .map(|overlap| OverlapView { prefix: overlap.prefix.to_string(), until: overlap.until }),
        }
    }
}

/// A key that was just created or rotated, with its value, which is not shown again.
#[derive(Serialize, ToSchema)]
#[schema(as = CreatedKey)]
pub(in crate::http) struct CreatedKeyView {
    #[serde(flatten)]
    record: KeyView,
    /// The key's value. It is never shown again.
    key: String,
}

impl From<CreatedKey> for CreatedKeyView {
    fn from(created: CreatedKey) -> Self {
        Self { key: created.plain.reveal().to_owned(), record: created.record.into() }
    }
}

/// One page of keys, the newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = KeyList)]
pub(in crate::http) struct KeyListView {
    pub(in crate::http) data: Vec<KeyView>,
    pub(in crate::http) next_cursor: Option<String>,
}
