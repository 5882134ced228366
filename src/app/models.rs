//! `models list` and `models check`, and where a model's card and files come from.

use std::io::Write;

use anyhow::{anyhow, bail};

use crate::catalog::{self, Catalog};
use crate::config::Config;
use crate::domain::model::ModelFiles;
use crate::domain::model_source::ModelSource;
use crate::engine;

/// The catalog of the models that are to be served.
pub(super) fn catalog_of(config: &Config) -> anyhow::Result<Catalog> {
    Ok(Catalog::new(&config.models)?.with_input_images_max(&config.max_input_images)?)
}

/// A model's files: the folder that was named, or what is compiled into the program.
pub(super) fn files_of(source: &ModelSource) -> anyhow::Result<ModelFiles> {
    if let Some(directory) = &source.directory {
        return Ok(ModelFiles::Directory(directory.clone()));
    }
    catalog::embedded_files(&source.id).ok_or_else(|| {
        anyhow!("the weights of `{id}` are not part of this program: name their folder, `{id}=DIR`", id = source.id)
    })
}

/// Writes which models there are and where.
///
/// # Errors
/// When a model to be served has no files.
pub fn list_models(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let catalog = catalog_of(config)?;
    for card in catalog.cards() {
        let configured = config.models.iter().find(|source| source.id == card.id);
        let place = match configured.and_then(|source| source.directory.as_ref()) {
            Some(directory) => directory.display().to_string(),
            None if catalog::embedded_files(&card.id).is_some() => "in the program".to_owned(),
            None => format!("not here; serve it with `--model {}=DIR`", card.id),
        };
        let served = if configured.is_some() { "served" } else { "known" };
        writeln!(out, "{:<32} {served:<8} {place}", card.id.as_str())?;
    }
    Ok(())
}

/// Writes what a checkpoint has and lacks, tensor by tensor.
///
/// # Errors
/// When the checkpoint is not complete.
pub fn check_model(config: &Config, model: &ModelSource, out: &mut dyn Write) -> anyhow::Result<()> {
    let configured = config.models.iter().find(|source| source.id == model.id && model.directory.is_none());
    let inspection = engine::inspect(&files_of(configured.unwrap_or(model))?);
    writeln!(out, "{}: {inspection}", model.id)?;
    if !inspection.is_sound() {
        bail!("the checkpoint of `{}` is not usable", model.id);
    }
    Ok(())
}
