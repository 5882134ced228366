//! The worker's URL as its clients see it: the start of the URLs in answers.

use axum::extract::FromRequestParts;
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use std::convert::Infallible;

use super::settings::HttpSettings;
use super::state::HttpState;
use crate::domain::ids::JobId;
use crate::jobs::ResultLink;

/// The start of every URL in an answer, without a trailing slash. Empty, which makes the URLs relative, if the client
/// sent no host.
pub(super) struct Origin(String);

impl FromRequestParts<HttpState> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Infallible> {
        if let Some(url) = &state.settings.public_url {
            return Ok(Self(url.trim_end_matches('/').to_owned()));
        }
        // Parsed, so that an answer only repeats a valid host.
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.filter(|host| !host.contains('@')).and_then(|host| host.parse::<Authority>().ok());
        let scheme = if state.settings.has_tls { "https" } else { "http" };
        Ok(Self(host.map(|host| format!("{scheme}://{host}")).unwrap_or_default()))
    }
}

/// [`Origin`] in answers of management: the address of clients' routes, also where management has an address of its own.
pub(super) struct ClientsOrigin(pub(super) Origin);

impl FromRequestParts<HttpState> for ClientsOrigin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Infallible> {
        let origin = Origin::from_request_parts(parts, state).await?;
        Ok(Self(Origin(origin.of_clients(&state.settings).unwrap_or_default())))
    }
}

impl Origin {
    /// One that was kept.
    pub(super) fn kept(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The start of URLs itself.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The URL under which clients reach this worker, safe inside shell quotes; `None` if unknown. With a separate
    /// management listener, clients use a different address than the administrator.
    pub(super) fn of_clients(self, settings: &HttpSettings) -> Option<String> {
        let own =
            settings.clients_url().map(ToOwned::to_owned).or_else(|| (!settings.has_own_management).then_some(self.0));
        let is_fit = |character: char| character.is_ascii_alphanumeric() || "-._:/[]".contains(character);
        own.filter(|url| !url.is_empty() && url.chars().all(is_fit))
    }

    /// The base URL of the API, as clients of AUTOMATIC1111's call it.
    pub(super) fn root_url(&self) -> &str {
        &self.0
    }

    /// The base URL of the API, as OpenAI's clients call it.
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
