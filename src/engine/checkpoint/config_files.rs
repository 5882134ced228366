//! Reads the configuration files of a checkpoint.

use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::source::Source;
use crate::engine::models::flux1::config::{
    CLIP, ClipConfig, Configs, SCHEDULER, SchedulerConfig, T5, T5Config, TRANSFORMER, TransformerConfig, VAE, VaeConfig,
};

/// Reads all configuration files. `None` when one is missing, unreadable, or does not fit the others.
///
/// The transformer's, the autoencoder's and the scheduler's may be absent, as they are beside the single files. Then
/// FLUX.1-dev's published dimensions apply, and the inventory reports weights of other shapes.
pub(super) fn read(source: Source, problems: &mut Vec<Problem>) -> Option<Configs> {
    let before = problems.len();
    let transformer = optional(source, TRANSFORMER, TransformerConfig::flux_dev, problems);
    let vae = optional(source, VAE, VaeConfig::flux, problems);
    let scheduler = optional(source, SCHEDULER, SchedulerConfig::flux_dev, problems);
    let clip = required::<ClipConfig>(source, CLIP, problems);
    let t5 = required::<T5Config>(source, T5, problems);
    let configs = Configs { transformer: transformer?, vae: vae?, clip: clip?, t5: t5?, scheduler: scheduler? };
    for (path, reason) in configs.contradictions() {
        problems.push(Problem::unreadable(path, reason));
    }
    (problems.len() == before).then_some(configs)
}

fn parse<T: DeserializeOwned>(path: &str, text: &str, problems: &mut Vec<Problem>) -> Option<T> {
    match serde_json::from_str(text) {
        Ok(config) => Some(config),
        Err(error) => {
            problems.push(Problem::unreadable(path, error));
            None
        }
    }
}

fn required<T: DeserializeOwned>(source: Source, path: &str, problems: &mut Vec<Problem>) -> Option<T> {
    let text = source.required_text(path, problems)?;
    parse(path, &text, problems)
}

fn optional<T: DeserializeOwned>(
    source: Source,
    path: &str,
    default: impl FnOnce() -> T,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let before = problems.len();
    match source.text(path, problems) {
        Some(text) => parse(path, &text, problems),
        None => (problems.len() == before).then(default),
    }
}
