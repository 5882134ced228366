//! Webhooks, as configured, with the jobs and the keys that they are about.

use std::sync::Arc;

use anyhow::Context as _;

use super::Keys;
use crate::config::{Config, WebhooksConfig};
use crate::domain::clock::Clock;
use crate::hooks::{AlertReceiver, WebhookError, WebhookParts, WebhookSettings, Webhooks};
use crate::http;
use crate::jobs::JobService;

/// What an error of the operator's receiver is about.
const RECEIVER: &str = "setting up the receiver of alerts";

/// `local_url` stands for this worker's own URL where none is configured. An error says what is wrong with the operator's
/// receiver.
pub(super) fn webhook_settings(config: &Config, local_url: &str) -> anyhow::Result<WebhookSettings> {
    let WebhooksConfig { enabled, allow_http, allowed_hosts, only_allowed_hosts, alerts } = config.webhooks.clone();
    let public_url = config.http.public_url.as_ref().map(ToString::to_string);
    let receiver = alerts.map(|alerts| AlertReceiver::new(alerts.url, alerts.secret.reveal())).transpose();
    let settings = WebhookSettings {
        is_enabled: enabled,
        allows_http: allow_http,
        allowed_hosts,
        only_allowed_hosts,
        secret_path: config.webhook_secret_path(),
        origin: public_url.as_deref().unwrap_or(local_url).trim_end_matches('/').to_owned(),
        alerts: receiver.context(RECEIVER)?,
    };
    settings.check().context(RECEIVER)?;
    Ok(settings)
}

/// The service, which says of a job what its owner gets to see.
pub(super) async fn open_webhooks(
    keys: &Keys,
    jobs: &JobService,
    clock: Arc<dyn Clock>,
    settings: WebhookSettings,
) -> Result<Webhooks, WebhookError> {
    Webhooks::open(WebhookParts {
        store: keys.store.clone(),
        keys: keys.service.clone(),
        jobs: jobs.clone(),
        render: Arc::new(http::job_json),
        lookup: None,
        clock,
        settings,
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AlertsConfig;

    #[test]
    fn a_receiver_of_alerts_that_cannot_be_used_stops_the_start() {
        let settings = |url: &str, secret: &str| {
            let mut config = Config::default();
            let secret = secret.parse().expect("one word");
            config.webhooks.alerts = Some(AlertsConfig { url: url.to_owned(), secret });
            webhook_settings(&config, "http://127.0.0.1:8080").map_err(|error| format!("{error:#}"))
        };
        let secret = format!("whsec_{}", "QUJD".repeat(8));
        assert!(settings("https://hooks.example.org/alerts", &secret).is_ok());
        for (url, secret, field) in [
            ("https://169.254.169.254/token", secret.as_str(), "`webhooks.alerts_url`"),
            ("http://hooks.example.org/token", secret.as_str(), "`webhooks.alerts_url`"),
            ("https://hooks.example.org/token", "whsec_short", "`webhooks.alerts_secret`"),
        ] {
            let error = settings(url, secret).expect_err("refused");
            assert!(error.contains(field) && !error.contains("token") && !error.contains("short"), "{error}");
        }
    }
}
