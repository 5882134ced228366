//! When jobs are likely to end: the planner's fairness as a fluid.
//!
//! Owners share the device by weight, and an owner's jobs run by rank. So by the time an owner has got the work `w`
//! that its jobs up to this one need, every other owner has got its share of the same time, or all it needs.

use std::collections::{BTreeMap, HashMap};

use super::Standing;
use super::cost::CostModel;
use super::planner::Rank;
use crate::domain::ids::{JobId, KeyId};

/// A job that has not ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outlook {
    pub(super) id: JobId,
    pub(super) owner: KeyId,
    pub(super) weight: f64,
    pub(super) rank: Rank,
    /// What it still needs.
    pub(super) work: f64,
    /// How long that takes without other jobs.
    pub(super) alone_seconds: f64,
    pub(super) is_running: bool,
}

/// When each job is likely to end.
#[derive(Debug, Default)]
pub(super) struct Forecast {
    by_id: HashMap<JobId, Standing>,
    first_end_seconds: Option<f64>,
}

impl Forecast {
    /// Forecasts `jobs` on `engines` engines with these `costs`.
    pub(super) fn new(mut jobs: Vec<Outlook>, costs: &CostModel, engines: usize) -> Self {
        jobs.sort_by(|one, other| one.rank.order(&other.rank));
        let mut totals: BTreeMap<KeyId, (f64, f64)> = BTreeMap::new();
        for job in &jobs {
            let (weight, work) = totals.entry(job.owner).or_insert((job.weight, 0.0));
            *weight = weight.max(job.weight);
            *work += job.work;
        }
        let rate = costs.seconds_per_packed_work() / engines.max(1) as f64;
        let mut before: BTreeMap<KeyId, f64> = BTreeMap::new();
        let mut ends: Vec<(Outlook, f64)> = jobs
            .into_iter()
            .map(|job| {
                let own = before.entry(job.owner).or_insert(0.0);
                *own += job.work;
                let own_weight = totals[&job.owner].0;
                let others = totals.iter().filter(|(owner, _)| **owner != job.owner);
                let others: f64 = others.map(|(_, (weight, work))| work.min(*own * weight / own_weight)).sum();
                (job, (rate * (*own + others)).max(job.alone_seconds))
            })
            .collect();
        ends.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        let known = |seconds: f64| costs.is_known().then_some(seconds);
        let mut waiting = 0;
        let standing = |(job, seconds): &(Outlook, f64)| {
            waiting += usize::from(!job.is_running);
            let position = if job.is_running { 0 } else { waiting };
            (job.id, Standing { position, eta_seconds: known(*seconds) })
        };
        let by_id = ends.iter().map(standing).collect();
        Self { by_id, first_end_seconds: ends.first().and_then(|(_, seconds)| known(*seconds)) }
    }

    /// A job's standing: position 0 when it runs, else its position among pending jobs.
    pub(super) fn standing(&self, id: JobId) -> Option<Standing> {
        self.by_id.get(&id).copied()
    }

    /// `None` without jobs or measurements.
    pub(super) fn seconds_until_next_end(&self) -> Option<f64> {
        self.first_end_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::priority::Priority;

    fn job(owner: KeyId, due_seconds: f64, work: f64) -> Outlook {
        Outlook {
            id: JobId::generate(),
            owner,
            weight: 1.0,
            rank: Rank { priority: Priority::Normal, is_hopeless: false, due_seconds, fresh_due_seconds: due_seconds },
            work,
            alone_seconds: 0.0,
            is_running: false,
        }
    }

    /// A millisecond for each unit of work.
    fn forecast(jobs: &[Outlook], engines: usize) -> Vec<f64> {
        let forecast = Forecast::new(jobs.to_vec(), &CostModel::known(0.0, 1e-3, 0.0, 0.0), engines);
        let eta = |job: &Outlook| forecast.standing(job.id).and_then(|standing| standing.eta_seconds);
        jobs.iter().map(|job| eta(job).expect("known")).collect()
    }

    #[test]
    fn one_owners_jobs_end_in_the_order_of_their_ranks() {
        let owner = KeyId::generate();
        let jobs = [job(owner, 2.0, 4000.0), job(owner, 1.0, 1000.0), job(owner, 3.0, 1000.0)];
        assert_eq!(forecast(&jobs, 1), [5.0, 1.0, 6.0]);
        assert_eq!(forecast(&jobs, 2), [2.5, 0.5, 3.0]);
    }

    #[test]
    fn another_owner_takes_its_share_and_no_more_than_it_needs() {
        let [modest, greedy] = [0; 2].map(|_| KeyId::generate());
        let jobs = [job(modest, 9.0, 1000.0), job(greedy, 1.0, 50_000.0), job(greedy, 2.0, 50_000.0)];
        assert_eq!(forecast(&jobs, 1), [2.0, 51.0, 101.0]);
    }

    #[test]
    fn a_weight_counts() {
        let [high, normal] = [0; 2].map(|_| KeyId::generate());
        let jobs = [Outlook { weight: 4.0, ..job(high, 1.0, 8000.0) }, job(normal, 0.0, 90_000.0)];
        assert_eq!(forecast(&jobs, 1), [10.0, 98.0]);
    }

    #[test]
    fn positions_count_pending_jobs_and_the_time_alone_is_the_least() {
        let owner = KeyId::generate();
        let running = Outlook { is_running: true, alone_seconds: 7.0, ..job(owner, 0.0, 10.0) };
        let (first, second) = (job(owner, 1.0, 10_000.0), job(owner, 2.0, 10.0));
        let forecast = Forecast::new(vec![second, running, first], &CostModel::known(0.0, 1e-3, 0.0, 0.0), 1);
        let positions = [running, first, second].map(|job| forecast.standing(job.id).map(|standing| standing.position));
        assert_eq!(positions, [Some(0), Some(1), Some(2)]);
        assert_eq!(forecast.seconds_until_next_end(), Some(7.0));
        assert_eq!(forecast.standing(JobId::generate()), None);
    }
}
