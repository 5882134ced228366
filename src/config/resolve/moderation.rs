//! The settings of the operator's moderation.

use std::ops::RangeInclusive;

use super::{last, parsed, refuse, within};
use crate::config::settings::{Layer, SecretText};
use crate::config::{ConfigError, ModerationConfig, env};
use crate::domain::shared_secret::SharedSecret;

const TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=120;

pub(super) fn resolved(layers: &[Layer], default: &ModerationConfig) -> Result<ModerationConfig, ConfigError> {
    let config = ModerationConfig {
        url: url(layers)?,
        before: last(layers, |settings| settings.moderation.before).map_or(default.before, |(is_asked, _)| is_asked),
        after: last(layers, |settings| settings.moderation.after).map_or(default.after, |(is_asked, _)| is_asked),
        on_failure: parsed(
            layers,
            &env::MODERATION_ON_FAILURE,
            |settings| settings.moderation.on_failure.as_ref(),
            default.on_failure,
        )?,
        timeout_seconds: within(
            layers,
            &env::MODERATION_TIMEOUT_SECONDS,
            |settings| settings.moderation.timeout_seconds,
            &TIMEOUT_SECONDS,
            default.timeout_seconds,
        )?,
        secret: secret(layers)?,
    };
    match last(layers, |settings| settings.moderation.url.as_ref()) {
        // Whoever set those believes that something is asked.
        None => without_url(layers).map(|()| config),
        Some((_, origin)) if !config.before && !config.after => {
            let reason = "would be asked nothing: `moderation.before` or `moderation.after` must be true";
            Err(origin.error(&env::MODERATION_URL, reason.to_owned()))
        }
        _ => Ok(config),
    }
}

fn without_url(layers: &[Layer]) -> Result<(), ConfigError> {
    refuse(layers, "has no effect, because nothing is asked: set `moderation.url`, or leave it out", |settings| {
        let moderation = &settings.moderation;
        vec![
            (moderation.before.is_some(), &env::MODERATION_BEFORE),
            (moderation.after.is_some(), &env::MODERATION_AFTER),
            (moderation.on_failure.is_some(), &env::MODERATION_ON_FAILURE),
            (moderation.timeout_seconds.is_some(), &env::MODERATION_TIMEOUT_SECONDS),
            (moderation.secret.is_some(), &env::MODERATION_SECRET),
        ]
    })
}

fn url(layers: &[Layer]) -> Result<Option<String>, ConfigError> {
    let Some((text, origin)) = last(layers, |settings| settings.moderation.url.as_ref()) else { return Ok(None) };
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_url = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(['#', '@', ' ']));
    if is_url {
        return Ok(Some(text.clone()));
    }
    // It may contain a secret: the reason does not repeat it.
    let reason = "is not a URL: write it like https://moderation.example.org/review, with the secret in \
                  `moderation.secret`";
    Err(origin.error(&env::MODERATION_URL, reason.to_owned()))
}

fn secret(layers: &[Layer]) -> Result<Option<SharedSecret>, ConfigError> {
    let Some((SecretText(text), origin)) = last(layers, |settings| settings.moderation.secret.as_ref()) else {
        return Ok(None);
    };
    // The reason does not repeat the text.
    let secret =
        text.parse::<SharedSecret>().map_err(|unfit| origin.error(&env::MODERATION_SECRET, format!("{unfit}")));
    secret.map(Some)
}
