//! Which receivers webhooks may have.

use super::last;
use crate::config::settings::{Layer, Settings};
use crate::config::{ConfigError, WebhooksConfig, env};
use crate::domain::webhook::AllowedHosts;

pub(super) fn resolve(layers: &[Layer], default: WebhooksConfig) -> Result<WebhooksConfig, ConfigError> {
    let switch = |get: fn(&Settings) -> Option<bool>, default| last(layers, get).map_or(default, |(is_on, _)| is_on);
    let allowed_hosts = match last(layers, |settings| settings.webhooks.allowed_hosts.as_ref()) {
        None => default.allowed_hosts,
        Some((list, origin)) => {
            AllowedHosts::of(list).map_err(|error| origin.error(&env::WEBHOOKS_ALLOWED_HOSTS, error.to_string()))?
        }
    };
    let only_allowed_hosts = match last(layers, |settings| settings.webhooks.only_allowed_hosts) {
        Some((true, origin)) if allowed_hosts == AllowedHosts::default() => {
            let reason = "cannot be true without `webhooks.allowed_hosts`: no receiver would be left".to_owned();
            return Err(origin.error(&env::WEBHOOKS_ONLY_ALLOWED_HOSTS, reason));
        }
        Some((is_on, _)) => is_on,
        None => default.only_allowed_hosts,
    };
    Ok(WebhooksConfig {
        enabled: switch(|settings| settings.webhooks.enabled, default.enabled),
        allow_http: switch(|settings| settings.webhooks.allow_http, default.allow_http),
        allowed_hosts,
        only_allowed_hosts,
    })
}
