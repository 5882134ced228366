//! Models from the hub: fetched when asked, and found in the cache where they were fetched before.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::fetching::Told;
use crate::catalog::{embedded_files, known_model};
use crate::config::Config;
use crate::domain::ids::ModelId;
use crate::domain::model::ModelFiles;
use crate::domain::model_source::ModelSource;
use crate::engine;
use crate::hub::{
    self, Downloaded, FileSystem, HubSettings, Patience, Progress, Proxy, RepositoryId, Request, Revision,
};

/// A model to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadRequest {
    /// Its name, which is its repository's.
    pub model: ModelId,
    /// A branch, a tag or a commit. `None`: the usual one.
    pub revision: Option<String>,
    /// A folder of its own. `None`: the cache that Hugging Face's tools share.
    pub folder: Option<PathBuf>,
}

/// Fetches a model, or what is missing of it, and looks whether it is whole.
///
/// # Errors
/// In words for the person who wanted it.
pub async fn download_model(
    config: &Config,
    request: DownloadRequest,
    progress: &dyn Progress,
) -> anyhow::Result<Downloaded> {
    refuse_not_yet(&request.model)?;
    if embedded_files(&request.model).is_some() {
        bail!("`{}` is part of this program: there is nothing to fetch", request.model);
    }
    let revision = request.revision.map(|text| text.parse::<Revision>()).transpose()?;
    let request = Request {
        repository: request.model.as_str().parse()?,
        revision: revision.unwrap_or_default(),
        folder: request.folder,
    };
    let downloaded = hub::download(&settings(config), &request, progress).await?;
    let inspection = engine::inspect(&ModelFiles::Directory(downloaded.folder.clone()));
    if !inspection.is_sound() {
        bail!("what `{}` holds cannot be used:\n{inspection}", request.repository);
    }
    Ok(downloaded)
}

/// Refuses a model that has a name and does not work yet.
pub(super) fn refuse_not_yet(model: &ModelId) -> anyhow::Result<()> {
    match known_model(model).and_then(|known| known.not_yet) {
        Some(reason) => bail!("`{model}` does not work yet: {reason}"),
        None => Ok(()),
    }
}

/// The models to be served with their folders, those from the cache as well. What is missing is fetched first where the
/// configuration says so.
pub(super) async fn at_hand(config: &Config) -> anyhow::Result<Vec<ModelSource>> {
    let mut sources = Vec::with_capacity(config.models.len());
    for source in &config.models {
        let found = located(config, source);
        let is_hubs = source.directory.is_none() && embedded_files(&source.id).is_none();
        if config.hub.download && is_hubs && !found.as_ref().is_some_and(is_whole) {
            sources.push(fetched(config, source).await.with_context(|| format!("fetching `{}`", source.id))?);
        } else {
            sources.push(found.unwrap_or_else(|| source.clone()));
        }
    }
    Ok(sources)
}

async fn fetched(config: &Config, source: &ModelSource) -> anyhow::Result<ModelSource> {
    let request = DownloadRequest { model: source.id.clone(), revision: None, folder: None };
    let progress = Told::new(|line: &str| tracing::info!("{line}"));
    let downloaded = download_model(config, request, &progress).await?;
    Ok(ModelSource { id: source.id.clone(), directory: Some(downloaded.folder) })
}

fn is_whole(source: &ModelSource) -> bool {
    let files = source.directory.clone().map(ModelFiles::Directory);
    files.is_some_and(|files| engine::inspect(&files).is_sound())
}

/// A model with its folder in the cache, where it names none itself and has one there.
pub(super) fn located(config: &Config, source: &ModelSource) -> Option<ModelSource> {
    if source.directory.is_some() || embedded_files(&source.id).is_some() {
        return Some(source.clone());
    }
    let repository: RepositoryId = source.id.as_str().parse().ok()?;
    let folder = hub::cached(&settings(config), &repository, &Revision::default())?;
    Some(ModelSource { id: source.id.clone(), directory: Some(folder) })
}

/// What to do about a model that is not whole: where it lies in the cache, it can be fetched again.
pub(super) fn remedy(config: &Config, id: &ModelId, files: &ModelFiles) -> String {
    let source = ModelSource { id: id.clone(), directory: None };
    let in_cache = located(config, &source).and_then(|found| found.directory);
    match (files, in_cache) {
        (ModelFiles::Directory(folder), Some(in_cache)) if *folder == in_cache => {
            format!("\n`fluxserve models download {id}` fetches what is missing")
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
