//! The policies, and a run of each.

use std::collections::VecDeque;

use fluxserve::domain::engine::EngineLimits;
use fluxserve::domain::ids::{JobId, KeyId};
use fluxserve::domain::priority::Priority;
use fluxserve::queue::ledger::{Ledger, Share};
use fluxserve::queue::planner::{Action, Candidate, NonStepWork, PlannerState, Urgency, plan};

use crate::device::Device;
use crate::workload::{Job, Workload};

/// Maximum pending and running jobs; more are refused.
const JOBS_MAX: usize = 256;

/// Maximum requests in a batch of equal ones.
const BATCH_MAX: usize = 8;

/// Outcome of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) latency: f64,
    pub(crate) in_time: bool,
    pub(crate) is_small: bool,
}

/// Outcome of one policy.
pub(crate) struct Outcome {
    pub(crate) ended: Vec<Ended>,
    pub(crate) requested: usize,
    /// Work that was done and requested, by key, while jobs still arrived.
    pub(crate) served: [f64; 3],
    pub(crate) requested_work: [f64; 3],
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Policy {
    /// The planner, with or without knowledge of deadlines.
    Steps { knows_deadlines: bool },
    /// First come, first served; may drop jobs whose deadline has passed.
    OneAtATime { drops_late: bool },
    /// The same, batched with equal pending requests up to `BATCH_MAX`.
    EqualBatches { drops_late: bool },
}

/// Plays `arrivals` on `device`.
pub(crate) fn play(
    policy: Policy,
    workload: &Workload,
    arrivals: &[Job],
    device: &mut dyn Device,
    owners: &[KeyId],
) -> Outcome {
    let mut run = Run {
        arrivals: arrivals.iter().cloned().collect(),
        open: Vec::new(),
        outcome: Outcome { ended: Vec::new(), requested: arrivals.len(), served: [0.0; 3], requested_work: [0.0; 3] },
        small_side: workload.small_side,
        device,
    };
    match policy {
        Policy::Steps { knows_deadlines } => run.steps(workload, owners, knows_deadlines),
        Policy::OneAtATime { drops_late } => run.batches(1, drops_late),
        Policy::EqualBatches { drops_late } => run.batches(BATCH_MAX, drops_late),
    }
    run.outcome
}

struct Run<'a> {
    arrivals: VecDeque<Job>,
    open: Vec<Job>,
    outcome: Outcome,
    small_side: u32,
    device: &'a mut dyn Device,
}

impl Run<'_> {
    /// Takes arrived jobs. `false` when there are none left.
    fn take_arrivals(&mut self) -> bool {
        loop {
            let now = self.device.now();
            while self.arrivals.front().is_some_and(|job| job.arrives <= now) {
                let job = self.arrivals.pop_front().expect("just seen");
                self.outcome.requested_work[job.key] += job.work * f64::from(job.spec.steps());
                if self.open.len() < JOBS_MAX {
                    self.open.push(job);
                }
            }
            if !self.open.is_empty() {
                return true;
            }
            let Some(next) = self.arrivals.front() else { return false };
            self.device.wait_until(next.arrives);
        }
    }

    /// Counts work for fairness while jobs still arrive: the rest at the end has no competition.
    fn count_step(&mut self, key: usize, work: f64) {
        if !self.arrivals.is_empty() {
            self.outcome.served[key] += work;
        }
    }

    fn end(&mut self, index: usize) {
        let job = self.open.remove(index);
        let now = self.device.now();
        let latency = now - job.arrives;
        let is_small = job.spec.width() <= self.small_side;
        self.outcome.ended.push(Ended { latency, in_time: now <= job.deadline, is_small });
    }

    fn drop_late(&mut self) {
        let now = self.device.now();
        for job in self.open.extract_if(.., |job| job.deadline < now) {
            self.device.release(&job);
        }
    }

    /// Complete requests in order of arrival, up to `batch_max` equal ones at a time.
    fn batches(&mut self, batch_max: usize, drops_late: bool) {
        while self.take_arrivals() {
            if drops_late {
                self.drop_late();
            }
            let Some(first) = self.open.first() else { continue };
            let kind = (first.spec.width(), first.spec.steps());
            let alike = self.open.iter().filter(|job| (job.spec.width(), job.spec.steps()) == kind);
            let batch: Vec<Job> = alike.take(batch_max).cloned().collect();
            for job in &batch {
                self.device.admit(job);
            }
            for _ in 0..kind.1 {
                self.device.step(&batch.iter().collect::<Vec<_>>());
                // Arrivals continue meanwhile, so that fairness is counted over the same time.
                for job in &batch {
                    self.count_step(job.key, job.work);
                }
                self.take_arrivals();
            }
            for job in &batch {
                self.device.finish(job);
                let index = self.open.iter().position(|open| open.id == job.id).expect("it was not ended");
                self.end(index);
            }
        }
    }

    /// Shares for an admission or decoding of `owner`, next to all owners with jobs.
    fn non_step_shares(&self, owner: KeyId, owners: &[KeyId]) -> Vec<Share> {
        let mut shares: Vec<Share> =
            self.open.iter().map(|job| Share { owner: owners[job.key], weight: 1.0, part: 0.0 }).collect();
        shares.push(Share { owner, weight: 1.0, part: 1.0 });
        shares
    }

    /// Step by step, as the planner decides.
    fn steps(&mut self, workload: &Workload, owners: &[KeyId], knows_deadlines: bool) {
        let limits = EngineLimits { images_max: 32, step_tokens_max: 33_792 };
        let (mut ledger, mut non_step_work) = (Ledger::default(), NonStepWork::default());
        while self.take_arrivals() {
            if knows_deadlines {
                self.drop_late();
            }
            let now = self.device.now();
            let candidates: Vec<Candidate> =
                self.open.iter().map(|job| candidate(job, owners[job.key], workload, now, knows_deadlines)).collect();
            let state = PlannerState {
                candidates: &candidates,
                ledger: &ledger,
                costs: &workload.costs,
                non_step_work,
                admissions_blocked: false,
                others_idle: false,
            };
            let index_of = |id: JobId| self.open.iter().position(|job| job.id == id).expect("a candidate");
            match plan(&state, &limits).action {
                // No request has images.
                Action::Idle | Action::Encode(_) => {}
                Action::Admit(id) => {
                    let index = index_of(id);
                    self.device.admit(&self.open[index]);
                    self.open[index].is_admitted = true;
                    let owner = owners[self.open[index].key];
                    non_step_work.note(self.device.now() - now);
                    ledger.note(&self.non_step_shares(owner, owners), workload.costs.work_of(self.device.now() - now));
                }
                Action::Finish(id) => {
                    let index = index_of(id);
                    self.device.finish(&self.open[index]);
                    let owner = owners[self.open[index].key];
                    non_step_work.note(self.device.now() - now);
                    ledger.note(&self.non_step_shares(owner, owners), workload.costs.work_of(self.device.now() - now));
                    self.end(index);
                }
                Action::Step(ids) => {
                    let indices: Vec<usize> = ids.iter().map(|id| index_of(*id)).collect();
                    self.device.step(&indices.iter().map(|index| &self.open[*index]).collect::<Vec<_>>());
                    non_step_work.note_step(self.device.now() - now);
                    let mut shares: Vec<Share> =
                        self.open.iter().map(|job| Share { owner: owners[job.key], weight: 1.0, part: 0.0 }).collect();
                    for index in indices {
                        self.open[index].steps_left -= 1;
                        let (key, work) = (self.open[index].key, self.open[index].work);
                        shares.push(Share { owner: owners[key], weight: 1.0, part: work });
                        self.count_step(key, work);
                    }
                    ledger.note(&shares, workload.costs.work_of(self.device.now() - now));
                }
            }
        }
    }
}

fn candidate(job: &Job, owner: KeyId, workload: &Workload, now: f64, knows_deadlines: bool) -> Candidate {
    let left = f64::from(job.steps_left) * workload.costs.step_seconds(job.work);
    let urgency = Urgency {
        priority: Priority::Normal,
        arrived_seconds: job.arrives,
        deadline_seconds: knows_deadlines.then_some(job.deadline),
        left_seconds: left + workload.costs.finish_seconds(job.work),
    };
    Candidate {
        id: job.id,
        owner,
        weight: 1.0,
        rank: urgency.rank(now),
        step_tokens: job.spec.step_tokens(),
        step_work: job.work,
        steps_left: job.steps_left,
        is_suspect: false,
        is_loading: false,
        is_admitted: job.is_admitted,
        is_encoding: false,
    }
}
