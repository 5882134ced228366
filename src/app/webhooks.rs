//! Webhooks, as configured, with the jobs and the keys that they are about.

use std::sync::Arc;

use super::Keys;
use crate::config::{Config, WebhooksConfig};
use crate::domain::clock::Clock;
use crate::hooks::{WebhookError, WebhookParts, WebhookSettings, Webhooks};
use crate::http;
use crate::jobs::JobService;

/// `local_url` stands for this worker's own URL where none is configured.
pub(super) fn webhook_settings(config: &Config, local_url: &str) -> WebhookSettings {
    let WebhooksConfig { enabled, allow_http, allowed_hosts, only_allowed_hosts } = config.webhooks.clone();
    let public_url = config.http.public_url.as_ref().map(ToString::to_string);
    WebhookSettings {
        is_enabled: enabled,
        allows_http: allow_http,
        allowed_hosts,
        only_allowed_hosts,
        secret_path: config.webhook_secret_path(),
        origin: public_url.as_deref().unwrap_or(local_url).trim_end_matches('/').to_owned(),
    }
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
