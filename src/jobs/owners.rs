//! All jobs of one owner at once: for when a key is good no more.

use std::collections::BTreeSet;

use super::service::JobService;
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::queue::CancelCause;

impl JobService {
    /// Who has jobs that have not ended.
    pub fn owners(&self) -> BTreeSet<KeyId> {
        self.0.live().values().map(|live| live.owner).collect()
    }

    /// Asks for the end of every job of `owner` that has not ended, as [`JobService::cancel`] does; returns how many
    /// there are.
    pub fn cancel_all_of(&self, owner: KeyId) -> usize {
        let own: Vec<(JobId, ModelId)> = {
            let live = self.0.live();
            let own = live.iter().filter(|(_, live)| live.owner == owner);
            own.map(|(id, live)| (*id, live.model.clone())).collect()
        };
        for (id, model) in &own {
            self.0.cancel(model, *id, CancelCause::KeyEnded);
        }
        own.len()
    }
}
