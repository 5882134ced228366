//! The configurations of a checkpoint: from its files, and where weights come without one, from the weights' shapes.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::files::WeightFiles;
use super::places::{Found, Places};
use super::problem::Problem;
use super::{schedules, shapes};
use crate::engine::models::flux1::config::{
    CLIP, ClipConfig, Configs, SCHEDULER, SchedulerConfig, T5, T5Config, TRANSFORMER, TransformerConfig, VAE,
    VaeConfig, t5_excesses,
};

/// The components' weights, as far as they were found.
pub(super) struct Parts<'a, 'b> {
    pub(super) transformer: Option<&'b Found<'a>>,
    pub(super) vae: Option<&'b Found<'a>>,
    pub(super) clip: Option<&'b Found<'a>>,
    pub(super) t5: Option<&'b Found<'a>>,
}

/// Reads all configurations. `None` when one is missing, unreadable, or does not fit the others.
///
/// The transformer's, the autoencoder's and the scheduler's may be absent, as they are beside the single files. Then
/// FLUX.1's published dimensions apply where shapes do not tell.
pub(super) fn read(places: &Places, parts: &Parts, problems: &mut Vec<Problem>) -> Option<Configs> {
    let before = problems.len();
    let of = |path, found| Reader { places, path, found, is_required: false };
    let of_encoder = |path, found| Reader { places, path, found, is_required: true };
    let transformer = of(TRANSFORMER, parts.transformer);
    let transformer = transformer.read(TransformerConfig::flux_dev, shapes::transformer, problems);
    let vae = of(VAE, parts.vae).read(VaeConfig::flux, shapes::vae, problems);
    let transformer = transformer.map(|config| predicting(config, vae.as_ref()));
    let scheduler = scheduler(places, transformer.as_ref(), problems);
    let clip = of_encoder(CLIP, parts.clip).read(ClipConfig::large, shapes::clip, problems);
    let t5 = of_encoder(T5, parts.t5).read(T5Config::xxl, shapes::t5, problems);
    let configs = Configs { transformer: transformer?, vae: vae?, clip: clip?, t5: t5?, scheduler: scheduler? };
    for (path, reason) in configs.contradictions() {
        problems.push(Problem::unreadable(path, reason));
    }
    (problems.len() == before).then_some(configs)
}

/// Reads the transformer's configuration, where no other is needed. `None` when it is missing, unreadable, or excessive.
pub(super) fn transformer<'a>(
    places: &Places<'a>,
    found: Option<&Found<'a>>,
    problems: &mut Vec<Problem>,
) -> Option<TransformerConfig> {
    let reader = Reader { places, path: TRANSFORMER, found, is_required: false };
    let mut config = reader.read(TransformerConfig::flux_dev, shapes::transformer, problems)?;
    // The autoencoder, which would tell, is not there.
    config.out_channels = config.out_channels.or_else(|| shapes::predicted(&found?.files));
    has_none(config.excesses(), problems).then_some(config)
}

/// A transformer predicts latents of the autoencoder where its file does not say of how many channels.
fn predicting(mut config: TransformerConfig, vae: Option<&VaeConfig>) -> TransformerConfig {
    let of_latents = |vae: &VaeConfig| vae.latent_channels.saturating_mul(4);
    config.out_channels = config.out_channels.or_else(|| vae.map(of_latents));
    config
}

/// Reads T5's configuration, as [`transformer`] reads the transformer's.
pub(super) fn t5<'a>(places: &Places<'a>, found: Option<&Found<'a>>, problems: &mut Vec<Problem>) -> Option<T5Config> {
    let reader = Reader { places, path: T5, found, is_required: true };
    let config = reader.read(T5Config::xxl, shapes::t5, problems)?;
    has_none(t5_excesses(&config), problems).then_some(config)
}

fn has_none(excesses: Vec<(&'static str, String)>, problems: &mut Vec<Problem>) -> bool {
    let is_sound = excesses.is_empty();
    problems.extend(excesses.into_iter().map(|(path, reason)| Problem::unreadable(path, reason)));
    is_sound
}

/// Reads the configuration of a component.
struct Reader<'a, 'b> {
    places: &'b Places<'a>,
    /// Its path in the diffusers layout.
    path: &'static str,
    found: Option<&'b Found<'a>>,
    /// Whether weights in a folder need one.
    is_required: bool,
}

impl Reader<'_, '_> {
    /// `default` and `by_shapes` are for weights without a configuration of their own.
    fn read<T: DeserializeOwned>(
        &self,
        default: impl FnOnce() -> T,
        by_shapes: impl FnOnce(&WeightFiles, T) -> T,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let before = problems.len();
        if let Some(Found { config: Some((source, path)), .. }) = self.found {
            let shown = source.shown(path);
            let Some(text) = source.text(path, problems) else {
                if self.is_required && problems.len() == before {
                    problems.push(Problem::missing(shown));
                }
                return (problems.len() == before).then(default);
            };
            return parse(&shown, &text, problems);
        }
        let text = match self.found {
            // A file alone has none, and the weights' absence is a problem already.
            None if self.is_required && !self.places.is_file() => Some(self.places.required_text(self.path, problems)?),
            _ => self.places.text(self.path, problems),
        };
        let config = match text {
            Some(text) => parse(self.path, &text, problems)?,
            None if problems.len() == before => default(),
            None => return None,
        };
        Some(match self.found {
            Some(found) => by_shapes(&found.files, config),
            None => config,
        })
    }
}

/// A file of another family's guidance does not follow the base's schedule.
fn scheduler(
    places: &Places,
    transformer: Option<&TransformerConfig>,
    problems: &mut Vec<Problem>,
) -> Option<SchedulerConfig> {
    let before = problems.len();
    let has_guidance = transformer.is_none_or(|transformer| transformer.guidance_embeds);
    let source = places.folders().find(|source| source.contains(SCHEDULER));
    let is_of_transformer = source.is_none_or(|source| {
        let text = source.text(TRANSFORMER, &mut Vec::new());
        let config = text.and_then(|text| serde_json::from_str::<TransformerConfig>(&text).ok());
        config.is_none_or(|config| config.guidance_embeds == has_guidance)
    });
    match source.filter(|_| is_of_transformer).and_then(|source| source.text(SCHEDULER, problems)) {
        Some(text) => {
            let reasons = schedules::unsupported(&text);
            problems.extend(reasons.into_iter().map(|reason| Problem::unreadable(SCHEDULER, reason)));
            parse(SCHEDULER, &text, problems)
        }
        None if problems.len() > before => None,
        None if has_guidance => Some(SchedulerConfig::flux_dev()),
        None => Some(SchedulerConfig::flux_schnell()),
    }
}

fn parse<T: DeserializeOwned>(path: &str, text: &str, problems: &mut Vec<Problem>) -> Option<T> {
    match serde_json::from_str(text).and_then(|config| serde_json::from_value(unnested(config))) {
        Ok(config) => Some(config),
        Err(error) => {
            problems.push(Problem::unreadable(path, error));
            None
        }
    }
}

/// A text encoder's configuration out of that of the whole model, in which transformers nests it.
fn unnested(mut config: Value) -> Value {
    let nested = config.get_mut("text_config").map(Value::take);
    nested.filter(Value::is_object).unwrap_or(config)
}
