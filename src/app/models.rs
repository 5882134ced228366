//! `models list` and `models check`, and where a model's card and files come from.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, bail};
use rayon::prelude::*;

use super::hub::{located, refuse_not_yet, remedy};
use crate::catalog::{self, Catalog, CatalogError};
use crate::config::Config;
use crate::domain::model::ModelFiles;
use crate::domain::model_source::ModelSource;
use crate::engine;
use crate::hub::{KnownFile, checksum_of, known_files};

/// Files up to this many bytes are compared with their checksums whether that was asked for or not: it takes no time.
const SMALL_FILE_BYTES_MAX: u64 = 16 << 20;

/// A model's files: the folder that was named, what is compiled into the program, or what the cache has.
pub(super) fn files_of(config: &Config, source: &ModelSource) -> anyhow::Result<ModelFiles> {
    refuse_not_yet(&source.id)?;
    if let Some(files) = source.directory.is_none().then(|| catalog::embedded_files(&source.id)).flatten() {
        return Ok(files);
    }
    match located(config, source).and_then(|source| source.directory) {
        Some(directory) => Ok(ModelFiles::Directory(directory)),
        None if catalog::known_model(&source.id).is_some() => Err(CatalogError::NoFiles(source.id.clone()).into()),
        None => Err(CatalogError::UnknownModel(source.id.clone()).into()),
    }
}

/// Writes which models there are, where, and under which licence.
///
/// # Errors
/// When a model to be served has a name that none can have.
pub fn list_models(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for known in catalog::known_models() {
        let id = &known.card.id;
        let configured = config.models.iter().find(|source| source.id == *id);
        let source = ModelSource { id: id.clone(), directory: None };
        let (state, place) = match (&known.not_yet, located(config, configured.unwrap_or(&source))) {
            (Some(reason), _) => ("not yet", reason.clone()),
            (None, Some(found)) => (served(configured.is_some()), place(&found)),
            (None, None) => {
                (served(configured.is_some()), format!("not here: `fluxserve models download {id}` fetches it"))
            }
        };
        rows.push((id.to_string(), state, known.licence.name, place));
    }
    for source in &config.models {
        if catalog::known_model(&source.id).is_none() {
            let found = located(config, source);
            let place = found.as_ref().map_or_else(|| "not here".to_owned(), place);
            rows.push((source.id.to_string(), served(true), "-".to_owned(), place));
        }
    }
    for (id, state, licence, place) in rows {
        writeln!(out, "{id:<36} {state:<8} {licence:<37} {place}")?;
    }
    Ok(())
}

fn served(is_served: bool) -> &'static str {
    if is_served { "served" } else { "known" }
}

fn place(source: &ModelSource) -> String {
    source.directory.as_ref().map_or_else(|| "in the program".to_owned(), |directory| directory.display().to_string())
}

/// The catalog of the models that are to be served.
pub(super) fn catalog_of(config: &Config, sources: &[ModelSource]) -> anyhow::Result<Catalog> {
    let catalog = Catalog::new(sources)?.with_precision(config.engine.precision);
    Ok(catalog.with_input_images_max(&config.max_input_images)?)
}

/// Writes what a checkpoint has and lacks, tensor by tensor, and whether its files are those of the hub. Large files are
/// read for that only with `compares_all`.
///
/// # Errors
/// When the checkpoint is not complete.
pub fn check_model(
    config: &Config,
    model: &ModelSource,
    compares_all: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let configured = config.models.iter().find(|source| source.id == model.id && model.directory.is_none());
    let files = files_of(config, configured.unwrap_or(model))?;
    let inspection = engine::inspect(&files);
    writeln!(out, "{}: {inspection}", model.id)?;
    let mut damaged = 0;
    if let ModelFiles::Directory(folder) = &files {
        writeln!(out, "  {}", licence(model, folder))?;
        damaged = compare(folder, compares_all, out)?;
    }
    if !inspection.is_sound() || damaged > 0 {
        bail!("the checkpoint of `{}` is not usable{}", model.id, remedy(config, &model.id, &files));
    }
    Ok(())
}

/// Under what terms a folder's weights are.
fn licence(model: &ModelSource, folder: &Path) -> String {
    let is_licence = |name: &str| {
        let upper = name.to_ascii_uppercase();
        upper.starts_with("LICENSE") || upper.starts_with("LICENCE")
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_licence(name)).collect();
    found.sort();
    let known = catalog::known_model(&model.id).map(|known| known.licence);
    match (found.is_empty(), known) {
        (false, Some(known)) => format!("licence: {} ({})", found.join(", "), known.name),
        (false, None) => format!("licence: {}", found.join(", ")),
        (true, Some(known)) => format!("licence: no file here; it is {}, {}", known.name, known.url),
        (true, None) => "licence: no file here".to_owned(),
    }
}

/// Compares files with what the hub has, and says which are others; so many are.
fn compare(folder: &Path, compares_all: bool, out: &mut dyn Write) -> anyhow::Result<usize> {
    let known = known_files(folder);
    if known.is_empty() {
        writeln!(out, "  checksums: none are known, since this folder did not come from the hub by way of its tools")?;
        return Ok(0);
    }
    let is_small =
        |file: &KnownFile| std::fs::metadata(&file.content).map_or(0, |found| found.len()) <= SMALL_FILE_BYTES_MAX;
    let all = known.len();
    let compared: Vec<KnownFile> = known.into_iter().filter(|file| compares_all || is_small(file)).collect();
    let count = compared.len();
    let faults: Vec<anyhow::Result<Option<String>>> = compared.par_iter().map(fault).collect();
    let mut damaged = 0;
    for fault in faults {
        if let Some(fault) = fault? {
            damaged += 1;
            writeln!(out, "    {fault}")?;
        }
    }
    let rest = if count < all { ", the large ones not: `--checksums` reads them, too" } else { "" };
    writeln!(out, "  checksums: {} of {all} files equal the hub's{rest}", count - damaged)?;
    Ok(damaged)
}

fn fault(file: &KnownFile) -> anyhow::Result<Option<String>> {
    let found = checksum_of(&file.content, &file.checksum).with_context(|| format!("reading `{}`", file.path))?;
    let text = || {
        let (path, kind, content) = (&file.path, file.checksum.kind(), file.content.display());
        let (found, expected) = (found.digits(), file.checksum.digits());
        format!("{path}: its {kind} is {found}, the hub's is {expected}: delete `{content}` and fetch it again")
    };
    Ok((found != file.checksum).then(text))
}
