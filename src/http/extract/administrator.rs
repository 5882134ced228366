//! Who manages: a signed-in session, by its cookie. A key is of no use here.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::caller::ClientAddress;
use crate::auth::{Actor, Session};
use crate::http::HttpState;
use crate::http::error::{ApiError, ErrorCode};
use crate::http::session_cookie::SessionCookie;

/// A caller who has signed in.
#[derive(Debug)]
pub(in crate::http) struct Administrator {
    pub(in crate::http) session: Session,
    address: IpAddr,
}

impl Administrator {
    /// Who the audit log shall say it was.
    pub(in crate::http) fn actor(&self) -> Actor {
        Actor::Administrator { session: self.session.id, address: self.address }
    }

    /// Whoever it was, if still signed in. A body may take half a minute to arrive, and its images wait for their turn:
    /// what a session asks for that has ended meanwhile must not be done. Every route with a body asks it last of all.
    pub(in crate::http) async fn again(self, state: &HttpState) -> Result<Self, ApiError> {
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
