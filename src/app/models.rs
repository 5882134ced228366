//! `models list` and `models check`, and where a model's card and files come from.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, bail};
use rayon::prelude::*;

use super::cards::{as_served, attachment_lines};
use super::fetching::size;
use super::hub::{hint, located, refuse_not_yet, with_base};
use crate::catalog::{self, Catalog, CatalogError, FileRepository};
use crate::config::Config;
use crate::domain::model::{ModelCard, ModelFiles};
use crate::domain::model_source::ModelSource;
use crate::engine;
use crate::hub::{KnownFile, checksum_of, known_files};

/// Files up to this size are always verified: it takes no time.
const SMALL_FILE_BYTES_MAX: u64 = 16 << 20;

/// Finds a model's files: in the named folder, in the program, or in the cache.
pub(super) fn files_of(config: &Config, source: &ModelSource) -> anyhow::Result<ModelFiles> {
    refuse_not_yet(&source.id)?;
    let embedded = || catalog::embedded_files(&source.id).filter(|_| source.parts.is_empty());
    if let Some(files) = source.directory.is_none().then(embedded).flatten() {
        return Ok(files);
    }
    let found = located(config, source).map(|source| with_base(config, source)).transpose()?;
    match found.and_then(|source| source.files()) {
        Some(files) => Ok(files),
        None if catalog::known_model(&source.id).is_some() => Err(CatalogError::NoFiles(source.id.clone()).into()),
        None => Err(CatalogError::UnknownModel(source.id.clone()).into()),
    }
}

/// A model in the list. The order is that of the list.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// It is served.
    Served,
    /// Its files are here.
    Here,
    /// It can be downloaded.
    Missing,
    /// It is not supported yet.
    NotYet,
}

impl State {
    fn of(is_served: bool, is_here: bool) -> Self {
        match (is_served, is_here) {
            (true, _) => Self::Served,
            (false, true) => Self::Here,
            (false, false) => Self::Missing,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Here | Self::Missing => "known",
            Self::NotYet => "not yet",
        }
    }
}

/// Writes the models and the repositories of single files, where they are, what they need, and under which license: first
/// those that are served, then those that are here.
///
/// # Errors
/// When it cannot be written.
pub fn list_models(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for known in catalog::known_models() {
        let id = &known.card.id;
        let configured = config.models.iter().find(|source| source.id == *id);
        let source = ModelSource::new(id.clone(), None);
        let found = located(config, configured.unwrap_or(&source));
        let state = State::of(configured.is_some(), found.is_some());
        let (state, place) = match (known.not_yet, found) {
            (Some(reason), _) => (State::NotYet, reason),
            (None, Some(found)) => (state, place(&found) + &beside(Some(&found))),
            (None, None) => (state, format!("not here: `fluxserve models download {id}` downloads it")),
        };
        rows.push((state, id.to_string(), known.licence.name, place));
    }
    rows.extend(catalog::file_repositories().iter().map(|repository| row_of(config, repository)));
    for source in &config.models {
        if catalog::known_model(&source.id).is_none() && catalog::file_repository(&source.id).is_none() {
            let found = located(config, source);
            let place = found.as_ref().map_or_else(|| "not here".to_owned(), place);
            let place = place + &beside(found.as_ref());
            rows.push((State::Served, source.id.to_string(), "-".to_owned(), place));
        }
    }
    rows.sort();
    for (state, id, licence, place) in rows {
        let state = state.word();
        writeln!(out, "{id:<36} {state:<8} {licence:<37} {place}")?;
    }
    Ok(())
}

/// The row of a repository of single files: where they are, and what they need.
fn row_of(config: &Config, repository: &FileRepository) -> (State, String, String, String) {
    let configured = config.models.iter().find(|source| source.id == repository.id);
    let source = ModelSource::new(repository.id.clone(), None);
    let found = located(config, configured.unwrap_or(&source));
    let state = State::of(configured.is_some(), found.is_some());
    let place = found.as_ref().map_or_else(
        || format!("not here: `fluxserve models download {}` lists {}", repository.id, sizes_of(repository)),
        place,
    );
    let place = format!("{place}; {}{}", repository.need(), beside(found.as_ref()));
    (state, repository.id.to_string(), repository.licence.name.clone(), place)
}

/// The sizes of a repository's files, as far as they are known.
fn sizes_of(repository: &FileRepository) -> String {
    let known = || repository.files.iter().filter_map(|file| file.bytes);
    match (known().min(), known().max()) {
        (Some(least), Some(most)) if least < most => format!("its files of {} to {}", size(least), size(most)),
        (Some(bytes), _) => format!("its files, one of {}", size(bytes)),
        _ => "its files".to_owned(),
    }
}

fn place(source: &ModelSource) -> String {
    source.directory.as_ref().map_or_else(|| "in the program".to_owned(), |directory| directory.display().to_string())
}

/// What is loaded beside a model, if it is here, in lines behind its own.
fn beside(source: Option<&ModelSource>) -> String {
    let lines = source.map(|source| attachment_lines(&source.parts.attachments)).unwrap_or_default();
    in_lines(&lines, "\n    ")
}

/// Lines, each behind a break.
pub(super) fn in_lines(lines: &[String], line_break: &str) -> String {
    lines.iter().flat_map(|line| [line_break, line]).collect()
}

/// Builds the catalog of the models that are served, each with the card that its files make.
pub(super) fn catalog_of(config: &Config, sources: &[ModelSource]) -> anyhow::Result<Catalog> {
    let mut catalog = Catalog::new(sources)?.with_precision(config.engine.precision);
    for (card, files) in catalog.served() {
        catalog = catalog.with_card(as_served(ModelCard::clone(&card), &files)?);
    }
    Ok(catalog.with_input_images_max(&config.max_input_images)?)
}

/// Writes which tensors a checkpoint has and lacks, what its files say of themselves, and whether they equal the hub's. Large
/// files are verified only with `compares_all`.
///
/// # Errors
/// When the checkpoint is not complete.
pub fn check_model(
    config: &Config,
    model: &ModelSource,
    compares_all: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let is_named = model.directory.is_some() || !model.parts.is_empty();
    let configured = config.models.iter().find(|source| source.id == model.id && !is_named);
    let files = files_of(config, configured.unwrap_or(model))?;
    let inspection = engine::inspect(&files);
    writeln!(out, "{}: {inspection}", model.id)?;
    for metadata in &inspection.metadata {
        writeln!(out, "{metadata}")?;
    }
    for line in files.attachments().map(attachment_lines).unwrap_or_default() {
        writeln!(out, "  {line}")?;
    }
    let mut damaged = 0;
    if let Some(folder) = files.path().filter(|path| path.is_dir()) {
        writeln!(out, "  {}", license(model, folder))?;
        damaged = compare(folder, compares_all, out)?;
    }
    if !inspection.is_sound() || damaged > 0 {
        bail!("the checkpoint of `{}` is not usable{}", model.id, hint(config, &model.id, &files));
    }
    Ok(())
}

/// The license of a folder's weights.
fn license(model: &ModelSource, folder: &Path) -> String {
    let is_license = |name: &str| {
        let upper = name.to_ascii_uppercase();
        upper.starts_with("LICENSE") || upper.starts_with("LICENCE")
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_license(name)).collect();
    found.sort();
    let of_files = || catalog::file_repository(&model.id).map(|repository| repository.licence);
    let known = catalog::known_model(&model.id).map(|known| known.licence).or_else(of_files);
    match (found.is_empty(), known) {
        (false, Some(known)) => format!("license: {} ({})", found.join(", "), known.name),
        (false, None) => format!("license: {}", found.join(", ")),
        (true, Some(known)) => format!("license: no file here; it is {}, {}", known.name, known.url),
        (true, None) => "license: no file here".to_owned(),
    }
}

/// Verifies files, and writes which are damaged. Returns their number.
fn compare(folder: &Path, compares_all: bool, out: &mut dyn Write) -> anyhow::Result<usize> {
    let known = known_files(folder);
    if known.is_empty() {
        writeln!(out, "  checksums: unknown, because this folder was not downloaded from the hub")?;
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
    let rest = if count < all { "; the large ones were not read, `--checksums` does that" } else { "" };
    writeln!(out, "  checksums: {} of {all} files equal the hub's{rest}", count - damaged)?;
    Ok(damaged)
}

fn fault(file: &KnownFile) -> anyhow::Result<Option<String>> {
    let found = checksum_of(&file.content, &file.checksum).with_context(|| format!("reading `{}`", file.path))?;
    let text = || {
        let (path, kind, content) = (&file.path, file.checksum.kind(), file.content.display());
        let (found, expected) = (found.digits(), file.checksum.digits());
        format!("{path}: its {kind} is {found}, the hub's is {expected}: delete `{content}` and download it again")
    };
    Ok((found != file.checksum).then(text))
}
