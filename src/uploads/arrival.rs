//! A file that arrives piece by piece, and how many of them may arrive at the same time.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;

use super::error::UploadError;
use super::files::{PartFile, UploadFiles};
use crate::domain::ids::KeyId;

/// Files that arrive at the same time. Each takes disk space before it is known to be of use.
const ARRIVING_MAX: usize = 32;

/// Most of them of one key: it must leave room for others.
const ARRIVING_PER_OWNER_MAX: usize = 4;

/// A file that arrives. Dropping it removes what was written.
pub struct Arrival {
    pub(super) owner: KeyId,
    /// `None` after a failure.
    pub(super) part: Option<PartFile>,
    pub(super) place: Place,
}

/// The owners of files that are arriving, each with how many.
#[derive(Debug, Default)]
pub(super) struct Arriving(Mutex<HashMap<KeyId, usize>>);

/// A file's part of that, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    arriving: Arc<Arriving>,
    owner: KeyId,
}

impl Arriving {
    fn lock(&self) -> MutexGuard<'_, HashMap<KeyId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more file; `None` if there are too many.
    pub(super) fn enter(self: &Arc<Self>, owner: KeyId) -> Option<Place> {
        let mut owners = self.lock();
        let own = owners.get(&owner).copied().unwrap_or_default();
        if own >= ARRIVING_PER_OWNER_MAX || owners.values().sum::<usize>() >= ARRIVING_MAX {
            return None;
        }
        owners.insert(owner, own + 1);
        Some(Place { arriving: Arc::clone(self), owner })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut owners = self.arriving.lock();
        let left = owners.get(&self.owner).copied().unwrap_or_default().saturating_sub(1);
        if left == 0 {
            owners.remove(&self.owner);
        } else {
            owners.insert(self.owner, left);
        }
    }
}

impl Arrival {
    /// Begins a file of this owner.
    pub(super) async fn begin(files: &UploadFiles, owner: KeyId, place: Place) -> Result<Self, UploadError> {
        let files = files.clone();
        let part = spawn_blocking(move || files.begin()).await.map_err(io::Error::other)??;
        Ok(Self { owner, part: Some(part), place })
    }

    /// Adds bytes to the file, which is given up if that fails.
    ///
    /// # Errors
    /// [`UploadError::TooLarge`], or when the disk fails.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]> + Send + 'static) -> Result<(), UploadError> {
        let mut part = self.part.take().ok_or_else(given_up)?;
        // Hashing and writing block. A caller that leaves meanwhile takes nothing with it: the thread removes the file.
        let writing = spawn_blocking(move || part.write(bytes.as_ref()).map(|()| part));
        self.part = Some(writing.await.map_err(io::Error::other)??);
        Ok(())
    }
}

/// A file cannot be continued after a failure.
pub(super) fn given_up() -> UploadError {
    UploadError::Disk(io::Error::other("the file was given up after a failure"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leaves_room_for_others_and_places_are_given_back() {
        let arriving = Arc::new(Arriving::default());
        let one = KeyId::generate();
        let own: Vec<Place> = (0..ARRIVING_PER_OWNER_MAX).map(|_| arriving.enter(one).expect("room")).collect();
        assert!(arriving.enter(one).is_none(), "its share");
        let others: Vec<Place> = (own.len()..ARRIVING_MAX)
            .map(|number| arriving.enter(KeyId::generate()).unwrap_or_else(|| panic!("no room for {number}")))
            .collect();
        assert!(arriving.enter(KeyId::generate()).is_none(), "the total");
        drop(own);
        assert!(arriving.enter(one).is_some());
        drop(others);
        assert!(arriving.lock().is_empty());
    }
}
