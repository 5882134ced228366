//! The models to serve.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::last;
use crate::config::ConfigError;
use crate::config::env;
use crate::config::settings::{Layer, ModelSetting, ModelTable};
use crate::domain::conditioning::REFERENCES_MAX;
use crate::domain::ids::ModelId;
use crate::domain::model::Attachments;
use crate::domain::model_source::{ModelParts, ModelSource};

/// Maximum models of one worker.
const MODELS_MAX: usize = 64;

/// The models to serve.
pub(super) fn models(layers: &[Layer], default: Vec<ModelSource>) -> Result<Vec<ModelSource>, ConfigError> {
    let Some((models, origin)) = last(layers, |settings| settings.models.as_ref()) else { return Ok(default) };
    let parse = |text: &str| {
        let error = |error| origin.error(&env::MODELS, format!("`{text}`: {error}"));
        text.parse::<ModelSource>().map_err(error)
    };
    let source = |model: &ModelSetting| match model {
        ModelSetting::Text(text) => parse(text),
        ModelSetting::Table(table) => parse(&table.id).map(|source| ModelSource {
            directory: table.path.clone().or(source.directory),
            parts: ModelParts {
                base: table.base.clone(),
                text_encoders: table.text_encoders.clone(),
                vae: table.vae.clone(),
                attachments: attachments(table),
            },
            id: source.id,
        }),
    };
    let models: Vec<ModelSource> = models.iter().map(source).collect::<Result<_, _>>()?;
    check_models(&models).map_err(|reason| origin.error(&env::MODELS, reason))?;
    Ok(models)
}

fn attachments(table: &ModelTable) -> Attachments {
    let net = |(name, path): (&String, &PathBuf)| (Arc::from(name.as_str()), path.clone());
    Attachments {
        controlnets: table.controlnets.iter().map(net).collect(),
        redux: table.redux.clone(),
        depth: table.depth.clone(),
    }
}

/// The most input images of models for which they are set.
pub(super) fn max_input_images(layers: &[Layer]) -> Result<BTreeMap<ModelId, usize>, ConfigError> {
    let Some((counts, origin)) = last(layers, |settings| settings.max_input_images.as_ref()) else {
        return Ok(BTreeMap::new());
    };
    let most = REFERENCES_MAX;
    let count = |(id, count): (&String, &u64)| match usize::try_from(*count) {
        Ok(allowed) if allowed <= most => Ok((ModelId::new(id.as_str()), allowed)),
        _ => {
            let rule = format!("must be 0 or 1, or up to {most} for FLUX.1-Kontext");
            Err(origin.error(&env::MAX_INPUT_IMAGES, format!("`{id}` {rule}, not {count}")))
        }
    };
    counts.iter().map(count).collect()
}

/// What is wrong with a list of models, if anything.
pub(in crate::config) fn check_models(models: &[ModelSource]) -> Result<(), String> {
    if models.is_empty() || models.len() > MODELS_MAX {
        return Err(format!("must name from 1 to {MODELS_MAX} models, not {}", models.len()));
    }
    let named_badly = |model: &ModelSource| Some((model.id.clone(), model.parts.attachments.name_fault()?));
    if let Some((id, fault)) = models.iter().find_map(named_badly) {
        return Err(format!("`controlnets` of `{id}`: {fault}"));
    }
    let mut seen = HashSet::new();
    match models.iter().find(|model| !seen.insert(&model.id)) {
        Some(twice) => Err(format!("names the model `{}` twice", twice.id)),
        None => Ok(()),
    }
}
