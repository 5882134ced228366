//! Which receivers webhooks may have, and the operator's own.

use super::last;
use crate::config::settings::{Layer, SecretText, Settings};
use crate::config::{AlertsConfig, ConfigError, WebhooksConfig, env};
use crate::domain::shared_secret::SharedSecret;
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
        alerts: alerts(layers)?,
    })
}

/// The operator's receiver; its URL is an error without the secret, and the other way round. Where it may be is checked when
/// the worker starts, with the rules for all receivers. No reason repeats URL or secret.
fn alerts(layers: &[Layer]) -> Result<Option<AlertsConfig>, ConfigError> {
    let url = last(layers, |settings| settings.webhooks.alerts_url.as_ref());
    let secret = last(layers, |settings| settings.webhooks.alerts_secret.as_ref());
    let (url, SecretText(secret), origin) = match (url, secret) {
        (None, None) => return Ok(None),
        (Some((url, _)), Some((secret, origin))) => (url, secret, origin),
        (Some((_, origin)), None) => {
            let (field, name) = (env::WEBHOOKS_ALERTS_SECRET.field, env::WEBHOOKS_ALERTS_SECRET.name);
            return Err(origin.error(&env::WEBHOOKS_ALERTS_URL, format!("needs its secret: `{field}` or {name}")));
        }
        (None, Some((_, origin))) => {
            let (field, name) = (env::WEBHOOKS_ALERTS_URL.field, env::WEBHOOKS_ALERTS_URL.name);
            return Err(origin.error(&env::WEBHOOKS_ALERTS_SECRET, format!("needs its URL: `{field}` or {name}")));
        }
    };
    let secret = secret.parse::<SharedSecret>();
    let secret = secret.map_err(|unfit| origin.error(&env::WEBHOOKS_ALERTS_SECRET, unfit.to_string()))?;
    Ok(Some(AlertsConfig { url: url.clone(), secret }))
}
