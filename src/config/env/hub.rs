//! Variables that are shared with the hub's tools and with other programs behind a proxy, and that are read as they read them.

use std::ffi::OsString;

use super::{Environment, HF_ENDPOINT, Variable};
use crate::config::ConfigError;
use crate::config::hub::{DEFAULT_HUB, ProxyUrl};
use crate::config::settings::Origin;

impl Environment<'_> {
    pub(super) fn endpoint(&self) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.text(&HF_ENDPOINT)? else { return Ok(None) };
        let url = text.trim().trim_end_matches('/');
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        if rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['?', '#', '@', ' '])) {
            return Ok(Some(url.to_owned()));
        }
        let reason = format!("`{text}` is not a hub's address: write it like {DEFAULT_HUB}");
        Err(Origin::Environment.error(&HF_ENDPOINT, reason))
    }

    /// Reads a switch as Python's tools do.
    pub(super) fn is_set(&self, variable: &Variable) -> Result<bool, ConfigError> {
        let text = self.text(variable)?.unwrap_or_default();
        Ok(["1", "true", "yes", "on"].contains(&text.trim().to_lowercase().as_str()))
    }

    /// Reads a proxy's variable in upper or lower case; lower case wins.
    pub(super) fn either_case(&self, variable: &Variable) -> Result<Option<String>, ConfigError> {
        let name = variable.name.to_lowercase();
        match (self.lookup)(&name).filter(|value| !value.is_empty()).map(OsString::into_string) {
            None => self.text(variable),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(Origin::Environment.error(variable, "not valid UTF-8".into())),
        }
    }

    pub(super) fn proxy(&self, variable: &Variable) -> Result<Option<ProxyUrl>, ConfigError> {
        let Some(text) = self.either_case(variable)? else { return Ok(None) };
        let url = if text.contains("://") { text } else { format!("http://{text}") };
        // It may contain a password: the reason does not repeat it.
        let is_one = ["http://", "https://", "socks5://", "socks5h://"].iter().any(|scheme| url.starts_with(scheme));
        if is_one && !url.contains(char::is_whitespace) {
            return Ok(Some(ProxyUrl::new(url)));
        }
        let reason = "not a proxy's address: write it like http://proxy.example.org:3128";
        Err(Origin::Environment.error(variable, reason.to_owned()))
    }
}
