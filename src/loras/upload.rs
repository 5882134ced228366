//! A file that arrives piece by piece. A thread of its own writes it, because hashing and writing block.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};

use super::LoraError;
use super::files::{LoraFiles, Written};

/// Pieces that wait to be written. Their sender waits then.
const PIECES_WAITING_MAX: usize = 16;

/// Bytes of a file that are copied at a time.
const COPIED_BYTES: usize = 1 << 20;

/// Some bytes; `None` at the end of the file.
type Piece = Option<Box<dyn AsRef<[u8]> + Send>>;

/// A file that arrives. Dropping it removes what was written.
pub struct Upload {
    pieces: mpsc::Sender<Piece>,
    /// `None` when the sender was dropped before the end.
    writing: JoinHandle<Result<Option<Written>, LoraError>>,
    permit: OwnedSemaphorePermit,
}

impl Upload {
    pub(super) fn begin(files: &LoraFiles, bytes_max: u64, permit: OwnedSemaphorePermit) -> Self {
        let (pieces, mut arriving) = mpsc::channel::<Piece>(PIECES_WAITING_MAX);
        let files = files.clone();
        let writing = spawn_blocking(move || -> Result<Option<Written>, LoraError> {
            let mut part = files.begin(bytes_max)?;
            while let Some(piece) = arriving.blocking_recv() {
                match piece {
                    Some(bytes) => part.write((*bytes).as_ref())?,
                    None => return Ok(Some(part.finish()?)),
                }
            }
            Ok(None)
        });
        Self { pieces, writing, permit }
    }

    /// Adds bytes to the file.
    ///
    /// # Errors
    /// [`LoraError::TooLarge`], or when the disk fails. The file cannot be continued then.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]> + Send + 'static) -> Result<(), LoraError> {
        if self.pieces.send(Some(Box::new(bytes))).await.is_ok() {
            return Ok(());
        }
        // The thread has ended, and says why.
        Err(self.written().await.err().unwrap_or_else(ended_early))
    }

    /// Ends the file. The permit counts it as long as it is worked on.
    pub(super) async fn finish(mut self) -> Result<(Written, OwnedSemaphorePermit), LoraError> {
        // Fails only if the thread has ended, which then says why.
        let _ = self.pieces.send(None).await;
        let written = self.written().await?.ok_or_else(ended_early)?;
        Ok((written, self.permit))
    }

    async fn written(&mut self) -> Result<Option<Written>, LoraError> {
        (&mut self.writing).await.map_err(io::Error::other)?
    }
}

fn ended_early() -> LoraError {
    LoraError::Disk(io::Error::other("the thread that writes the file has ended early"))
}

/// Copies a file; blocks.
pub(super) fn copy(files: &LoraFiles, source: &Path, bytes_max: u64) -> Result<Written, LoraError> {
    let unreadable = |cause| LoraError::Source { path: source.display().to_string(), cause };
    let mut file = File::open(source).map_err(unreadable)?;
    let mut part = files.begin(bytes_max)?;
    let mut piece = vec![0; COPIED_BYTES];
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => return Ok(part.finish()?),
            count => part.write(&piece[..count])?,
        }
    }
}
