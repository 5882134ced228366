//! A key's webhook in requests and responses.

use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use crate::auth::GRACE_SECONDS_MAX;
use crate::hooks::{GRACE_SECONDS_DEFAULT, KeyWebhook, NewSecret, URL_BYTES_MAX, WebhookChanges};
use crate::http::api::webhooks::{events_schema, read_events};
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, integer, or_null, text};

/// Changes to a key's webhook. Absent fields stay; `null` removes the URL.
pub(in crate::http) struct EditWebhook(pub(in crate::http) WebhookChanges);

impl FromFields for EditWebhook {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self(WebhookChanges { url: fields.text_change("url"), events: read_events(fields, "events") }))
    }
}

impl ToSchema for EditWebhook {}

impl PartialSchema for EditWebhook {
    fn schema() -> RefOr<Schema> {
        let url = "Where the events of the key's jobs go unless a request says otherwise. `null`: nowhere.";
        ObjectSchema::new("Changes to a key's webhook. Absent fields stay as they are.")
            .optional("url", or_null(text().max_length(Some(URL_BYTES_MAX))).description(Some(url)))
            .optional("events", events_schema("The events that go there."))
            .into()
    }
}

/// Options for a new webhook secret.
pub(in crate::http) struct MakeSecret {
    /// How long the secret before signs as well.
    pub(in crate::http) grace_seconds: u64,
}

impl Default for MakeSecret {
    fn default() -> Self {
        Self { grace_seconds: GRACE_SECONDS_DEFAULT }
    }
}

impl FromFields for MakeSecret {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self { grace_seconds: fields.whole_number("grace_seconds").unwrap_or(GRACE_SECONDS_DEFAULT) })
    }
}

impl ToSchema for MakeSecret {}

impl PartialSchema for MakeSecret {
    fn schema() -> RefOr<Schema> {
        let grace = "How long the secret before signs as well. Defaults to a day; 0 ends it at once.";
        let grace = integer(0).maximum(Some(GRACE_SECONDS_MAX)).description(Some(grace));
        ObjectSchema::new("Options for a new webhook secret.").optional("grace_seconds", grace).into()
    }
}

/// A key's webhook.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(in crate::http) struct WebhookView {
    /// Where the events of the key's jobs go unless a request says otherwise.
    url: Option<String>,
    /// The events that go there.
    #[schema(value_type = Vec<String>)]
    events: Vec<&'static str>,
    /// Since when the receiver says that it is gone (status 410). Setting the URL tries it again.
    #[serde(with = "rfc3339::option")]
    gone_at: Option<OffsetDateTime>,
    /// When its secret was made; `null` if it has none.
    #[serde(with = "rfc3339::option")]
    secret_made_at: Option<OffsetDateTime>,
    /// Until when the secret before that signs as well.
    #[serde(with = "rfc3339::option")]
    previous_secret_until: Option<OffsetDateTime>,
}

impl From<KeyWebhook> for WebhookView {
    fn from(webhook: KeyWebhook) -> Self {
        let KeyWebhook { url, events, gone_at, secret_made_at, previous_secret_until } = webhook;
        Self { url, events: events.names().collect(), gone_at, secret_made_at, previous_secret_until }
    }
}

/// A key's webhook with a secret that was just made, which is not shown again.
#[derive(Serialize, ToSchema)]
#[schema(as = NewWebhookSecret)]
pub(in crate::http) struct NewSecretView {
    #[serde(flatten)]
    webhook: WebhookView,
    /// The secret. It is never shown again.
    secret: String,
}

impl From<NewSecret> for NewSecretView {
    fn from(new: NewSecret) -> Self {
        Self { secret: new.secret.reveal().to_owned(), webhook: new.webhook.into() }
    }
}
