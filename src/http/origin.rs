//! Where this worker is, as its clients see it: the start of the addresses in answers.

use axum::extract::FromRequestParts;
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use std::convert::Infallible;

use super::{HttpSettings, HttpState};
use crate::domain::ids::JobId;
use crate::jobs::ResultLink;

/// The start of every address in an answer, without a slash at its end. Empty (addresses are relative then) when the
/// client did not say how it reached us.
pub(super) struct Origin(String);

impl FromRequestParts<HttpState> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Infallible> {
        if let Some(url) = &state.settings.public_url {
            return Ok(Self(url.trim_end_matches('/').to_owned()));
        }
        // Parsed, not pasted: only what can be a host comes back in an answer.
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.filter(|host| !host.contains('@')).and_then(|host| host.parse::<Authority>().ok());
        let scheme = if state.settings.has_tls { "https" } else { "http" };
        Ok(Self(host.map(|host| format!("{scheme}://{host}")).unwrap_or_default()))
    }
}

impl Origin {
    /// Where clients reach this worker, fit to stand in a shell's quotes; `None` when it cannot be told. At an address of
    /// its own for the administrator, that is not where the administrator is.
    pub(super) fn of_clients(self, settings: &HttpSettings) -> Option<String> {
        let own = if settings.has_own_management && settings.public_url.is_none() {
            settings.local_url.clone()
        } else {
            Some(self.0)
        };
        let is_fit = |character: char| character.is_ascii_alphanumeric() || "-._:/[]".contains(character);
        own.filter(|url| !url.is_empty() && url.chars().all(is_fit))
    }

    /// What stands in front of the paths of the API, by the name of OpenAI's clients for it.
    pub(super) fn base_url(&self) -> String {
        format!("{}/v1", self.0)
    }

    pub(super) fn status_url(&self, id: JobId) -> String {
        format!("{}/v1/inference/jobs/{id}", self.0)
    }

    pub(super) fn result_url(&self, id: JobId, link: &ResultLink) -> String {
        let ResultLink { expires, signature } = link;
        format!("{}/v1/inference/jobs/{id}/result?expires={expires}&signature={signature}", self.0)
    }
}
