//! The catalog: adds, lists, finds and removes LoRAs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use super::files::{LoraFiles, Written};
use super::store::{Insertion, LoraStore, NewLora};
use super::upload::{self, Upload};
use super::{Fetch, FoundLora, HubFile, Inspect, Inspected, Lora, LoraError, name};
use crate::auth::Actor;
use crate::domain::adapter::AdapterId;
use crate::domain::clock::{Clock, to_the_millisecond};
use crate::store::Store;

/// Files that are added at the same time: each takes disk space before it is known to be of use.
const UPLOADS_MAX: usize = 4;

/// Parts of the catalog.
pub struct LoraParts {
    /// The database.
    pub store: Store,
    /// The folder of the files; created when the first one is added.
    pub folder: PathBuf,
    /// Inspects a file.
    pub inspect: Arc<Inspect>,
    /// Fetches a file from the hub.
    pub fetch: Arc<Fetch>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Largest file.
    pub file_bytes_max: u64,
}

/// The name of a LoRA that is added.
#[derive(Debug, Clone, Default)]
pub struct NewName {
    /// The one that was asked for.
    pub wanted: Option<String>,
    /// Its file's, from which one is made where none was asked for. For messages, too.
    pub file: String,
}

/// A LoRA that was added.
#[derive(Debug, Clone, PartialEq)]
pub struct Added {
    /// The LoRA.
    pub lora: Lora,
    /// Whether it was not there before.
    pub is_new: bool,
}

/// The catalog. Clones share it.
#[derive(Clone)]
pub struct LoraCatalog(Arc<Inner>);

struct Inner {
    store: LoraStore,
    files: LoraFiles,
    inspect: Arc<Inspect>,
    fetch: Arc<Fetch>,
    clock: Arc<dyn Clock>,
    file_bytes_max: u64,
    uploads: Arc<Semaphore>,
}

impl LoraCatalog {
    /// The catalog in a database and a folder.
    pub fn new(parts: LoraParts) -> Self {
        let LoraParts { store, folder, inspect, fetch, clock, file_bytes_max } = parts;
        let (store, files) = (LoraStore::new(store), LoraFiles::new(folder));
        let uploads = Arc::new(Semaphore::new(UPLOADS_MAX));
        Self(Arc::new(Inner { store, files, inspect, fetch, clock, file_bytes_max, uploads }))
    }

    /// Removes files that a crash has left: incomplete ones, and complete ones without a row. Returns how many.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub async fn sweep(&self) -> Result<usize, LoraError> {
        let mut held = self.0.store.hold().await?;
        let known = held.ids().await?;
        let files = self.0.files.clone();
        let swept = spawn_blocking(move || files.sweep(|id: &AdapterId| known.contains(id.as_str()))).await;
        held.release().await?;
        let removed = swept.map_err(io::Error::other)??;
        if removed > 0 {
            tracing::info!(files = removed, "removed what interrupted uploads of LoRAs have left");
        }
        Ok(removed)
    }

    /// The limit of a file's size.
    pub fn file_bytes_max(&self) -> u64 {
        self.0.file_bytes_max
    }

    /// Begins a file.
    ///
    /// # Errors
    /// [`LoraError::Busy`].
    pub fn begin(&self) -> Result<Upload, LoraError> {
        Ok(Upload::begin(&self.0.files, self.0.file_bytes_max, self.permit()?))
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, LoraError> {
        Arc::clone(&self.0.uploads).try_acquire_owned().map_err(|_| LoraError::Busy)
    }

    /// Adds a file that has arrived. It is on the disk and in the database when this returns. One that is there already is
    /// returned as it is.
    ///
    /// # Errors
    /// [`LoraError::Name`], [`LoraError::NameTaken`], [`LoraError::TooLarge`], [`LoraError::Rejected`],
    /// [`LoraError::TooMany`], or when the disk or the database fails.
    pub async fn add(&self, upload: Upload, name: NewName, by: &Actor) -> Result<Added, LoraError> {
        let (written, _permit) = upload.finish().await?;
        self.enter(written, &name, by).await
    }

    /// Adds a copy of a file, with the name that is wanted or one like the file's.
    ///
    /// # Errors
    /// As [`LoraCatalog::add`], and [`LoraError::Source`].
    pub async fn add_file(&self, path: &Path, wanted: Option<String>, by: &Actor) -> Result<Added, LoraError> {
        let name = NewName { wanted, file: file_name(path) };
        let (files, source, bytes_max) = (self.0.files.clone(), path.to_owned(), self.0.file_bytes_max);
        let written =
            spawn_blocking(move || upload::copy(&files, &source, bytes_max)).await.map_err(io::Error::other)??;
        self.enter(written, &name, by).await
    }

    /// Adds a copy of a file of the hub.
    ///
    /// # Errors
    /// As [`LoraCatalog::add_file`], [`LoraError::Busy`] and [`LoraError::NotFetched`].
    pub async fn add_from_hub(&self, file: HubFile, name: Option<String>, by: &Actor) -> Result<Added, LoraError> {
        let (fetch, permit) = (Arc::clone(&self.0.fetch), self.permit()?);
        // The permit goes with the work, which goes on if the caller gives up.
        let fetching = spawn_blocking(move || (fetch(file), permit));
        let (fetched, _permit) = fetching.await.map_err(io::Error::other)?;
        let path = fetched.map_err(LoraError::NotFetched)?;
        self.add_file(&path, name, by).await
    }

    async fn enter(&self, written: Written, new: &NewName, by: &Actor) -> Result<Added, LoraError> {
        let wanted = new.wanted.as_deref().map(name::checked).transpose()?;
        let (id, bytes) = (written.id.clone(), written.bytes);
        let mut held = self.0.store.hold().await?;
        if let Some(lora) = held.find(id.as_str()).await? {
            // Its file may be missing: a copy of the database has none. It cannot be removed meanwhile.
            self.name(written).await?;
            held.release().await?;
            return Ok(Added { lora, is_new: false });
        }
        held.release().await?;
        let (written, Inspected { report, thumbnail }) = self.inspect(written, &new.file).await?;
        let is_name_free = wanted.is_none();
        let lora = Lora {
            id,
            name: wanted.unwrap_or_else(|| name::of_file(&new.file)),
            bytes,
            report,
            has_thumbnail: thumbnail.is_some(),
            added_by: by.as_str().to_owned(),
            created_at: to_the_millisecond(self.0.clock.now()),
        };
        let new = NewLora { lora, thumbnail: thumbnail.as_deref(), is_name_free };
        match self.0.store.insert(new, by).await? {
            Insertion::There(lora) => Ok(Added { lora, is_new: false }),
            Insertion::Pending(held, lora) => {
                // A crash between these two leaves a file without a row, which the next start removes.
                self.name(written).await?;
                held.commit().await?;
                Ok(Added { lora, is_new: true })
            }
        }
    }

    async fn name(&self, written: Written) -> Result<(), LoraError> {
        let files = self.0.files.clone();
        Ok(spawn_blocking(move || files.name(&written)).await.map_err(io::Error::other)??)
    }

    /// Inspects a file. What is wrong with it is said with its own name, not with that of the folder here.
    async fn inspect(&self, written: Written, file: &str) -> Result<(Written, Inspected), LoraError> {
        let inspect = Arc::clone(&self.0.inspect);
        let inspecting = spawn_blocking(move || {
            let inspected = inspect(written.path());
            (written, inspected)
        });
        let (written, inspected) = inspecting.await.map_err(io::Error::other)?;
        match inspected {
            Ok(inspected) => Ok((written, inspected)),
            Err(reason) => {
                let shown = if file.is_empty() { "the file" } else { file };
                let reason = reason.replace(&written.path().display().to_string(), shown);
                // A reader may name it without its folder.
                let own_name = written.path().file_name().unwrap_or_default().to_string_lossy();
                Err(LoraError::Rejected(reason.replace(&*own_name, shown)))
            }
        }
    }

    /// All LoRAs, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self) -> Result<Vec<Lora>, LoraError> {
        self.0.store.all().await
    }

    /// A LoRA, by its id or its name.
    ///
    /// # Errors
    /// [`LoraError::NotFound`], or when the database fails.
    pub async fn get(&self, wanted: &str) -> Result<Lora, LoraError> {
        self.0.store.find(wanted).await?.ok_or_else(|| LoraError::NotFound(wanted.to_owned()))
    }

    /// A LoRA for a request, by its id or its name. `None` if there is none, or its file is missing.
    ///
    /// # Errors
    /// When the disk or the database fails.
    pub async fn find(&self, wanted: &str) -> Result<Option<FoundLora>, LoraError> {
        let Some(Lora { id, name, .. }) = self.0.store.find(wanted).await? else { return Ok(None) };
        let file = self.0.files.path(&id);
        if !tokio::fs::try_exists(&file).await? {
            tracing::warn!(%id, name, "the file of a LoRA is missing: add it again");
            return Ok(None);
        }
        Ok(Some(FoundLora { id, name, file: file.into() }))
    }

    /// The thumbnail of a LoRA, JPEG.
    ///
    /// # Errors
    /// [`LoraError::NotFound`] when there is no such LoRA, or it has none; or when the database fails.
    pub async fn thumbnail(&self, wanted: &str) -> Result<Vec<u8>, LoraError> {
        let lora = self.get(wanted).await?;
        self.0.store.thumbnail(&lora.id).await?.ok_or_else(|| LoraError::NotFound(wanted.to_owned()))
    }

    /// Removes a LoRA and its file.
    ///
    /// # Errors
    /// [`LoraError::NotFound`], [`LoraError::InUse`], or when the database fails.
    pub async fn remove(&self, wanted: &str, by: &Actor) -> Result<Lora, LoraError> {
        let lora = self.get(wanted).await?;
        self.0.store.delete(&lora, to_the_millisecond(self.0.clock.now()), by).await?;
        if let Err(error) = self.remove_file(&lora.id).await {
            // Without a row it is out of use, and the next start removes it.
            tracing::warn!(?error, id = %lora.id, "the file of a removed LoRA is left");
        }
        Ok(lora)
    }

    async fn remove_file(&self, id: &AdapterId) -> Result<(), LoraError> {
        let mut held = self.0.store.hold().await?;
        // It may have been added again since.
        if !held.has(id).await? {
            let (files, id) = (self.0.files.clone(), id.clone());
            spawn_blocking(move || files.remove(&id)).await.map_err(io::Error::other)??;
        }
        held.release().await
    }
}

/// The name of a file, for people.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl fmt::Debug for LoraCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoraCatalog").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::SystemClock;
    use crate::loras::LoraReport;

    /// A catalog that takes files that begin with `ok`.
    async fn catalog(folder: &Path) -> LoraCatalog {
        let inspect = |path: &Path| match std::fs::read(path) {
            Ok(bytes) if bytes.starts_with(b"ok") => {
                Ok(Inspected { report: LoraReport::default(), thumbnail: Some(b"jpeg".to_vec()) })
            }
            _ => Err(format!("{}: not ok", path.display())),
        };
        let fetch = |file: HubFile| -> Result<PathBuf, String> { Err(format!("{} is not there", file.repository)) };
        LoraCatalog::new(LoraParts {
            store: Store::open_in_memory().await.expect("opens"),
            folder: folder.to_owned(),
            inspect: Arc::new(inspect),
            fetch: Arc::new(fetch),
            clock: Arc::new(SystemClock),
            file_bytes_max: 100,
        })
    }

    async fn add(catalog: &LoraCatalog, bytes: &'static str, wanted: Option<&str>) -> Result<Added, LoraError> {
        let mut upload = catalog.begin()?;
        for piece in bytes.as_bytes().chunks(3) {
            upload.write(piece).await?;
        }
        let name = NewName { wanted: wanted.map(str::to_owned), file: "pen.safetensors".into() };
        catalog.add(upload, name, &Actor::CommandLine).await
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).expect("a folder").count()
    }

    #[tokio::test]
    async fn a_file_is_added_once_and_found_by_id_and_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let catalog = catalog(folder.path()).await;
        let first = add(&catalog, "ok one", None).await.expect("added");
        assert!(first.is_new && first.lora.name == "pen" && first.lora.bytes == 6, "{first:?}");
        let again = add(&catalog, "ok one", Some("other")).await.expect("there");
        assert_eq!(again, Added { lora: first.lora.clone(), is_new: false });
        let second = add(&catalog, "ok two", None).await.expect("added").lora;
        assert_eq!(second.name, "pen-2");
        assert!(matches!(add(&catalog, "ok three", Some("pen")).await, Err(LoraError::NameTaken(_))));
        assert_eq!(files(folder.path()), 2);
        for wanted in [first.lora.id.as_str(), "pen"] {
            let found = catalog.find(wanted).await.expect("told").expect("there");
            assert_eq!((&found.id, std::fs::read(&found.file).expect("a file")), (&first.lora.id, b"ok one".to_vec()));
        }
        assert_eq!(catalog.thumbnail("pen").await.expect("one"), b"jpeg");
        assert_eq!(catalog.list().await.expect("listed"), [first.lora, second]);
        catalog.remove("pen", &Actor::CommandLine).await.expect("removed");
        assert_eq!((files(folder.path()), catalog.find("pen").await.expect("told")), (1, None));
        assert!(matches!(catalog.remove("pen", &Actor::CommandLine).await, Err(LoraError::NotFound(_))));
    }

    #[tokio::test]
    async fn what_is_refused_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let catalog = catalog(folder.path()).await;
        let refused = add(&catalog, "broken", None).await.expect_err("broken");
        assert_eq!(refused.to_string(), "pen.safetensors: not ok");
        assert!(matches!(add(&catalog, "ok", Some("a:b")).await, Err(LoraError::Name)));
        let long: &'static str = "x".repeat(101).leak();
        assert!(matches!(add(&catalog, long, None).await, Err(LoraError::TooLarge { bytes_max: 100 })));
        let mut held = Vec::new();
        for _ in 0..UPLOADS_MAX {
            held.push(catalog.begin().expect("one of few"));
        }
        assert!(matches!(catalog.begin(), Err(LoraError::Busy)));
        drop(held);
        let missing = folder.path().join("none");
        let missing = catalog.add_file(&missing, None, &Actor::CommandLine).await;
        assert!(matches!(missing, Err(LoraError::Source { .. })));
        let file = HubFile { repository: "a/b".into(), revision: None, file: None };
        let unknown = catalog.add_from_hub(file, None, &Actor::CommandLine).await.expect_err("not there");
        assert_eq!(unknown.to_string(), "a/b is not there");
        // The threads that write notice it by themselves.
        for _ in 0..10_000 {
            if files(folder.path()) == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        assert_eq!(files(folder.path()), 0);
        assert!(catalog.list().await.expect("listed").is_empty());
    }

    #[tokio::test]
    async fn a_missing_file_comes_back_and_orphans_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let catalog = catalog(folder.path()).await;
        let lora = add(&catalog, "ok one", None).await.expect("added").lora;
        let file = lora.id.file_in(folder.path());
        std::fs::remove_file(&file).expect("there");
        assert_eq!(catalog.find("pen").await.expect("told"), None);
        assert!(!add(&catalog, "ok one", None).await.expect("there").is_new);
        assert!(catalog.find("pen").await.expect("told").is_some());
        let orphan = AdapterId::of_sha256([7; 32]).file_in(folder.path());
        for path in [&orphan, &folder.path().join("left.part")] {
            std::fs::write(path, "x").expect("written");
        }
        assert_eq!(catalog.sweep().await.expect("swept"), 2);
        assert!(file.exists() && !orphan.exists());
    }
}
