//! Download of one file: resumes from the bytes that are present, and gives the file its name only when its checksum is right.

use std::io::{self, Seek as _, SeekFrom};
use std::path::PathBuf;

use reqwest::Response;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::cache::lock;
use super::checksum::Hasher;
use super::client::{Client, RequestTarget, reason_of};
use super::file_system::make_folder_of;
use super::listing::RemoteFile;
use super::repository::{RepositoryId, Revision};
use super::{FileSystem, HubError, Progress};

/// A file to download, and where it goes.
pub(super) struct Transfer {
    pub(super) file: RemoteFile,
    /// Its path when it is complete.
    pub(super) target: PathBuf,
    /// Its path while it is incomplete.
    pub(super) partial: PathBuf,
    /// File whose lock keeps other processes away.
    pub(super) lock: PathBuf,
    /// Whether `target` is named by the checksum, so that a file under that name must be this one.
    pub(super) is_place_named_by_checksum: bool,
}

impl Transfer {
    /// Number of bytes that are present already.
    pub(super) fn bytes_here(&self) -> u64 {
        let found = std::fs::metadata(&self.partial).map_or(0, |found| found.len());
        if found > self.file.bytes { 0 } else { found }
    }
}

/// What all transfers of one download share.
pub(super) struct Route<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) repository: &'a RepositoryId,
    /// The commit.
    pub(super) revision: &'a Revision,
    pub(super) progress: &'a dyn Progress,
    pub(super) file_system: FileSystem,
}

/// A file that is being written, and its checksum so far.
struct Growing {
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl Route<'_> {
    /// Downloads a file.
    pub(super) async fn fetch(&self, transfer: Transfer) -> Result<Transfer, HubError> {
        let path = &transfer.file.path;
        let _lock = lock(path, &transfer.lock, self.file_system)?;
        if transfer.is_place_named_by_checksum && transfer.target.exists() {
            // Another process has just finished it.
            self.progress.begun(path, transfer.file.bytes, transfer.file.bytes);
            self.progress.received(path, transfer.file.bytes);
            self.progress.ended(path);
            return Ok(transfer);
        }
        make_folder_of(&transfer.target)?;
        let mut growing = open(&transfer).await?;
        self.progress.begun(path, transfer.file.bytes, growing.bytes);
        let mut tries = 0;
        while growing.bytes < transfer.file.bytes {
            let before = growing.bytes;
            let Err(reason) = self.receive_once(&transfer, &mut growing).await? else { break };
            // Any progress starts the count again.
            tries = if growing.bytes > before { 1 } else { tries + 1 };
            if tries >= self.client.patience.tries_max {
                let (received, bytes) = (growing.bytes, transfer.file.bytes);
                return Err(HubError::Cut { path: path.clone(), received, bytes, tries, reason });
            }
            self.client.pause(tries, &format!("the connection broke off at `{path}`: {reason}")).await;
        }
        settle(&transfer, growing).await?;
        self.progress.ended(path);
        Ok(transfer)
    }

    /// Receives one answer. The inner error is a connection that broke off.
    async fn receive_once(&self, transfer: &Transfer, growing: &mut Growing) -> Result<Result<(), String>, HubError> {
        let RemoteFile { path, bytes, .. } = &transfer.file;
        let target = RequestTarget { repository: self.repository, revision: self.revision, path: Some(path) };
        let (begins_at, answer) = self.client.file(&target, growing.bytes).await?;
        if begins_at != growing.bytes {
            // A hub without range requests sends the complete file again.
            self.progress.lost(path, growing.bytes);
            start_again(transfer, growing).await.map_err(|error| HubError::file(&transfer.partial, error))?;
        }
        let outcome = self.receive(transfer, growing, answer).await?;
        let written = growing.file.flush().await;
        written.map_err(|error| HubError::file(&transfer.partial, error))?;
        Ok(outcome.and_then(
            |()| {
                if growing.bytes < *bytes { Err("the answer ended early".to_owned()) } else { Ok(()) }
            },
        ))
    }

    async fn receive(
        &self,
        transfer: &Transfer,
        growing: &mut Growing,
        mut answer: Response,
    ) -> Result<Result<(), String>, HubError> {
        let RemoteFile { path, bytes, .. } = &transfer.file;
        loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(reason_of(&error))),
            };
            // One byte too many shows that the file is damaged; more are not read.
            let left = usize::try_from((bytes + 1).saturating_sub(growing.bytes)).unwrap_or(usize::MAX);
            let chunk = &chunk[..chunk.len().min(left)];
            let written = growing.file.write_all(chunk).await;
            written.map_err(|error| HubError::file(&transfer.partial, error))?;
            growing.hasher.update(chunk);
            growing.bytes += chunk.len() as u64;
            self.progress.received(path, chunk.len() as u64);
            if growing.bytes > *bytes {
                return Ok(Ok(()));
            }
        }
    }
}

/// Opens the incomplete file at its end, with the checksum of its bytes so far.
async fn open(transfer: &Transfer) -> Result<Growing, HubError> {
    make_folder_of(&transfer.partial)?;
    let (partial, bytes_total, like) = (transfer.partial.clone(), transfer.file.bytes, transfer.file.checksum.clone());
    let reading = tokio::task::spawn_blocking(move || -> io::Result<Growing> {
        let mut file = std::fs::File::options().create(true).truncate(false).read(true).write(true).open(&partial)?;
        if file.metadata()?.len() > bytes_total {
            file.set_len(0)?;
        }
        let mut hasher = Hasher::new(&like, bytes_total);
        let bytes = hasher.read(&mut file)?;
        file.seek(SeekFrom::Start(bytes))?;
        Ok(Growing { file: File::from_std(file), hasher, bytes })
    });
    let opened = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    opened.map_err(|error| HubError::file(&transfer.partial, error))
}

async fn start_again(transfer: &Transfer, growing: &mut Growing) -> io::Result<()> {
    growing.file.set_len(0).await?;
    tokio::io::AsyncSeekExt::rewind(&mut growing.file).await?;
    growing.hasher = Hasher::new(&transfer.file.checksum, transfer.file.bytes);
    growing.bytes = 0;
    Ok(())
}

/// Verifies the checksum, and gives the file its name or deletes it.
async fn settle(transfer: &Transfer, growing: Growing) -> Result<(), HubError> {
    let Transfer { file, target, partial, .. } = transfer;
    growing.file.sync_all().await.map_err(|error| HubError::file(partial, error))?;
    drop(growing.file);
    let found = growing.hasher.finish();
    if growing.bytes == file.bytes && found == file.checksum {
        return std::fs::rename(partial, target).map_err(|error| HubError::file(target, error));
    }
    std::fs::remove_file(partial).map_err(|error| HubError::file(partial, error))?;
    Err(HubError::Damaged {
        path: file.path.clone(),
        kind: file.checksum.kind(),
        expected: file.checksum.digits().to_owned(),
        found: found.digits().to_owned(),
    })
}
