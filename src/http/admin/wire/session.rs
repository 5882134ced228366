//! A sign-in and its session in requests and responses.

use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};
use zeroize::Zeroizing;

use crate::auth::Session;
use crate::domain::ids::SessionId;
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, text};
use crate::http::settings::HttpSettings;
use crate::http::state::HttpState;

/// Largest body of a sign-in, in bytes: a password with any escaping.
const SIGN_IN_BYTES_MAX: usize = 4 * 1024;

/// The credentials of a sign-in.
pub(in crate::http) struct SignIn {
    pub(in crate::http) password: Zeroizing<String>,
}

impl FromFields for SignIn {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        fields.required_text("password").map(|password| Self { password: Zeroizing::new(password) })
    }

    // Needs no authentication, so the limit is small.
    fn body_bytes_max(state: &HttpState) -> usize {
        state.settings.body_bytes_max.min(SIGN_IN_BYTES_MAX)
    }
}

impl ToSchema for SignIn {}

impl PartialSchema for SignIn {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new("The credentials of a sign-in.").required("password", text()).into()
    }
}

/// A session. Only the cookie contains its token.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub(in crate::http) struct SessionView {
    #[schema(value_type = String)]
    id: SessionId,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    /// When it ends if it is not used before.
    #[serde(with = "rfc3339")]
    idle_expires_at: OffsetDateTime,
    /// When it ends in any case.
    #[serde(with = "rfc3339")]
    expires_at: OffsetDateTime,
    /// Where clients reach this worker, without a slash at the end. `null`: at the address of this request.
    clients_url: Option<String>,
}

impl SessionView {
    pub(in crate::http) fn new(session: &Session, settings: &HttpSettings) -> Self {
        Self {
            id: session.id,
            created_at: session.created_at,
            idle_expires_at: session.idle_expires_at(),
            expires_at: session.expires_at(),
            clients_url: settings.clients_url().map(ToOwned::to_owned),
        }
    }
}
