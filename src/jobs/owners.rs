//! Cancels all jobs of an owner whose key has ended.

use std::collections::BTreeSet;

use super::service::JobService;
use crate::domain::ids::{JobId, KeyId, ModelId};
use crate::queue::CancelCause;

impl JobService {
    /// Owners of unfinished jobs.
    pub fn owners(&self) -> BTreeSet<KeyId> {
        self.0.live().values().map(|live| live.owner).collect()
    }

    /// Cancels every unfinished job of `owner`, as [`JobService::cancel`] does; returns how many there are.
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
