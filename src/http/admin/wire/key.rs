//! A key, as it is asked for and as it is shown.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::serde::rfc3339;

use super::limits::{self, LimitsView};
use crate::auth::{Change, CreatedKey, KeyEdit, KeyRecord, NewKey};
use crate::domain::ids::KeyId;
use crate::domain::scope::Scope;
use crate::http::extract::json::{Fields, FromFields};

/// A key to be made.
pub(in crate::http) struct CreateKey(pub(in crate::http) NewKey);

impl FromFields for CreateKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required_text("name");
        let scope = fields.required("scope").and_then(|value| scope(fields, &value));
        let expires_at = fields.moment("expires_at");
        let limits = limits::of_new(fields);
        Some(Self(NewKey { name: name?, scope: scope?, expires_at, limits }))
    }
}

/// What is to be different about a key. What is not named stays; `null` takes away what can be taken away.
pub(in crate::http) struct EditKey(pub(in crate::http) KeyEdit);

impl FromFields for EditKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = match fields.text_change("name") {
            Change::Keep => None,
            Change::Set(name) => Some(name),
            Change::Remove => {
                fields.refuse("name", "cannot be taken away");
                None
            }
        };
        let scope = fields.given("scope").and_then(|value| scope(fields, &value));
        let expires_at = fields.moment_change("expires_at");
        let limits = limits::of_edit(fields);
        Some(Self(KeyEdit { name, scope, expires_at, limits }))
    }
}

fn scope(fields: &mut Fields, value: &Value) -> Option<Scope> {
    Scope::from_json(value).inspect_err(|rule| fields.refuse("scope", rule.to_string())).ok()
}

/// A key that is to get another value.
#[derive(Default)]
pub(in crate::http) struct RotateKey {
    /// How long the old value goes on working.
    pub(in crate::http) grace_seconds: u64,
}

impl FromFields for RotateKey {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self { grace_seconds: fields.whole_number("grace_seconds").unwrap_or_default() })
    }
}

/// What is known of a key.
#[derive(Serialize)]
pub(in crate::http) struct KeyView {
    id: KeyId,
    name: String,
    prefix: String,
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
    /// The value before the last rotation, while it still works.
    overlap: Option<OverlapView>,
}

/// A value that was replaced and still works.
#[derive(Serialize)]
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
            limits: record.limits.into(),
            overlap: record
                .overlap
                .map(|overlap| OverlapView { prefix: overlap.prefix.to_string(), until: overlap.until }),
        }
    }
}

/// A key that was just made or rotated: the one time its value is shown.
#[derive(Serialize)]
pub(in crate::http) struct CreatedKeyView {
    #[serde(flatten)]
    record: KeyView,
    key: String,
}

impl From<CreatedKey> for CreatedKeyView {
    fn from(created: CreatedKey) -> Self {
        Self { key: created.plain.reveal().to_owned(), record: created.record.into() }
    }
}

/// One page of keys, the newest first.
#[derive(Serialize)]
pub(in crate::http) struct KeyListView {
    pub(in crate::http) data: Vec<KeyView>,
    pub(in crate::http) next_cursor: Option<String>,
}
