//! Whose use of a budget has changed since that was last asked, so that budgets are compared only then.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::budget::BudgetHolder;
use crate::domain::ids::{KeyId, ProjectId};

/// Holders of budgets that have been charged, or were refused for their budget. Those with work bound their number: a
/// holder is in it once.
#[derive(Debug, Default)]
pub(super) struct Charged {
    holders: Mutex<BTreeMap<BudgetHolder, bool>>,
    changed: Notify,
}

impl Charged {
    /// Notes that an owner, and the project of its job, have been charged.
    pub(super) fn note(&self, owner: KeyId, project: Option<ProjectId>) {
        if owner == KeyId::NONE {
            return;
        }
        {
            let mut holders = self.holders();
            holders.entry(BudgetHolder::Key(owner)).or_default();
            if let Some(project) = project {
                holders.entry(BudgetHolder::Project(project)).or_default();
            }
        }
        self.changed.notify_one();
    }

    /// Notes that a budget has changed.
    pub(super) fn note_change(&self, holder: BudgetHolder) {
        self.holders().entry(holder).or_default();
        self.changed.notify_one();
    }

    /// Notes that a job was refused because the rest of a budget does not suffice.
    pub(super) fn note_refusal(&self, holder: BudgetHolder) {
        self.holders().insert(holder, true);
        self.changed.notify_one();
    }

    /// Waits until there are some, and takes them: each with whether a job of it was refused.
    pub(super) async fn take(&self) -> BTreeMap<BudgetHolder, bool> {
        loop {
            let taken = std::mem::take(&mut *self.holders());
            if !taken.is_empty() {
                return taken;
            }
            self.changed.notified().await;
        }
    }

    fn holders(&self) -> MutexGuard<'_, BTreeMap<BudgetHolder, bool>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_holder_is_told_of_once_and_a_refusal_is_kept() {
        let charged = Charged::default();
        let (key, project) = (KeyId::generate(), ProjectId::generate());
        charged.note(KeyId::NONE, None);
        charged.note_refusal(BudgetHolder::Key(key));
        charged.note(key, Some(project));
        charged.note(key, None);
        let taken = charged.take().await;
        assert_eq!(taken, [(BudgetHolder::Key(key), true), (BudgetHolder::Project(project), false)].into());
        let later = charged.take();
        charged.note(key, None);
        assert_eq!(later.await, [(BudgetHolder::Key(key), false)].into());
    }
}
