//! Decides what the engine does next: a pure function of what waits and what runs.
//!
//! Owns the order of work and its fairness. Must not know clocks, threads, channels or images: it is tested as traces
//! (jobs in, actions out), and drives simulations as it drives the engine.
//!
//! All pending and admitted jobs are ranked for the next step. Between owners the [`Ledger`] decides: owners that are
//! within the fairness window of the one furthest behind may be served, and among those the best [`Rank`]. Within an
//! owner's jobs, the rank decides. The step is filled in this order until packing stops paying
//! ([`CostModel::packed_work`]) or memory is used up. A chosen job that is still pending is admitted first, and takes no
//! step before its images are encoded, part by part. Admitting, encoding and finishing block everything else, so between
//! two steps they take about the time of one step at most; they are charged to their owner like a step, and an owner that
//! is ahead of its share blocks others for no longer than they have stepped.

mod turns;

use std::cmp::Ordering;

use super::cost::CostModel;
use super::ledger::Ledger;
use crate::domain::engine::EngineLimits;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::priority::Priority;
use turns::Turns;

/// How many times its own duration a job lets others go first: it is due at `arrival + patience × time left`, so short
/// jobs pass long ones, but only for a bounded time. A larger value helps short jobs a little near saturation and makes
/// long ones wait much longer (`benches/README.md`).
pub const PATIENCE: f64 = 32.0;

/// Maximum work, in tokens, by which owners that both have jobs may drift apart: an image of four megapixels in fifty
/// steps. With smaller images the window is smaller.
pub const FAIRNESS_WINDOW_WORK_MAX: f64 = 1.7e6;

/// A job's order among its owner's jobs. The smaller one goes first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank {
    /// What the client asked for.
    pub priority: Priority,
    /// Its deadline can no longer be met: any other job is of more use.
    pub is_hopeless: bool,
    /// When it should start, in seconds on any clock.
    pub due_seconds: f64,
    /// The same as if it had arrived now. This counts between owners: the ledger knows whose turn it is, and an owner
    /// with a backlog must not pass one with a single job.
    pub fresh_due_seconds: f64,
}

/// What a job's rank depends on, all on one clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Urgency {
    /// What the client asked for.
    pub priority: Priority,
    /// When it was accepted.
    pub arrived_seconds: f64,
    /// When it is of no more use.
    pub deadline_seconds: Option<f64>,
    /// Time it still needs when it runs alone.
    pub left_seconds: f64,
}

impl Urgency {
    /// The rank at `now_seconds`.
    #[must_use]
    pub fn rank(&self, now_seconds: f64) -> Rank {
        let patience = PATIENCE * self.left_seconds;
        let latest_start = self.deadline_seconds.map(|deadline| deadline - self.left_seconds);
        let due = |patient: f64| latest_start.map_or(patient, |start| start.min(patient));
        Rank {
            priority: self.priority,
            is_hopeless: latest_start.is_some_and(|start| start < now_seconds),
            due_seconds: due(self.arrived_seconds + patience),
            fresh_due_seconds: due(now_seconds + patience),
        }
    }
}

impl Rank {
    /// Order among jobs of one owner.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let by_priority = other.priority.cmp(&self.priority).then(self.is_hopeless.cmp(&other.is_hopeless));
        by_priority.then(self.due_seconds.total_cmp(&other.due_seconds))
    }

    /// Order between owners. A client's priority does not count here.
    fn order_between_owners(&self, other: &Self) -> Ordering {
        let by_due = self.fresh_due_seconds.total_cmp(&other.fresh_due_seconds);
        self.is_hopeless.cmp(&other.is_hopeless).then(by_due)
    }
}

/// A pending or running job.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a job, each told by another part")]
pub struct Candidate {
    /// The job.
    pub id: JobId,
    /// Its owner.
    pub owner: KeyId,
    /// The owner's share of the device, relative to the others.
    pub weight: f64,
    /// Its order among its owner's jobs.
    pub rank: Rank,
    /// Tokens it adds to a step: its memory cost.
    pub step_tokens: usize,
    /// Work it adds to a step: its time cost.
    pub step_work: f64,
    /// Steps it still needs.
    pub steps_left: u32,
    /// Whether it may break the engine: it was running when an engine or the process crashed, and must not take other
    /// jobs along a second time.
    pub is_suspect: bool,
    /// Whether it waits for what the engine is still loading for it.
    pub is_loading: bool,
    /// Whether the engine holds it.
    pub is_admitted: bool,
    /// Whether the engine holds it and has still to encode images of its request.
    pub is_encoding: bool,
}

impl Candidate {
    /// Whether it can take part in a step now.
    fn is_ready(&self) -> bool {
        self.is_admitted && !self.is_encoding && self.steps_left > 0
    }
}

/// Engine work outside of steps.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NonStepWork {
    /// Admissions, parts of encodings, and finishes since the last step.
    pub count: usize,
    /// How long those took.
    pub seconds: f64,
    /// Step time still owed until steps have had as much time as the work between them.
    pub owed_seconds: f64,
}

impl NonStepWork {
    /// Notes an admission, a part of an encoding, a finish, or a part of one.
    pub fn note(&mut self, seconds: f64) {
        self.count += 1;
        self.seconds += seconds;
        self.owed_seconds += seconds;
    }

    /// How long one of them took, on average.
    fn mean_seconds(&self) -> f64 {
        self.seconds / self.count.max(1) as f64
    }

    /// Notes a step.
    pub fn note_step(&mut self, seconds: f64) {
        *self = Self { owed_seconds: (self.owed_seconds - seconds).max(0.0), ..Self::default() };
    }
}

/// Everything the decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct PlannerState<'a> {
    /// All pending jobs, and those admitted by this engine.
    pub candidates: &'a [Candidate],
    /// How much each owner has had.
    pub ledger: &'a Ledger,
    /// What this engine's work costs.
    pub costs: &'a CostModel,
    /// What has blocked the running jobs since their last step.
    pub non_step_work: NonStepWork,
    /// Memory ran out: no job is admitted before one leaves.
    pub admissions_blocked: bool,
    /// Another engine is idle: pending jobs are better off there.
    pub others_idle: bool,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do.
    Idle,
    /// Admit this one.
    Admit(JobId),
    /// Encode a part of this one's images.
    Encode(JobId),
    /// Run one denoising step for each of these.
    Step(Vec<JobId>),
    /// Decode this one: all of it, or as much as the others' patience allows.
    Finish(JobId),
}

/// Why a plan was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No job is pending or admitted.
    NothingToDo,
    /// An image has done all its steps, and decoding it frees memory.
    ImageComplete,
    /// It is among those that should step next.
    ChosenForStep,
    /// Every job that can step does.
    AllStep,
    /// More images in this step would save next to nothing and wait for each other.
    PackingPaysNoMore,
    /// More tokens do not fit into memory.
    MemoryReached,
    /// The engine holds no more images.
    ImagesReached,
    /// A suspect runs alone.
    SuspectAlone,
}

impl Reason {
    /// The word for it in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NothingToDo => "nothing_to_do",
            Self::ImageComplete => "picture_complete",
            Self::ChosenForStep => "chosen_for_step",
            Self::AllStep => "everyone_steps",
            Self::PackingPaysNoMore => "packing_pays_no_more",
            Self::MemoryReached => "memory_reached",
            Self::ImagesReached => "pictures_reached",
            Self::SuspectAlone => "suspect_alone",
        }
    }
}

/// An action and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// Decides the next action.
#[must_use]
pub fn plan(state: &PlannerState<'_>, limits: &EngineLimits) -> Plan {
    let ready = choose_step(state, limits, Candidate::is_ready);
    if let Some(complete) = complete(state, ready.is_some())
        && (ready.is_none() || has_time(state, state.costs.finish_seconds(complete.step_work)))
    {
        return Plan { action: Action::Finish(complete.id), reason: Reason::ImageComplete };
    }
    if let Some(action) = preparation(state, limits, ready.is_some()) {
        return Plan { action, reason: Reason::ChosenForStep };
    }
    match ready {
        Some(step) => Plan {
            action: Action::Step(step.chosen.iter().map(|candidate| candidate.id).collect()),
            reason: step.stopped,
        },
        None => Plan { action: Action::Idle, reason: Reason::NothingToDo },
    }
}

/// What is to be done for the first of those that should step next and cannot yet: its admission, or a part of its encoding.
fn preparation(state: &PlannerState<'_>, limits: &EngineLimits, others_step: bool) -> Option<Action> {
    let may_admit = may_admit(state, limits);
    // What the next part takes is not known: as long as the ones before it.
    let may_encode = !others_step || has_time(state, state.non_step_work.mean_seconds());
    let action = |job: &Candidate| {
        let is_allowed = if job.is_admitted {
            job.is_encoding && may_encode && (!others_step || is_paid(state, job))
        } else {
            may_admit && has_slot(state, limits, job) && is_paid(state, job)
        };
        let action = if job.is_admitted { Action::Encode(job.id) } else { Action::Admit(job.id) };
        is_allowed.then_some(action)
    };
    let all = choose_step(state, limits, |candidate| !candidate.is_loading);
    let chosen = all.iter().flat_map(|step| &step.chosen).find_map(|job| action(job));
    // Where those that should step next cannot be admitted, the ones that hold slots go on: somebody has to make room.
    let held = || choose_step(state, limits, |candidate| candidate.is_admitted);
    chosen.or_else(|| held()?.chosen.iter().find_map(|job| action(job)))
}

/// The image that has done all steps; of several, the one due first. While others step, only one that may block them.
fn complete<'a>(state: &PlannerState<'a>, others_step: bool) -> Option<&'a Candidate> {
    let is_complete = |candidate: &&Candidate| candidate.is_admitted && candidate.steps_left == 0;
    let complete = state.candidates.iter().filter(is_complete);
    let may_go = |candidate: &&Candidate| !others_step || state.admissions_blocked || is_paid(state, candidate);
    complete.filter(may_go).min_by(|one, other| one.rank.order(&other.rank))
}

/// Whether others may be blocked for this one's admission, encoding or decoding: its owner is not ahead of any owner that is
/// stepping, or steps have made up for earlier such work. A step serves others along for little; this does not.
fn is_paid(state: &PlannerState<'_>, candidate: &Candidate) -> bool {
    let behind = state.ledger.behind(candidate.owner);
    let mut stepping = state.candidates.iter().filter(|other| other.is_ready());
    state.non_step_work.owed_seconds <= 0.0 || stepping.all(|other| state.ledger.behind(other.owner) <= behind)
}

/// Whether the running images can wait for `seconds`: for one action always, and otherwise for as long as one step of
/// theirs.
fn has_time(state: &PlannerState<'_>, seconds: f64) -> bool {
    let step_work = state.costs.packed_work();
    state.non_step_work.count == 0 || state.non_step_work.seconds + seconds <= state.costs.step_seconds(step_work)
}

fn may_admit(state: &PlannerState<'_>, limits: &EngineLimits) -> bool {
    let admitted = state.candidates.iter().filter(|candidate| candidate.is_admitted).count();
    // An empty engine admits one whatever the limits say: a limit of zero would otherwise stop everything silently.
    admitted == 0
        || (!state.admissions_blocked
            && !state.others_idle
            && admitted < limits.images_max
            && has_time(state, state.costs.admit_seconds()))
}

/// Whether an owner may have one more image in the engine: the last slot is for owners that have none there, so that no
/// owner fills it with images that only wait. Of suspects the engine holds one at a time, so that the culprit is known.
fn has_slot(state: &PlannerState<'_>, limits: &EngineLimits, job: &Candidate) -> bool {
    let admitted = || state.candidates.iter().filter(|candidate| candidate.is_admitted);
    let is_within_share =
        admitted().count() + 1 < limits.images_max || admitted().all(|candidate| candidate.owner != job.owner);
    is_within_share && !(job.is_suspect && admitted().any(|candidate| candidate.is_suspect))
}

struct ChosenStep<'a> {
    /// At least one.
    chosen: Vec<&'a Candidate>,
    stopped: Reason,
}

/// Which of the `wanted` candidates should step next; `None` when there is none.
fn choose_step<'a>(
    state: &PlannerState<'a>,
    limits: &EngineLimits,
    wanted: impl Fn(&Candidate) -> bool,
) -> Option<ChosenStep<'a>> {
    let could_step = state.candidates.iter().filter(|candidate| candidate.steps_left > 0 && wanted(candidate));
    let mut turns = Turns::new(could_step, state.ledger);
    let packed_work = state.costs.packed_work();
    let mut step = ChosenStep { chosen: Vec::new(), stopped: Reason::AllStep };
    let (mut tokens, mut work) = (0, 0.0);
    while let Some(next) = turns.next() {
        // The first goes even if it is too large: then the engine decides whether it fits.
        let refusal = if step.chosen.is_empty() {
            None
        } else if next.is_suspect || step.chosen[0].is_suspect {
            Some(Reason::SuspectAlone)
        } else if step.chosen.len() >= limits.images_max {
            Some(Reason::ImagesReached)
        } else if tokens + next.step_tokens > limits.step_tokens_max {
            Some(Reason::MemoryReached)
        } else if work + next.step_work > packed_work {
            Some(Reason::PackingPaysNoMore)
        } else {
            None
        };
        if let Some(reason) = refusal {
            // A smaller job may still fit, but not of the same owner: that owner would be served all the time, and
            // never be so far behind that what does not fit here comes first. Where it is first, its jobs go by rank
            // anyway.
            step.stopped = reason;
            if step.chosen[0].owner != next.owner {
                turns.pass(next.owner);
            }
            continue;
        }
        tokens += next.step_tokens;
        work += next.step_work;
        turns.serve(next);
        step.chosen.push(next);
    }
    (!step.chosen.is_empty()).then_some(step)
}

#[cfg(test)]
mod tests;
