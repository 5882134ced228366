//! How much engine time each owner has had: deficit round robin between owners.
//!
//! Owns one number per owner: how much it is behind (above zero) or ahead of its share. The time of each step,
//! admission and decoding is credited to all owners that have jobs, by weight, and charged to those it was spent on. So
//! over any time in which two owners both have jobs, what they get differs by no more than the planner lets the numbers
//! drift apart. Time is counted as the work that steps do in it: that makes images comparable, and engines of different
//! speed count alike.

use std::collections::BTreeMap;

use crate::domain::ids::KeyId;

/// Owners ahead of their share that are remembered while they have no job. Only those: an owner that leaves while
/// behind forfeits its credit.
const ABSENT_OWNERS_MAX: usize = 1024;

/// An owner's part in some work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// The owner.
    pub owner: KeyId,
    /// Its share of the device, relative to the others.
    pub weight: f64,
    /// Its part of the work, relative to the others; 0 for an owner that has jobs and got none of this work.
    pub part: f64,
}

/// How far each owner is behind its share, as work divided by its weight.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger(BTreeMap<KeyId, f64>);

impl Ledger {
    /// How far an owner is behind; 0 for a new one.
    #[must_use]
    pub fn behind(&self, owner: KeyId) -> f64 {
        self.0.get(&owner).copied().unwrap_or(0.0)
    }

    /// Charges engine time in which steps do this much `work`. `shares` has every owner that has jobs, perhaps more
    /// than once.
    pub fn note(&mut self, shares: &[Share], work: f64) {
        let parts: f64 = shares.iter().map(|share| share.part).sum();
        let mut owners: BTreeMap<KeyId, (f64, f64)> = BTreeMap::new();
        for share in shares {
            let (weight, own_work) = owners.entry(share.owner).or_insert((share.weight, 0.0));
            *weight = weight.max(share.weight);
            *own_work += work * share.part / parts;
        }
        let weights: f64 = owners.values().map(|(weight, _)| weight).sum();
        if weights <= 0.0 || parts <= 0.0 {
            return;
        }
        let credit = work / weights;
        for (owner, (weight, work)) in &owners {
            *self.0.entry(*owner).or_insert(0.0) += credit - work / weight;
        }
        self.settle_absent(&owners, credit);
    }

    /// An absent owner loses its credit, and keeps its debt until the others have caught up: so leaving and coming back
    /// gains nothing. The mean of the present owners is then subtracted from all of them, so that a new owner does not
    /// find everyone ahead or behind.
    fn settle_absent(&mut self, present: &BTreeMap<KeyId, (f64, f64)>, credit: f64) {
        self.0.retain(|owner, behind| {
            if present.contains_key(owner) {
                return true;
            }
            *behind += credit;
            *behind < 0.0
        });
        while self.0.len() > present.len() + ABSENT_OWNERS_MAX {
            let absent = self.0.keys().find(|owner| !present.contains_key(owner)).copied();
            let Some(absent) = absent else { break };
            self.0.remove(&absent);
        }
        let weights: f64 = present.values().map(|(weight, _)| weight).sum();
        let sum: f64 = present.iter().map(|(owner, (weight, _))| weight * self.behind(*owner)).sum();
        let mean = sum / weights;
        for owner in present.keys() {
            if let Some(behind) = self.0.get_mut(owner) {
                *behind -= mean;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(owner: KeyId, part: f64) -> Share {
        Share { owner, weight: 1.0, part }
    }

    /// As much work as its parts.
    fn note(ledger: &mut Ledger, shares: &[Share]) {
        ledger.note(shares, shares.iter().map(|share| share.part).sum());
    }

    #[test]
    fn a_served_owner_is_ahead_and_the_others_are_behind() {
        let (one, other) = (KeyId::generate(), KeyId::generate());
        let mut ledger = Ledger::default();
        note(&mut ledger, &[share(one, 100.0), share(other, 0.0)]);
        assert_eq!((ledger.behind(one), ledger.behind(other)), (-50.0, 50.0));
        note(&mut ledger, &[share(one, 0.0), share(other, 60.0), share(other, 40.0)]);
        assert_eq!((ledger.behind(one), ledger.behind(other)), (0.0, 0.0));
    }

    #[test]
    fn a_weight_of_four_gets_four_times_as_much() {
        let (high, normal) = (KeyId::generate(), KeyId::generate());
        let mut ledger = Ledger::default();
        let shares = [Share { owner: high, weight: 4.0, part: 80.0 }, share(normal, 20.0)];
        note(&mut ledger, &shares);
        assert_eq!((ledger.behind(high), ledger.behind(normal)), (0.0, 0.0));
    }

    #[test]
    fn an_owner_that_leaves_forfeits_its_credit_and_keeps_its_debt() {
        let [one, other, third] = [0; 3].map(|_| KeyId::generate());
        let mut ledger = Ledger::default();
        note(&mut ledger, &[share(one, 100.0), share(other, 0.0), share(third, 0.0)]);
        note(&mut ledger, &[share(other, 30.0), share(third, 30.0)]);
        assert!(ledger.behind(one) < -20.0, "{ledger:?}");
        for _ in 0..5 {
            note(&mut ledger, &[share(other, 30.0), share(third, 30.0)]);
        }
        assert_eq!(ledger.behind(one), 0.0, "paid back by the others' turns");
        note(&mut ledger, &[share(one, 100.0), share(other, 0.0), share(third, 0.0)]);
        note(&mut ledger, &[share(one, 10.0)]);
        assert_eq!(ledger.behind(other), 0.0, "forfeited");
        assert_eq!(ledger.behind(one), 0.0, "a single owner is never ahead");
    }
}
