//! The audit log in responses.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::ToSchema;

use crate::auth::AuditEntry;
use crate::domain::ids::KeyId;

/// An entry of the audit log.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditEntry)]
pub(in crate::http) struct AuditEntryView {
    id: String,
    #[serde(with = "rfc3339")]
    at: OffsetDateTime,
    /// The actor: `administrator`, `command_line`, `worker`, `stranger` or `key_holder`.
    actor: String,
    session_id: Option<String>,
    /// The client's address.
    address: Option<String>,
    /// The action.
    action: &'static str,
    /// The affected key.
    #[schema(value_type = Option<String>)]
    key_id: Option<KeyId>,
    /// The key's prefix at that time.
    key_prefix: Option<String>,
    /// Details, depending on the action.
    #[schema(value_type = Object)]
    detail: Value,
}

impl From<AuditEntry> for AuditEntryView {
    fn from(entry: AuditEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            at: entry.at,
            actor: entry.actor,
            session_id: entry.session,
            address: entry.address,
            action: entry.action.as_str(),
            key_id: entry.key.map(|key| key.id),
            key_prefix: entry.key.map(|key| key.prefix.to_string()),
            detail: entry.detail,
        }
    }
}

/// One page of the log, the newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditList)]
pub(in crate::http) struct AuditListView {
    pub(in crate::http) data: Vec<AuditEntryView>,
    pub(in crate::http) next_cursor: Option<String>,
}
