//! Models from the hub: downloads them on request, and finds downloaded ones in the cache.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};

use super::fetching::ProgressLines;
use super::file_choice::{explained, unreadable};
use crate::catalog::{embedded_files, known_model, open_parts};
use crate::config::Config;
use crate::domain::ids::ModelId;
use crate::domain::model::ModelFiles;
use crate::domain::model_source::{ModelParts, ModelSource};
use crate::engine;
use crate::hub::{
    self, Downloaded, FileSystem, HubError, HubSettings, Patience, Progress, Proxy, RepositoryId, Request, Revision,
};

/// A model to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadRequest {
    /// Its id, which is also its repository's name.
    pub model: ModelId,
    /// A branch, a tag or a commit. `None`: the default branch.
    pub revision: Option<String>,
    /// The target folder. `None`: the cache that Hugging Face's tools share.
    pub folder: Option<PathBuf>,
    /// The files of the repository, by their names or parts of them. Empty: what a pipeline needs, or the only weight file.
    pub files: Vec<String>,
}

/// Downloads a model or its missing files, and checks that it is complete; or the files that are named, and checks that they
/// can be read.
///
/// # Errors
/// In words for the user.
pub async fn download_model(
    config: &Config,
    request: DownloadRequest,
    progress: &dyn Progress,
) -> anyhow::Result<Downloaded> {
    refuse_not_yet(&request.model)?;
    if embedded_files(&request.model).is_some() {
        bail!("`{}` is part of this program: there is nothing to download", request.model);
    }
    let revision = request.revision.map(|text| text.parse::<Revision>()).transpose()?;
    let request = Request {
        repository: request.model.as_str().parse()?,
        revision: revision.unwrap_or_default(),
        folder: request.folder,
        files: request.files,
        file_bytes_max: None,
    };
    let downloaded = hub::download(&settings(config), &request, progress).await;
    let downloaded = downloaded.map_err(|error| explained(config, error))?;
    if !downloaded.chosen.is_empty() {
        return match unreadable(&downloaded) {
            Some(fault) => bail!("what `{}` holds cannot be used: {fault}", request.repository),
            None => Ok(downloaded),
        };
    }
    let inspection = engine::inspect(&ModelFiles::Directory(downloaded.folder.clone()));
    if !inspection.is_sound() {
        bail!("what `{}` holds cannot be used:\n{inspection}", request.repository);
    }
    Ok(downloaded)
}

/// Downloads files of a repository into the cache, named whole or in part; without a name, the only weight file. None of them may
/// have more than `file_bytes_max` bytes.
pub(super) async fn download_files(
    config: &Config,
    (repository, revision): (&str, Option<String>),
    (files, file_bytes_max): (Vec<String>, u64),
    progress: &dyn Progress,
) -> anyhow::Result<Downloaded> {
    let revision = revision.map(|text| text.parse::<Revision>()).transpose()?.unwrap_or_default();
    let (repository, file_bytes_max) = (repository.parse::<RepositoryId>()?, Some(file_bytes_max));
    let request = Request { repository, revision, folder: None, files, file_bytes_max };
    let downloaded = hub::download(&settings(config), &request, progress).await;
    downloaded.map_err(|error| explained(config, error))
}

/// Refuses a known model that is not supported yet.
pub(super) fn refuse_not_yet(model: &ModelId) -> anyhow::Result<()> {
    match known_model(model).and_then(|known| known.not_yet) {
        Some(reason) => bail!("`{model}` does not work yet: {reason}"),
        None => Ok(()),
    }
}

/// Finds the folders of the models to be served, and of their bases, in the cache as well. Downloads missing ones first if the
/// configuration says so.
pub(super) async fn local_models(config: &Config) -> anyhow::Result<Vec<ModelSource>> {
    let mut sources = Vec::with_capacity(config.models.len());
    for source in &config.models {
        let progress = ProgressLines::new(|line: &str| tracing::info!("{line}"));
        sources.push(local_model(config, source, &progress).await?);
    }
    Ok(sources)
}

/// Finds a model's folder, and its base's, in the cache as well. Downloads missing ones first if the configuration says so.
///
/// # Errors
/// When a download fails, or the base is not here.
pub async fn local_model(
    config: &Config,
    source: &ModelSource,
    progress: &dyn Progress,
) -> anyhow::Result<ModelSource> {
    refuse_not_yet(&source.id)?;
    let found = located(config, source);
    let is_hubs = source.directory.is_none() && embedded_files(&source.id).is_none();
    let source = if config.hub.download && is_hubs && !found.as_ref().is_some_and(is_complete) {
        let downloaded = downloaded(config, &source.id, progress).await;
        let path = downloaded.with_context(|| format!("downloading `{}`", source.id))?;
        ModelSource { directory: Some(path), ..source.clone() }
    } else {
        found.unwrap_or_else(|| source.clone())
    };
    if config.hub.download
        && let Some(base) = missing_base(config, &source)
    {
        let downloaded = downloaded(config, &base, progress).await.map_err(with_open_parts);
        downloaded.with_context(|| format!("downloading `{base}`, the base of `{}`", source.id))?;
    }
    with_base(config, source)
}

/// Downloads a model. Returns its folder, or its file where the repository has a single one.
async fn downloaded(config: &Config, model: &ModelId, progress: &dyn Progress) -> anyhow::Result<PathBuf> {
    let request = DownloadRequest { model: model.clone(), revision: None, folder: None, files: Vec::new() };
    let downloaded = download_model(config, request, progress).await?;
    Ok(downloaded.chosen.into_iter().next().unwrap_or(downloaded.folder))
}

/// A base that is named by its id and not complete here, while the model lacks something that it does not have either.
fn missing_base(config: &Config, source: &ModelSource) -> Option<ModelId> {
    let base = source.parts.base.as_ref().filter(|base| !base.is_dir() && source.directory.is_some())?;
    let base = ModelSource::new(ModelId::new(base.to_string_lossy()), None);
    if embedded_files(&base.id).is_some() || base.id.as_str().parse::<RepositoryId>().is_err() {
        return None;
    }
    let is_here = located(config, &base).as_ref().is_some_and(is_complete);
    let suffices = || with_base(config, source.clone()).is_ok_and(|whole| is_complete(&whole));
    (!is_here && !suffices()).then_some(base.id)
}

/// Says which repositories have parts of a base that only some accounts can download.
fn with_open_parts(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<HubError>() {
        Some(HubError::GatedWithoutToken { .. } | HubError::GatedNotAccepted { .. }) => anyhow!(
            "{error}\nwithout an account, `fluxserve models download ID --file NAME` gets text encoders and autoencoders for \
             `--text-encoder` and `--vae` from {}; they have no tokenizers",
            open_parts()
        ),
        _ => error,
    }
}

/// Whether a model has all that it needs.
pub(super) fn is_complete(source: &ModelSource) -> bool {
    source.files().is_some_and(|files| engine::inspect(&files).is_sound())
}

/// A model with its folder: the one that was named, or the one in the cache.
pub(super) fn located(config: &Config, source: &ModelSource) -> Option<ModelSource> {
    if source.directory.is_some() || embedded_files(&source.id).is_some() {
        return Some(source.clone());
    }
    let repository: RepositoryId = source.id.as_str().parse().ok()?;
    let folder = hub::cached(&settings(config), &repository, &Revision::default())?;
    Some(ModelSource { directory: Some(folder), ..source.clone() })
}

/// A model whose base is a folder: the one that was named, or the one in the cache.
pub(super) fn with_base(config: &Config, source: ModelSource) -> anyhow::Result<ModelSource> {
    if source.directory.is_none() && !source.parts.is_empty() {
        bail!("`{}` is complete in itself: parts are for a model with a folder or a file, `ID=PATH`", source.id);
    }
    let Some(base) = source.parts.base.as_ref().filter(|base| !base.is_dir()) else { return Ok(source) };
    let named = ModelSource::new(ModelId::new(base.to_string_lossy()), None);
    match located(config, &named).and_then(|found| found.directory) {
        Some(folder) => {
            let parts = ModelParts { base: Some(folder), ..source.parts.clone() };
            Ok(ModelSource { parts, ..source })
        }
        None => bail!(
            "the base `{id}` of `{}` is neither a folder nor a downloaded model: `fluxserve models download {id}` downloads it, \
             and so does `--download`",
            source.id,
            id = named.id
        ),
    }
}

/// Hint for an incomplete model: one in the cache can be downloaded again.
pub(super) fn hint(config: &Config, id: &ModelId, files: &ModelFiles) -> String {
    let source = ModelSource::new(id.clone(), None);
    let in_cache = located(config, &source).and_then(|found| found.directory);
    match (files, in_cache) {
        (ModelFiles::Directory(folder), Some(in_cache)) if *folder == in_cache => {
            format!("\n`fluxserve models download {id}` downloads what is missing")
        }
        _ => String::new(),
    }
}

fn settings(config: &Config) -> HubSettings {
    let hub = &config.hub;
    let url = |url: &Option<crate::config::ProxyUrl>| url.as_ref().map(|url| url.reveal().to_owned());
    HubSettings {
        endpoint: hub.endpoint.clone(),
        token: hub.token.clone(),
        token_file: hub.token_file.clone(),
        cache_dir: hub.cache_dir.clone(),
        is_offline: hub.is_offline,
        proxy: Proxy { https: url(&hub.proxy.https), http: url(&hub.proxy.http), except: hub.proxy.except.clone() },
        patience: Patience::default(),
        file_system: FileSystem::default(),
    }
}
