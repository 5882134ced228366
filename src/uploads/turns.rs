//! Turns for the changes of a file: one at a time, also while a bucket takes long, and without a wait for other files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::id::UploadId;
use crate::domain::ids::KeyId;

/// The turn of one file.
type Turn = tokio::sync::Mutex<()>;

/// The turns of the files that are being changed.
#[derive(Debug, Default)]
pub(super) struct FileTurns(Mutex<HashMap<(KeyId, UploadId), Weak<Turn>>>);

impl FileTurns {
    /// Waits until nothing else changes this file. Nothing does until the turn is dropped.
    pub(super) async fn take(&self, owner: KeyId, id: &UploadId) -> OwnedMutexGuard<()> {
        self.turn_of(owner, id).lock_owned().await
    }

    fn turn_of(&self, owner: KeyId, id: &UploadId) -> Arc<Turn> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody has or waits for any more.
        turns.retain(|_, turn| turn.strong_count() > 0);
        let file = (owner, id.clone());
        if let Some(turn) = turns.get(&file).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::default());
        turns.insert(file, Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_file_has_one_turn_at_a_time_and_other_files_have_theirs() {
        let turns = FileTurns::default();
        let (one, two) = (KeyId::generate(), KeyId::generate());
        let [a, b] = [1, 2].map(|byte| UploadId::of_sha256([byte; 32]));
        let first = turns.take(one, &a).await;
        let mut next = Box::pin(turns.take(one, &a));
        assert!((&mut next).now_or_never().is_none(), "it is taken");
        drop((turns.take(one, &b).await, turns.take(two, &a).await));
        drop(first);
        drop(next.await);
        drop(turns.take(two, &b).await);
        assert_eq!(turns.0.lock().expect("sound").len(), 1, "what is free is forgotten");
    }
}
