//! What the engine does next: a pure function of what waits and what runs.
//!
//! Owns the order of work and its fairness. Must not know clocks, threads, channels or images: it is tested as traces,
//! jobs in and actions out, and drives simulations as it drives the engine.
//!
//! Everyone who waits and everyone who has been admitted is ranked for the next step. Between owners goes by the
//! [`Ledger`]: whoever is not further behind than the fairness window may be served, and among those the best [`Rank`]
//! is; who is further behind goes first. Within an owner's jobs, the rank decides. The step is filled in this order until
//! packing pays no more ([`CostModel::packed_work`]) or memory is used up. Who is chosen and still waits is admitted
//! first. Admitting and finishing hold everybody up, so between two steps there is no more of it than one step takes; it is
//! counted for its owner like a step, and who is ahead of its share holds others up for no longer than they have stepped.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::cost::CostModel;
use super::ledger::Ledger;
use crate::domain::engine::EngineLimits;
use crate::domain::ids::{JobId, KeyId};
use crate::domain::priority::Priority;

/// How many times its own duration a job lets others go first: with `arrival + patience × time left` as the moment it is
/// due, short jobs pass long ones, and a long one is passed for so long only. More gives the short ones a little more near
/// saturation and lets the long ones wait much longer (`benches/README.md`).
pub const PATIENCE: f64 = 32.0;

/// Most work, in tokens, by which owners that both have something to draw may drift apart: an image of four megapixels
/// in fifty steps. The window is smaller where all images are.
pub const FAIRNESS_WINDOW_WORK_MAX: f64 = 1.7e6;

/// A job's place among its owner's jobs. The smaller one goes first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank {
    /// What the client asked for.
    pub priority: Priority,
    /// Its deadline cannot be met any more: whatever else can be drawn is of more use.
    pub is_hopeless: bool,
    /// When it should be on its way, in seconds on any clock.
    pub due_seconds: f64,
    /// The same for a job that came just now. It is this that counts between owners: whose turn it is the ledger knows,
    /// and who has let jobs pile up is not to pass who comes with one.
    pub fresh_due_seconds: f64,
}

/// What a job's rank depends on, all on one clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Urgency {
    /// What the client asked for.
    pub priority: Priority,
    /// When it was accepted.
    pub arrived_seconds: f64,
    /// When it is of no use any more.
    pub deadline_seconds: Option<f64>,
    /// What it still takes when it is drawn alone.
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
    /// Among jobs of one owner.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let by_priority = other.priority.cmp(&self.priority).then(self.is_hopeless.cmp(&other.is_hopeless));
        by_priority.then(self.due_seconds.total_cmp(&other.due_seconds))
    }

    /// What a client calls urgent is no concern of other owners.
    fn order_between_owners(&self, other: &Self) -> Ordering {
        let by_due = self.fresh_due_seconds.total_cmp(&other.fresh_due_seconds);
        self.is_hopeless.cmp(&other.is_hopeless).then(by_due)
    }
}

/// A job that waits or is being drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The job.
    pub id: JobId,
    /// Whose it is.
    pub owner: KeyId,
    /// The owner's part of the device, next to the others'.
    pub weight: f64,
    /// Its place among its owner's jobs.
    pub rank: Rank,
    /// Tokens it adds to a step: what it takes of memory.
    pub step_tokens: usize,
    /// Work it adds to a step: what it takes of time.
    pub step_work: f64,
    /// Steps it still needs.
    pub steps_left: u32,
    /// Whether it may break the engine: it was at it when an engine, or the whole process, broke, and takes nobody along a
    /// second time.
    pub is_suspect: bool,
    /// Whether the engine holds it.
    pub is_admitted: bool,
}

/// What was done that was no step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NonStepWork {
    /// Admissions and finishes since the last step.
    pub count: usize,
    /// How long those took.
    pub seconds: f64,
    /// How long steps have yet to go on until they have had as much time as what was between them.
    pub owed_seconds: f64,
}

impl NonStepWork {
    /// An admission or a finish, or a part of one.
    pub fn note(&mut self, seconds: f64) {
        self.count += 1;
        self.seconds += seconds;
        self.owed_seconds += seconds;
    }

    /// A step.
    pub fn note_step(&mut self, seconds: f64) {
        *self = Self { owed_seconds: (self.owed_seconds - seconds).max(0.0), ..Self::default() };
    }
}

/// All that the decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct PlannerState<'a> {
    /// Who waits, and who has been admitted by this engine.
    pub candidates: &'a [Candidate],
    /// Who has had how much.
    pub ledger: &'a Ledger,
    /// What this engine is known to take for what.
    pub costs: &'a CostModel,
    /// What has held up those who are being drawn.
    pub non_step_work: NonStepWork,
    /// Memory ran out: nobody is admitted before somebody leaves.
    pub admissions_blocked: bool,
    /// Another engine has nothing to do: who waits is better off there.
    pub others_idle: bool,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do.
    Idle,
    /// Take this one in.
    Admit(JobId),
    /// One denoising step of each of these.
    Step(Vec<JobId>),
    /// Decode this one: all of it, or as much as the others' patience lasts.
    Finish(JobId),
}

/// Why a plan is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nobody waits and nobody is admitted.
    NothingToDo,
    /// An image has done all its steps, and decoding it frees memory.
    ImageComplete,
    /// It is among those who should step next.
    ChosenForStep,
    /// Everyone who could steps.
    EveryoneSteps,
    /// More images in this step would save next to nothing and wait for each other.
    PackingPaysNoMore,
    /// More tokens do not fit the memory.
    MemoryReached,
    /// The engine holds no more images.
    ImagesReached,
    /// Somebody was there when an engine broke, and rides alone.
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
            Self::EveryoneSteps => "everyone_steps",
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
    let admitted = choose_step(state, limits, |candidate| candidate.is_admitted);
    if let Some(complete) = complete(state, admitted.is_some())
        && (admitted.is_none() || has_time(state, state.costs.finish_seconds(complete.step_work)))
    {
        return Plan { action: Action::Finish(complete.id), reason: Reason::ImageComplete };
    }
    if may_admit_anybody(state, limits) {
        let everybody = choose_step(state, limits, |_| true);
        let mut newcomers = everybody.iter().flat_map(|step| &step.chosen).filter(|chosen| !chosen.is_admitted);
        if let Some(newcomer) =
            newcomers.find(|newcomer| has_place(state, limits, newcomer) && is_paid(state, newcomer))
        {
            return Plan { action: Action::Admit(newcomer.id), reason: Reason::ChosenForStep };
        }
    }
    match admitted {
        Some(step) => Plan {
            action: Action::Step(step.chosen.iter().map(|candidate| candidate.id).collect()),
            reason: step.stopped,
        },
        None => Plan { action: Action::Idle, reason: Reason::NothingToDo },
    }
}

/// Who has done all steps; of several, the one that is due first. Where somebody steps, only who may hold it up.
fn complete<'a>(state: &PlannerState<'a>, somebody_steps: bool) -> Option<&'a Candidate> {
    let complete = state.candidates.iter().filter(|candidate| candidate.is_admitted && candidate.steps_left == 0);
    let may_go = |candidate: &&Candidate| !somebody_steps || state.admissions_blocked || is_paid(state, candidate);
    complete.filter(may_go).min_by(|one, other| one.rank.order(&other.rank))
}

/// Whether others need not wait for what is done aside for this one: its owner is not ahead of anybody who is being drawn,
/// or what was done aside before has been made up for by steps. A step lets others ride along for little; this does not.
fn is_paid(state: &PlannerState<'_>, candidate: &Candidate) -> bool {
    let behind = state.ledger.behind(candidate.owner);
    let mut stepping = state.candidates.iter().filter(|other| other.is_admitted && other.steps_left > 0);
    state.non_step_work.owed_seconds <= 0.0 || stepping.all(|other| state.ledger.behind(other.owner) <= behind)
}

/// Whether those who are being drawn can wait for something of so many seconds: for one thing at least, and else for as
/// long as one step of theirs.
fn has_time(state: &PlannerState<'_>, seconds: f64) -> bool {
    let step_work = state.costs.packed_work();
    state.non_step_work.count == 0 || state.non_step_work.seconds + seconds <= state.costs.step_seconds(step_work)
}

fn may_admit_anybody(state: &PlannerState<'_>, limits: &EngineLimits) -> bool {
    let admitted = state.candidates.iter().filter(|candidate| candidate.is_admitted).count();
    // An empty engine takes one whatever the limits say: else a limit of zero would stop everything without a word.
    admitted == 0
        || (!state.admissions_blocked
            && !state.others_idle
            && admitted < limits.images_max
            && has_time(state, state.costs.admit_seconds()))
}

/// Whether an owner may have one more image in the engine: the last place is for those who have none there, so that
/// nobody fills it with images that are begun and wait. Of those who may break the engine, or the process, it holds one
/// at a time: then it is known which it was.
fn has_place(state: &PlannerState<'_>, limits: &EngineLimits, newcomer: &Candidate) -> bool {
    let admitted = || state.candidates.iter().filter(|candidate| candidate.is_admitted);
    let is_within_share =
        admitted().count() + 1 < limits.images_max || admitted().all(|candidate| candidate.owner != newcomer.owner);
    is_within_share && !(newcomer.is_suspect && admitted().any(|candidate| candidate.is_suspect))
}

struct ChosenStep<'a> {
    /// At least one.
    chosen: Vec<&'a Candidate>,
    stopped: Reason,
}

/// Who of those that are `wanted` should step next; `None` when there is nobody.
fn choose_step<'a>(
    state: &PlannerState<'a>,
    limits: &EngineLimits,
    wanted: impl Fn(&Candidate) -> bool,
) -> Option<ChosenStep<'a>> {
    let could_step = state.candidates.iter().filter(|candidate| candidate.steps_left > 0 && wanted(candidate));
    let mut turns = Turns::new(could_step, state.ledger);
    let packed_work = state.costs.packed_work();
    let mut step = ChosenStep { chosen: Vec::new(), stopped: Reason::EveryoneSteps };
    let (mut tokens, mut work) = (0, 0.0);
    while let Some(next) = turns.next() {
        // The first goes even alone and too large: whether it fits is then the engine's to say, not ours to wait for.
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
            // Who is smaller may still fit, but not of the same owner: it would be served all the time, and never be so far
            // behind that what does not fit here comes first. Where it is first, its jobs go by rank anyway.
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

/// The order in which candidates come up, owner by owner.
struct Turns<'a> {
    owners: BTreeMap<KeyId, OwnerTurns<'a>>,
    window_work: f64,
}

struct OwnerTurns<'a> {
    behind: f64,
    /// The best rank last.
    candidates: Vec<&'a Candidate>,
}

impl<'a> Turns<'a> {
    fn new(candidates: impl Iterator<Item = &'a Candidate>, ledger: &Ledger) -> Self {
        let mut owners: BTreeMap<KeyId, OwnerTurns<'a>> = BTreeMap::new();
        let mut window_work: f64 = 0.0;
        for candidate in candidates {
            window_work = window_work.max(candidate.step_work * f64::from(candidate.steps_left));
            let new = || OwnerTurns { behind: ledger.behind(candidate.owner), candidates: Vec::new() };
            owners.entry(candidate.owner).or_insert_with(new).candidates.push(candidate);
        }
        for owner in owners.values_mut() {
            owner.candidates.sort_by(|one, other| one.rank.order(&other.rank));
            // The best comes last; of two alike, the one that came first.
            owner.candidates.reverse();
        }
        Self { owners, window_work: window_work.min(FAIRNESS_WINDOW_WORK_MAX) }
    }

    /// The best of those whose owners are not much less behind than the one that is most.
    fn next(&mut self) -> Option<&'a Candidate> {
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

    /// Leaves out the rest of an owner's candidates.
    fn pass(&mut self, owner: KeyId) {
        self.owners.remove(&owner);
    }

    /// Counts a step of this one against its owner.
    fn serve(&mut self, candidate: &Candidate) {
        if let Some(owner) = self.owners.get_mut(&candidate.owner) {
            owner.behind -= candidate.step_work / candidate.weight;
        }
    }
}

#[cfg(test)]
mod tests;
