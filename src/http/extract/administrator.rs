//! The administrator: a signed-in session, by its cookie. API keys are not accepted.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::caller::ClientAddress;
use crate::auth::{Actor, Session};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::session_cookie::SessionCookie;
use crate::http::state::HttpState;

/// The signed-in administrator.
#[derive(Debug)]
pub(in crate::http) struct Administrator {
    pub(in crate::http) session: Session,
    address: IpAddr,
}

impl Administrator {
    /// The actor for the audit log.
    pub(in crate::http) fn actor(&self) -> Actor {
        Actor::Administrator { session: self.session.id, address: self.address }
    }

    /// Checks that the session is still valid. A body may take half a minute to arrive, and its images wait to be
    /// decoded: a request whose session has ended meanwhile must be refused. Every route with a body does this last.
    pub(in crate::http) async fn recheck(self, state: &HttpState) -> Result<Self, ApiError> {
        let session = state.admin.session_again(self.session.id).await?;
        let session = session.ok_or_else(|| ApiError::new(ErrorCode::SessionRequired))?;
        Ok(Self { session, ..self })
    }
}

impl FromRequestParts<HttpState> for Administrator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, ApiError> {
        let refusal = || ApiError::new(ErrorCode::SessionRequired);
        let token = SessionCookie::of(&state.settings).read(&parts.headers).ok_or_else(refusal)?;
        let session = state.admin.session(token).await?.ok_or_else(refusal)?;
        let Ok(ClientAddress(address)) = ClientAddress::from_request_parts(parts, state).await;
        Ok(Self { session, address })
    }
}
