//! Download of a repository: finds what is missing, checks the free space, and transfers several files at a time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::cache::{Cache, cached};
use super::checksum::checksum_of;
use super::client::Client;
use super::folder;
use super::listing::{Listing, RemoteFile};
use super::repository::{RepositoryId, Revision};
use super::selection::selected;
use super::transfer::{Route, Transfer};
use super::{HubError, HubSettings, ListedFile, Progress};

/// Files that are downloaded at the same time.
const FILES_AT_ONCE: usize = 4;
/// Free space that a download leaves on the disk.
const ROOM_LEFT_BYTES: u64 = 64 << 20;

/// A download to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// The repository.
    pub repository: RepositoryId,
    /// Its revision.
    pub revision: Revision,
    /// The target folder. `None`: the cache.
    pub folder: Option<PathBuf>,
    /// Names of the files, or parts of names. Empty: what a pipeline needs, or the only weight file.
    pub files: Vec<String>,
    /// Maximum bytes of one file: with a larger one, nothing is downloaded. `None`: any number.
    pub file_bytes_max: Option<u64>,
}

/// Result of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// The folder of the files.
    pub folder: PathBuf,
    /// Their commit. `None`: requests to the hub are forbidden.
    pub commit: Option<String>,
    /// Number of the repository's files in the folder.
    pub files: usize,
    /// Paths of the files that were named, or of the only one. Empty for a pipeline.
    pub chosen: Vec<PathBuf>,
    /// Bytes that were downloaded this time.
    pub bytes_fetched: u64,
}

/// Where files go.
enum Place {
    Cache(Cache),
    Folder(PathBuf),
}

impl Place {
    fn of(settings: &HubSettings, request: &Request) -> Result<Self, HubError> {
        if let Some(folder) = &request.folder {
            return Ok(Self::Folder(folder.clone()));
        }
        let cache = Cache::of(settings, &request.repository, &request.revision);
        cache.map(Self::Cache).ok_or(HubError::NoCache)
    }

    fn transfer(&self, file: RemoteFile) -> Transfer {
        match self {
            Self::Cache(cache) => {
                let (target, lock) = (cache.blob(&file.checksum), cache.lock(&file.checksum));
                let mut partial = target.clone().into_os_string();
                partial.push(".incomplete");
                Transfer { file, target, partial: partial.into(), lock, is_place_named_by_checksum: true }
            }
            Self::Folder(folder) => Transfer {
                target: folder.join(&file.path),
                partial: folder::beside(folder, &file.path, "incomplete"),
                lock: folder::beside(folder, &file.path, "lock"),
                is_place_named_by_checksum: false,
                file,
            },
        }
    }

    /// Whether a file is in its place already. A file without metadata is read: in a folder of the user's it may have changed.
    fn has(&self, transfer: &Transfer, commit: &str) -> Result<bool, HubError> {
        let RemoteFile { path, bytes, checksum } = &transfer.file;
        let folder = match self {
            Self::Cache(cache) => return cache.has(commit, &transfer.file),
            Self::Folder(folder) => folder,
        };
        if !fs::metadata(&transfer.target).is_ok_and(|found| found.is_file() && found.len() == *bytes) {
            return Ok(false);
        }
        if folder::noted(folder, path).as_ref() == Some(checksum) {
            return Ok(true);
        }
        let found = checksum_of(&transfer.target, checksum).map_err(|error| HubError::file(&transfer.target, error))?;
        if found == *checksum {
            folder::note(folder, path, commit, checksum)?;
        }
        Ok(found == *checksum)
    }

    /// Makes the complete download visible.
    fn publish(&self, listing: &Listing) -> Result<PathBuf, HubError> {
        match self {
            Self::Folder(folder) => Ok(folder.clone()),
            Self::Cache(cache) => {
                for (index, file) in listing.files.iter().enumerate() {
                    let is_last = listing.files[index + 1..].iter().all(|other| other.checksum != file.checksum);
                    cache.link(&listing.commit, file, is_last)?;
                }
                // Last, so that a branch leads to a complete snapshot only. A few files do not replace a pipeline.
                if !(listing.is_chosen && cache.leads_elsewhere(&listing.commit)) {
                    cache.note(&listing.commit)?;
                }
                Ok(cache.snapshot(&listing.commit))
            }
        }
    }
}

/// Downloads the files that were named, or those that a pipeline needs of a repository, as far as they are missing, and
/// verifies their checksums. Dropping the future stops the download; the next one resumes it.
///
/// # Errors
/// See [`HubError`].
pub async fn download(
    settings: &HubSettings,
    request: &Request,
    progress: &dyn Progress,
) -> Result<Downloaded, HubError> {
    let place = Place::of(settings, request)?;
    if settings.is_offline {
        return offline(settings, request);
    }
    let client = Client::new(settings, progress)?;
    let listing = Listing::ask(&client, &request.repository, &request.revision, &request.files).await?;
    let files: Vec<RemoteFile> = listing.files.clone();
    if let Some(bytes_max) = request.file_bytes_max
        && let Some(RemoteFile { path, bytes, .. }) = files.iter().find(|file| file.bytes > bytes_max)
    {
        return Err(HubError::FileTooLarge { path: path.clone(), bytes: *bytes, bytes_max });
    }
    for file in files.iter().filter(|_| listing.is_chosen) {
        progress.chosen(&file.path, file.bytes);
    }
    let (here, missing) = split_missing(&place, files, &listing.commit)?;
    let fetched = missing.iter().map(|transfer| transfer.file.bytes - transfer.bytes_here()).sum();
    let all: u64 = here + missing.iter().map(|transfer| transfer.file.bytes).sum::<u64>();
    check_free_space(fetched, missing.first())?;
    progress.planned(listing.files.len(), all, all - fetched);
    let commit: Revision = listing.commit.parse()?;
    let (repository, file_system) = (&request.repository, settings.file_system);
    let route = Route { client: &client, repository, revision: &commit, progress, file_system };
    let transfers = futures_util::stream::iter(missing).map(|transfer| route.fetch(transfer));
    let mut arriving = transfers.buffer_unordered(FILES_AT_ONCE);
    while let Some(transfer) = arriving.try_next().await? {
        if let Place::Folder(folder) = &place {
            folder::note(folder, &transfer.file.path, &listing.commit, &transfer.file.checksum)?;
        }
    }
    let folder = place.publish(&listing)?;
    let chosen = listing.files.iter().filter(|_| listing.is_chosen).map(|file| folder.join(&file.path)).collect();
    let files = listing.files.len();
    Ok(Downloaded { folder, commit: Some(listing.commit), files, chosen, bytes_fetched: fetched })
}

/// Counts the bytes that are in place already, and lists the missing files: each target once, and the largest first, so that
/// the last transfer is not one large file alone.
fn split_missing(place: &Place, files: Vec<RemoteFile>, commit: &str) -> Result<(u64, Vec<Transfer>), HubError> {
    let mut here = 0;
    let mut missing = BTreeMap::new();
    for file in files {
        let transfer = place.transfer(file);
        if place.has(&transfer, commit)? {
            here += transfer.file.bytes;
        } else {
            missing.insert(transfer.target.clone(), transfer);
        }
    }
    let mut missing: Vec<Transfer> = missing.into_values().collect();
    missing.sort_by_key(|transfer| std::cmp::Reverse(transfer.file.bytes));
    Ok((here, missing))
}

/// Fails if the download does not fit on the disk.
fn check_free_space(needed: u64, first: Option<&Transfer>) -> Result<(), HubError> {
    let Some(first) = first else { return Ok(()) };
    super::file_system::make_folder_of(&first.partial)?;
    let place = first.partial.parent().unwrap_or(Path::new("."));
    let free = fs4::available_space(place).map_err(|error| HubError::file(place, error))?;
    if needed.saturating_add(ROOM_LEFT_BYTES) > free {
        return Err(HubError::NoRoom { needed, free, place: place.to_owned() });
    }
    Ok(())
}

fn offline(settings: &HubSettings, request: &Request) -> Result<Downloaded, HubError> {
    let refused = || {
        let repository = request.repository.to_string();
        HubError::Offline { repository, cache: settings.cache_dir.clone().unwrap_or_default() }
    };
    let folder = request.folder.is_none().then(|| cached(settings, &request.repository, &request.revision)).flatten();
    let folder = folder.ok_or_else(refused)?;
    let known = folder::known_files(&folder);
    let listed = known.iter().map(|file| {
        let bytes = fs::metadata(&file.content).map_or(0, |found| found.len());
        ListedFile { path: file.path.clone(), bytes }
    });
    let paths = if request.files.is_empty() {
        None
    } else {
        selected(&listed.collect::<Vec<_>>(), &request.files, &request.repository).map_err(|_| refused())?
    };
    let chosen: Vec<PathBuf> = paths.into_iter().flatten().map(|path| folder.join(path)).collect();
    let files = if chosen.is_empty() { known.len() } else { chosen.len() };
    Ok(Downloaded { folder, commit: None, files, chosen, bytes_fetched: 0 })
}
