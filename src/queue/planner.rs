//! What the engine does next: a pure function of what waits and what runs.
//!
//! Owns the order of work and its fairness. Must not know time, threads, channels or pictures: it is tested as traces,
//! jobs in and actions out. Finishing comes first, since it frees memory; then a few newcomers; then one step of as
//! many pictures as fit.

use crate::domain::engine::EngineLimits;
use crate::domain::ids::JobId;

/// Newcomers between two steps. Admitting encodes a prompt, which holds up everyone who is being drawn.
pub const ADMISSIONS_BETWEEN_STEPS_MAX: usize = 2;

/// A picture the engine has admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Its job.
    pub id: JobId,
    /// Steps done.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// Tokens it adds to a step.
    pub step_tokens: usize,
    /// The number of the turn it last moved in, or was admitted in. Smaller: has waited longer.
    pub moved_in_turn: u64,
}

/// All that the decision depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlannerState {
    /// Who is first in line; the line is round robin between owners.
    pub next_waiting: Option<JobId>,
    /// Who is being drawn, in order of admission.
    pub admitted: Vec<Admitted>,
    /// Newcomers since the last step.
    pub admissions_since_step: usize,
    /// Memory ran out: nobody is admitted before somebody leaves.
    pub admissions_blocked: bool,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing to do.
    Idle,
    /// Take the first in line.
    Admit(JobId),
    /// One denoising step of each of these.
    Step(Vec<JobId>),
    /// Decode this one.
    Finish(JobId),
}

/// Why a plan is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nobody waits and nobody is admitted.
    NothingToDo,
    /// A picture has done all its steps, and decoding it frees memory.
    PictureComplete,
    /// There is room for the first in line.
    RoomForNewcomer,
    /// Everyone who is admitted steps.
    EveryoneSteps,
    /// Not everyone fits one step; those who have waited longest go first.
    StepTokensReached,
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
///
/// Nobody starves: in the line owners take turns, and who has waited longest for a step is always in the next
/// one, so each picture moves at least once in as many steps as there are pictures.
#[must_use]
pub fn plan(state: &PlannerState, limits: &EngineLimits) -> Plan {
    if let Some(complete) = state.admitted.iter().find(|picture| picture.step >= picture.steps) {
        return Plan { action: Action::Finish(complete.id), reason: Reason::PictureComplete };
    }
    if let Some(newcomer) = state.next_waiting
        && may_admit(state, limits)
    {
        return Plan { action: Action::Admit(newcomer), reason: Reason::RoomForNewcomer };
    }
    if state.admitted.is_empty() {
        return Plan { action: Action::Idle, reason: Reason::NothingToDo };
    }
    choose_step(&state.admitted, limits)
}

fn may_admit(state: &PlannerState, limits: &EngineLimits) -> bool {
    // An empty engine takes one whatever the limits say: else a limit of zero would stop everything without a word.
    state.admitted.is_empty()
        || (!state.admissions_blocked
            && state.admitted.len() < limits.pictures_max
            && state.admissions_since_step < ADMISSIONS_BETWEEN_STEPS_MAX)
}

fn choose_step(admitted: &[Admitted], limits: &EngineLimits) -> Plan {
    let mut by_patience: Vec<&Admitted> = admitted.iter().collect();
    // Stable: among equals the earlier admission goes first.
    by_patience.sort_by_key(|picture| picture.moved_in_turn);
    let mut tokens = 0;
    let mut chosen = Vec::with_capacity(by_patience.len());
    for picture in by_patience {
        let fits = tokens + picture.step_tokens <= limits.step_tokens_max && chosen.len() < limits.pictures_max;
        // The first goes even alone and too large: whether it fits is then the engine's to say, not ours to wait for.
        if fits || chosen.is_empty() {
            tokens += picture.step_tokens;
            chosen.push(picture.id);
        }
    }
    let reason = if chosen.len() == admitted.len() { Reason::EveryoneSteps } else { Reason::StepTokensReached };
    Plan { action: Action::Step(chosen), reason }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const LIMITS: EngineLimits = EngineLimits { pictures_max: 3, step_tokens_max: 100 };

    struct Bench {
        waiting: VecDeque<(JobId, u32, usize)>,
        state: PlannerState,
        names: Vec<JobId>,
        turn: u64,
    }

    impl Bench {
        /// Jobs of (steps, tokens per step), named a, b, c … in the trace.
        fn new(jobs: &[(u32, usize)]) -> Self {
            let mut bench =
                Self { waiting: VecDeque::new(), state: PlannerState::default(), names: Vec::new(), turn: 0 };
            for job in jobs {
                bench.arrive(*job);
            }
            bench
        }

        fn arrive(&mut self, (steps, tokens): (u32, usize)) {
            let id = JobId::generate();
            self.names.push(id);
            self.waiting.push_back((id, steps, tokens));
        }

        fn name(&self, id: JobId) -> char {
            let place = self.names.iter().position(|known| *known == id).expect("a job of this bench");
            char::from(b'a' + place as u8)
        }

        /// Plans once and does it. `+a` admit, `a` finish as `!a`, a step as `[ab]`, idle as `.`.
        fn turn(&mut self, limits: &EngineLimits) -> String {
            self.turn += 1;
            self.state.next_waiting = self.waiting.front().map(|job| job.0);
            match plan(&self.state, limits).action {
                Action::Idle => ".".into(),
                Action::Admit(id) => {
                    let (first, steps, step_tokens) = self.waiting.pop_front().expect("somebody waits");
                    assert_eq!(first, id);
                    let moved_in_turn = self.turn;
                    self.state.admitted.push(Admitted { id, step: 0, steps, step_tokens, moved_in_turn });
                    self.state.admissions_since_step += 1;
                    format!("+{}", self.name(id))
                }
                Action::Step(ids) => {
                    self.state.admissions_since_step = 0;
                    for picture in self.state.admitted.iter_mut().filter(|picture| ids.contains(&picture.id)) {
                        picture.step += 1;
                        picture.moved_in_turn = self.turn;
                    }
                    let mut names: Vec<char> = ids.iter().map(|id| self.name(*id)).collect();
                    names.sort_unstable();
                    format!("[{}]", names.into_iter().collect::<String>())
                }
                Action::Finish(id) => {
                    self.state.admitted.retain(|picture| picture.id != id);
                    self.state.admissions_blocked = false;
                    format!("!{}", self.name(id))
                }
            }
        }

        fn run(&mut self, limits: &EngineLimits) -> String {
            let mut trace = Vec::new();
            loop {
                let action = self.turn(limits);
                if action == "." || trace.len() > 1000 {
                    return trace.join(" ");
                }
                trace.push(action);
            }
        }
    }

    #[test]
    fn nothing_to_do_is_idle() {
        let nothing = plan(&PlannerState::default(), &LIMITS);
        assert_eq!(nothing, Plan { action: Action::Idle, reason: Reason::NothingToDo });
    }

    #[test]
    fn one_job_is_admitted_stepped_and_finished() {
        assert_eq!(Bench::new(&[(2, 10)]).run(&LIMITS), "+a [a] [a] !a");
    }

    #[test]
    fn a_late_comer_joins_between_two_steps() {
        let mut bench = Bench::new(&[(3, 10)]);
        assert_eq!((bench.turn(&LIMITS), bench.turn(&LIMITS)), ("+a".into(), "[a]".into()));
        bench.arrive((2, 10));
        assert_eq!(bench.run(&LIMITS), "+b [ab] [ab] !a !b");
    }

    #[test]
    fn only_a_few_are_admitted_between_two_steps() {
        assert_eq!(Bench::new(&[(2, 10), (2, 10), (1, 10)]).run(&LIMITS), "+a +b [ab] +c [abc] !a !b !c");
    }

    #[test]
    fn the_line_is_first_come_first_served_and_bounded_by_places() {
        let limits = EngineLimits { pictures_max: 1, ..LIMITS };
        assert_eq!(Bench::new(&[(1, 10), (1, 10)]).run(&limits), "+a [a] !a +b [b] !b");
    }

    #[test]
    fn a_step_holds_as_many_tokens_as_fit_and_nobody_starves() {
        let trace = Bench::new(&[(2, 60), (2, 60), (2, 30)]).run(&LIMITS);
        assert_eq!(trace, "+a +b [a] +c [bc] [ac] !a !c [b] !b");
    }

    #[test]
    fn a_picture_larger_than_a_step_goes_alone() {
        assert_eq!(Bench::new(&[(1, 500), (1, 10)]).run(&LIMITS), "+a +b [a] !a [b] !b");
    }

    #[test]
    fn after_memory_ran_out_nobody_is_admitted_until_somebody_left() {
        let mut bench = Bench::new(&[(2, 10)]);
        bench.turn(&LIMITS);
        bench.state.admissions_blocked = true;
        bench.arrive((1, 10));
        assert_eq!(bench.run(&LIMITS), "[a] [a] !a +b [b] !b");
    }

    #[test]
    fn every_picture_moves_within_as_many_steps_as_there_are_pictures() {
        let limits = EngineLimits { pictures_max: 8, step_tokens_max: 100 };
        let mut bench = Bench::new(&[(40, 90), (40, 10), (40, 50), (40, 70), (40, 100), (40, 20), (40, 30), (40, 60)]);
        let mut since_moved = [0; 8];
        for _ in 0..200 {
            let action = bench.turn(&limits);
            if !action.starts_with('[') {
                continue;
            }
            for picture in &bench.state.admitted {
                let place = usize::from(bench.name(picture.id) as u8 - b'a');
                since_moved[place] = if picture.moved_in_turn == bench.turn { 0 } else { since_moved[place] + 1 };
                assert!(since_moved[place] < 8, "{place} waited {} steps", since_moved[place]);
            }
        }
    }
}
