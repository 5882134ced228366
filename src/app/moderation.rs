//! The operator's moderation, from the configuration.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::Keys;
use crate::config::{Config, ModerationConfig};
use crate::domain::review::Reviewer;
use crate::moderation::{ModerationSettings, Moderator};

/// Beginnings of plain URLs that do not leave this machine.
const OWN_MACHINE: [&str; 3] = ["http://127.", "http://localhost", "http://[::1]"];

/// Who judges prompts and images, if anyone is configured.
pub(super) fn reviewer(config: &Config, keys: &Keys) -> anyhow::Result<Option<Arc<dyn Reviewer>>> {
    let ModerationConfig { url, before, after, on_failure, timeout_seconds, secret } = config.moderation.clone();
    let Some(url) = url else { return Ok(None) };
    if url.starts_with("http://") && !OWN_MACHINE.iter().any(|own| url.starts_with(own)) {
        tracing::warn!("the moderation is asked without https: the network can read prompts and images");
    }
    let timeout = Duration::from_secs(timeout_seconds);
    let settings = ModerationSettings { url, before, after, on_failure, timeout, secret };
    let moderator = Moderator::new(settings, keys.admin.clone(), keys.service.clone());
    let reviewer: Arc<dyn Reviewer> = Arc::new(moderator.context("setting up `moderation`")?);
    Ok(Some(reviewer))
}
