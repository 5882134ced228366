//! A simulated engine for the planner, its traces (jobs in, actions out), and properties that hold for any input.

mod properties;
mod traces;

use std::collections::BTreeMap;

use super::*;
use crate::queue::ledger::Share;

const LIMITS: EngineLimits = EngineLimits { images_max: 8, step_tokens_max: 1_000_000 };
/// A tenth of a second per thousand tokens, and an overhead per step that makes packing pay up to 1,024 tokens.
const SECONDS_PER_TOKEN: f64 = 1e-4;
const OVERHEAD_SECONDS: f64 = 0.0256;
/// A part of an encoding.
const PART_SECONDS: f64 = 0.05;

#[derive(Debug, Clone, Copy)]
struct Job {
    id: JobId,
    owner: KeyId,
    weight: f64,
    priority: Priority,
    arrived: f64,
    deadline: Option<f64>,
    tokens: usize,
    steps: u32,
    steps_left: u32,
    /// Parts of its encoding that are left.
    parts_left: u32,
    is_suspect: bool,
    is_loading: bool,
    is_admitted: bool,
    ended: Option<f64>,
}

struct Bench {
    owners: Vec<KeyId>,
    jobs: Vec<Job>,
    ledger: Ledger,
    costs: CostModel,
    non_step_work: NonStepWork,
    admissions_blocked: bool,
    others_idle: bool,
    now: f64,
    /// Engine time by owner; a step's is shared by work.
    seconds: BTreeMap<KeyId, f64>,
}

impl Bench {
    fn new() -> Self {
        Self {
            owners: (0..4).map(|_| KeyId::generate()).collect(),
            jobs: Vec::new(),
            ledger: Ledger::default(),
            costs: CostModel::known(OVERHEAD_SECONDS, SECONDS_PER_TOKEN, 1e-3, 0.0),
            non_step_work: NonStepWork::default(),
            admissions_blocked: false,
            others_idle: false,
            now: 0.0,
            seconds: BTreeMap::new(),
        }
    }

    /// Jobs named a, b, c … in the trace.
    fn with(jobs: &[(usize, u32, usize)]) -> Self {
        let mut bench = Self::new();
        for (owner, steps, tokens) in jobs {
            bench.arrive(*owner, *steps, *tokens);
        }
        bench
    }

    fn arrive(&mut self, owner: usize, steps: u32, tokens: usize) -> &mut Job {
        self.jobs.push(Job {
            id: JobId::generate(),
            owner: self.owners[owner],
            weight: 1.0,
            priority: Priority::Normal,
            arrived: self.now,
            deadline: None,
            tokens,
            steps,
            steps_left: steps,
            parts_left: 0,
            is_suspect: false,
            is_loading: false,
            is_admitted: false,
            ended: None,
        });
        self.jobs.last_mut().expect("just pushed")
    }

    fn candidates(&self) -> Vec<Candidate> {
        let open = self.jobs.iter().filter(|job| job.ended.is_none());
        open.map(|job| {
            let step_work = job.tokens as f64;
            let urgency = Urgency {
                priority: job.priority,
                arrived_seconds: job.arrived,
                deadline_seconds: job.deadline,
                left_seconds: f64::from(job.steps_left) * self.costs.step_seconds(step_work),
            };
            Candidate {
                id: job.id,
                owner: job.owner,
                weight: job.weight,
                rank: urgency.rank(self.now),
                step_tokens: job.tokens,
                step_work,
                steps_left: job.steps_left,
                is_suspect: job.is_suspect,
                is_loading: job.is_loading,
                is_admitted: job.is_admitted,
                is_encoding: job.is_admitted && job.parts_left > 0,
            }
        })
        .collect()
    }

    fn plan(&self, limits: &EngineLimits) -> Plan {
        let candidates = self.candidates();
        let state = PlannerState {
            candidates: &candidates,
            ledger: &self.ledger,
            costs: &self.costs,
            non_step_work: self.non_step_work,
            admissions_blocked: self.admissions_blocked,
            others_idle: self.others_idle,
        };
        plan(&state, limits)
    }

    fn job(&mut self, id: JobId) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.id == id).expect("a job of this bench")
    }

    fn name(&self, id: JobId) -> char {
        let index = self.jobs.iter().position(|known| known.id == id).expect("a job of this bench");
        char::from(b'a' + index as u8)
    }

    /// Plans one action and does it.
    fn turn(&mut self, limits: &EngineLimits) -> Action {
        let action = self.plan(limits).action;
        match &action {
            Action::Idle => {}
            Action::Admit(id) => {
                self.job(*id).is_admitted = true;
                self.charge(*id, self.costs.admit_seconds());
            }
            Action::Encode(id) => {
                self.job(*id).parts_left -= 1;
                self.charge(*id, PART_SECONDS);
            }
            Action::Step(ids) => {
                let chosen: Vec<Job> = ids.iter().map(|id| *self.job(*id)).collect();
                let work: usize = chosen.iter().map(|job| job.tokens).sum();
                let took = self.costs.step_seconds(work as f64);
                self.now += took;
                self.non_step_work.note_step(took);
                let mut shares = self.present();
                for job in chosen {
                    shares.push(Share { owner: job.owner, weight: job.weight, part: job.tokens as f64 });
                    self.job(job.id).steps_left -= 1;
                    *self.seconds.entry(job.owner).or_default() += took * job.tokens as f64 / work as f64;
                }
                self.ledger.note(&shares, self.costs.work_of(took));
            }
            Action::Finish(id) => {
                let work = self.job(*id).tokens as f64;
                self.charge(*id, self.costs.finish_seconds(work));
                self.admissions_blocked = false;
                self.job(*id).ended = Some(self.now);
            }
        }
        action
    }

    /// All owners that have jobs.
    fn present(&self) -> Vec<Share> {
        let open = self.jobs.iter().filter(|job| job.ended.is_none());
        open.map(|job| Share { owner: job.owner, weight: job.weight, part: 0.0 }).collect()
    }

    fn charge(&mut self, id: JobId, seconds: f64) {
        self.now += seconds;
        self.non_step_work.note(seconds);
        let Job { owner, weight, .. } = *self.job(id);
        *self.seconds.entry(owner).or_default() += seconds;
        let mut shares = self.present();
        shares.push(Share { owner, weight, part: 1.0 });
        self.ledger.note(&shares, self.costs.work_of(seconds));
    }

    /// `+a` admit, `~a` a part of an encoding, `a` finish as `!a`, a step as `[ab]`, idle as `.`.
    fn word(&mut self, limits: &EngineLimits) -> String {
        match self.turn(limits) {
            Action::Idle => ".".into(),
            Action::Admit(id) => format!("+{}", self.name(id)),
            Action::Encode(id) => format!("~{}", self.name(id)),
            Action::Finish(id) => format!("!{}", self.name(id)),
            Action::Step(ids) => {
                let mut names: Vec<char> = ids.iter().map(|id| self.name(*id)).collect();
                names.sort_unstable();
                format!("[{}]", names.into_iter().collect::<String>())
            }
        }
    }

    fn run(&mut self, limits: &EngineLimits) -> String {
        let mut trace = Vec::new();
        loop {
            let action = self.word(limits);
            if action == "." || trace.len() > 1000 {
                return trace.join(" ");
            }
            trace.push(action);
        }
    }
}
