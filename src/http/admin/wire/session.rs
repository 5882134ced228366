//! A sign-in, as it is asked for and as it is shown.

use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};
use zeroize::Zeroizing;

use crate::auth::Session;
use crate::domain::ids::SessionId;
use crate::http::HttpState;
use crate::http::extract::json::{Fields, FromFields};
use crate::http::openapi::schema::{ObjectSchema, text};

/// Largest body of a sign-in, in bytes: a password, however it is escaped.
const SIGN_IN_BYTES_MAX: usize = 4 * 1024;

/// Who wants in.
pub(in crate::http) struct SignIn {
    pub(in crate::http) password: Zeroizing<String>,
}

impl FromFields for SignIn {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        fields.required_text("password").map(|password| Self { password: Zeroizing::new(password) })
    }

    // Anyone may send it.
    fn body_bytes_max(state: &HttpState) -> usize {
        state.settings.body_bytes_max.min(SIGN_IN_BYTES_MAX)
    }
}

impl ToSchema for SignIn {}

impl PartialSchema for SignIn {
    fn schema() -> RefOr<Schema> {
        ObjectSchema::new("Who wants in.").required("password", text()).into()
    }
}

/// A sign-in. Its token is in the cookie alone.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub(in crate::http) struct SessionView {
    #[schema(value_type = String)]
    id: SessionId,
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    /// When it ends unless it is used before.
    #[serde(with = "rfc3339")]
    idle_expires_at: OffsetDateTime,
    /// When it ends in any case.
    #[serde(with = "rfc3339")]
    expires_at: OffsetDateTime,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        Self {
            id: session.id,
            created_at: session.created_at,
            idle_expires_at: session.idle_expires_at(),
            expires_at: session.expires_at(),
        }
    }
}
