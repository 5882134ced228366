//! Whose turn it is: candidates in the order in which they may join a step.

use std::collections::BTreeMap;

use super::{Candidate, FAIRNESS_WINDOW_WORK_MAX};
use crate::domain::ids::KeyId;
use crate::queue::ledger::Ledger;

/// The order in which candidates come up, owner by owner.
pub(super) struct Turns<'a> {
    owners: BTreeMap<KeyId, OwnerTurns<'a>>,
    window_work: f64,
}

struct OwnerTurns<'a> {
    behind: f64,
    /// The best rank last.
    candidates: Vec<&'a Candidate>,
}

impl<'a> Turns<'a> {
    pub(super) fn new(candidates: impl Iterator<Item = &'a Candidate>, ledger: &Ledger) -> Self {
        let mut owners: BTreeMap<KeyId, OwnerTurns<'a>> = BTreeMap::new();
        let mut window_work: f64 = 0.0;
        for candidate in candidates {
            window_work = window_work.max(candidate.step_work * f64::from(candidate.steps_left));
            let new = || OwnerTurns { behind: ledger.behind(candidate.owner), candidates: Vec::new() };
            owners.entry(candidate.owner).or_insert_with(new).candidates.push(candidate);
        }
        for owner in owners.values_mut() {
            owner.candidates.sort_by(|one, other| one.rank.order(&other.rank));
            // The best comes last; of two equal ones, the earlier.
            owner.candidates.reverse();
        }
        Self { owners, window_work: window_work.min(FAIRNESS_WINDOW_WORK_MAX) }
    }

    /// The best candidate of the owners within the window of the one furthest behind.
    pub(super) fn next(&mut self) -> Option<&'a Candidate> {
        let waiting = || self.owners.values().filter(|owner| !owner.candidates.is_empty());
        let most_behind = waiting().map(|owner| owner.behind).max_by(f64::total_cmp)?;
        let first = self
            .owners
            .iter()
            .filter(|(_, owner)| owner.behind >= most_behind - self.window_work)
            .filter_map(|(id, owner)| owner.candidates.last().map(|candidate| (*id, candidate.rank, owner.behind)))
            .min_by(|(_, one, one_behind), (_, other, other_behind)| {
                one.order_between_owners(other).then(other_behind.total_cmp(one_behind))
            });
        let (owner, ..) = first?;
        self.owners.get_mut(&owner)?.candidates.pop()
    }

    /// Skips the rest of an owner's candidates.
    pub(super) fn pass(&mut self, owner: KeyId) {
        self.owners.remove(&owner);
    }

    /// Charges a step of this candidate to its owner.
    pub(super) fn serve(&mut self, candidate: &Candidate) {
        if let Some(owner) = self.owners.get_mut(&candidate.owner) {
            owner.behind -= candidate.step_work / candidate.weight;
        }
    }
}
