//! Traces, jobs in and actions out; and what must hold whatever comes in.

use proptest::prelude::*;

use super::*;
use crate::queue::ledger::Share;

const LIMITS: EngineLimits = EngineLimits { images_max: 8, step_tokens_max: 1_000_000 };
/// A tenth of a second for each thousand tokens, and so much for each step that it is worth packing up to 1,024.
const SECONDS_PER_TOKEN: f64 = 1e-4;
const OVERHEAD_SECONDS: f64 = 0.0256;

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
    is_suspect: bool,
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
    /// The engine's time by owner; a step's is shared by work.
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

    /// Named a, b, c … in the trace.
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
            is_suspect: false,
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
                is_admitted: job.is_admitted,
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
        let place = self.jobs.iter().position(|known| known.id == id).expect("a job of this bench");
        char::from(b'a' + place as u8)
    }

    /// Plans once and does it.
    fn turn(&mut self, limits: &EngineLimits) -> Action {
        let action = self.plan(limits).action;
        match &action {
            Action::Idle => {}
            Action::Admit(id) => {
                self.job(*id).is_admitted = true;
                self.aside(*id, self.costs.admit_seconds());
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
                self.aside(*id, self.costs.finish_seconds(work));
                self.admissions_blocked = false;
                self.job(*id).ended = Some(self.now);
            }
        }
        action
    }

    /// All who have something to draw.
    fn present(&self) -> Vec<Share> {
        let open = self.jobs.iter().filter(|job| job.ended.is_none());
        open.map(|job| Share { owner: job.owner, weight: job.weight, part: 0.0 }).collect()
    }

    fn aside(&mut self, id: JobId, seconds: f64) {
        self.now += seconds;
        self.non_step_work.note(seconds);
        let Job { owner, weight, .. } = *self.job(id);
        *self.seconds.entry(owner).or_default() += seconds;
        let mut shares = self.present();
        shares.push(Share { owner, weight, part: 1.0 });
        self.ledger.note(&shares, self.costs.work_of(seconds));
    }

    /// `+a` admit, `a` finish as `!a`, a step as `[ab]`, idle as `.`.
    fn word(&mut self, limits: &EngineLimits) -> String {
        match self.turn(limits) {
            Action::Idle => ".".into(),
            Action::Admit(id) => format!("+{}", self.name(id)),
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

#[test]
fn nothing_to_do_is_idle() {
    let nothing = Bench::new().plan(&LIMITS);
    assert_eq!(nothing, Plan { action: Action::Idle, reason: Reason::NothingToDo });
}

#[test]
fn one_job_is_admitted_stepped_and_finished() {
    assert_eq!(Bench::with(&[(0, 2, 100)]).run(&LIMITS), "+a [a] [a] !a");
}

#[test]
fn what_is_small_rides_together_and_a_late_comer_joins_between_two_steps() {
    let mut bench = Bench::with(&[(0, 3, 100)]);
    assert_eq!((bench.word(&LIMITS), bench.word(&LIMITS)), ("+a".into(), "[a]".into()));
    bench.arrive(1, 2, 200);
    assert_eq!(bench.run(&LIMITS), "+b [ab] [ab] !a !b");
}

#[test]
fn packing_stops_where_it_stops_paying() {
    let mut bench = Bench::with(&[(0, 1, 600), (0, 1, 600)]);
    bench.costs = CostModel::known(0.0, SECONDS_PER_TOKEN, 0.0, 0.0);
    assert_eq!(bench.run(&LIMITS), "+a [a] !a +b [b] !b", "without overhead nothing is saved");
    let mut bench = Bench::with(&[(0, 1, 600), (0, 1, 600), (0, 1, 600)]);
    // 2 ms for a step and a tenth of a microsecond a token: up to 80,000 tokens in one.
    bench.costs = CostModel::known(2e-3, 1e-7, 0.0, 0.0);
    assert_eq!(bench.run(&LIMITS), "+a +b +c [abc] !a !b !c");
    let mut bench = Bench::with(&[(0, 1, 600), (0, 1, 600)]);
    bench.turn(&LIMITS);
    assert_eq!(bench.plan(&LIMITS).reason, Reason::EveryoneSteps, "of those who have been admitted");
    bench.jobs[1].is_admitted = true;
    assert_eq!(bench.plan(&LIMITS).reason, Reason::PackingPaysNoMore);
}

#[test]
fn memory_and_places_bound_a_step() {
    let costs = CostModel::known(1.0, 1e-7, 0.0, 0.0);
    let limits = EngineLimits { step_tokens_max: 1000, ..LIMITS };
    let mut bench = Bench { costs, ..Bench::with(&[(0, 2, 600), (0, 2, 600), (0, 2, 300)]) };
    assert_eq!(bench.run(&limits), "+c +a [ac] [ac] !a !c +b [b] [b] !b");
    let limits = EngineLimits { images_max: 1, ..LIMITS };
    let mut bench = Bench { costs, ..Bench::with(&[(0, 1, 10), (0, 1, 10)]) };
    assert_eq!(bench.run(&limits), "+a [a] !a +b [b] !b");
}

#[test]
fn an_image_larger_than_a_step_goes_alone() {
    let limits = EngineLimits { step_tokens_max: 100, ..LIMITS };
    assert_eq!(Bench::with(&[(0, 1, 500), (0, 1, 10)]).run(&limits), "+b [b] !b +a [a] !a");
}

#[test]
fn a_small_image_passes_a_large_one_that_is_being_drawn() {
    let mut bench = Bench::with(&[(0, 30, 5000)]);
    for _ in 0..4 {
        bench.turn(&LIMITS);
    }
    bench.arrive(0, 2, 500);
    let words: Vec<String> = (0..4).map(|_| bench.word(&LIMITS)).collect();
    assert_eq!(words.join(" "), "+b [b] [b] !b");
}

#[test]
fn a_step_is_held_up_by_no_more_than_its_own_time() {
    let mut bench = Bench::with(&[(0, 5, 300), (0, 5, 300), (0, 5, 300), (0, 5, 10)]);
    // A step that is worth its overhead takes 0.13 s, an admission 0.07 s.
    bench.costs = CostModel::known(OVERHEAD_SECONDS, SECONDS_PER_TOKEN, 0.07, 0.0);
    let words: Vec<String> = (0..6).map(|_| bench.word(&LIMITS)).collect();
    assert_eq!(words.join(" "), "+d [d] +a [ad] +b [abd]");
}

#[test]
fn after_memory_ran_out_nobody_is_admitted_until_somebody_left() {
    let mut bench = Bench::with(&[(0, 2, 10)]);
    bench.turn(&LIMITS);
    bench.admissions_blocked = true;
    bench.arrive(0, 1, 10);
    assert_eq!(bench.run(&LIMITS), "[a] [a] !a +b [b] !b");
}

#[test]
fn who_may_break_the_engine_rides_alone() {
    let mut bench = Bench::with(&[(0, 2, 10), (0, 2, 20), (0, 2, 30)]);
    bench.jobs[1].is_suspect = true;
    assert_eq!(bench.run(&LIMITS), "+a +c [ac] [ac] !a !c +b [b] [b] !b");
    let mut bench = Bench::with(&[(0, 2, 10), (0, 2, 20)]);
    bench.jobs[0].is_suspect = true;
    assert_eq!(bench.run(&LIMITS), "+a [a] [a] !a +b [b] [b] !b");
    // A second one is not even admitted while the engine holds one.
    let mut bench = Bench::with(&[(0, 9, 900)]);
    bench.jobs[0].is_suspect = true;
    bench.turn(&LIMITS);
    bench.turn(&LIMITS);
    bench.arrive(0, 1, 10).is_suspect = true;
    assert!(matches!(bench.turn(&LIMITS), Action::Step(_)));
}

#[test]
fn who_waits_is_left_to_an_engine_that_has_nothing_to_do() {
    let mut bench = Bench::with(&[(0, 2, 10), (0, 2, 10)]);
    bench.others_idle = true;
    assert_eq!(bench.run(&LIMITS), "+a [a] [a] !a +b [b] [b] !b");
}

#[test]
fn priority_decides_among_ones_own_jobs_and_not_against_others() {
    let mut bench = Bench::with(&[(0, 2, 2000)]);
    bench.arrive(0, 2, 3000).priority = Priority::High;
    assert_eq!(bench.run(&LIMITS), "+b [b] [b] !b +a [a] [a] !a");
    let mut bench = Bench::with(&[(1, 2, 2000)]);
    bench.arrive(0, 2, 3000).priority = Priority::High;
    assert_eq!(bench.run(&LIMITS), "+a [a] [a] !a +b [b] [b] !b");
}

#[test]
fn a_deadline_pulls_a_job_forward_and_a_lost_one_goes_last() {
    let mut bench = Bench::with(&[(0, 2, 2000)]);
    // 0.8 s of work until 0.9 s.
    bench.arrive(0, 2, 4000).deadline = Some(0.9);
    assert_eq!(bench.run(&LIMITS), "+b [b] [b] !b +a [a] [a] !a");
    let mut bench = Bench::with(&[(0, 2, 2000)]);
    bench.arrive(0, 2, 4000).deadline = Some(0.7);
    assert_eq!(bench.run(&LIMITS), "+a [a] [a] !a +b [b] [b] !b");
}

#[test]
fn who_comes_with_one_image_does_not_wait_behind_a_pile() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.arrive(0, 4, 2000);
    }
    for _ in 0..40 {
        bench.turn(&LIMITS);
    }
    let before = bench.now;
    let single = bench.arrive(1, 4, 2000).id;
    while bench.job(single).ended.is_none() {
        bench.turn(&LIMITS);
    }
    let alone = 4.0 * bench.costs.step_seconds(2000.0);
    assert!(bench.now - before < 2.1 * alone, "{} s, alone {alone} s", bench.now - before);
}

/// An image of 50 steps beside another owner's images of one step, of which there are always some: the time it takes,
/// next to what it takes alone, where admitting and decoding take so many of its steps' time each.
fn beside_single_steps(own_tokens: usize, tokens: usize, aside_steps: f64) -> f64 {
    let mut bench = Bench::new();
    let aside = aside_steps * bench.costs.step_seconds(own_tokens as f64);
    bench.costs = CostModel::known(OVERHEAD_SECONDS, SECONDS_PER_TOKEN, aside, aside / own_tokens as f64);
    let mut draw = |rival: Option<usize>| {
        let begun = bench.now;
        let id = bench.arrive(0, 50, own_tokens).id;
        while bench.job(id).ended.is_none() {
            let open = bench.jobs.iter().filter(|job| job.ended.is_none() && job.id != id).count();
            if let Some(tokens) = rival {
                for _ in open..6 {
                    bench.arrive(1, 1, tokens);
                }
            }
            bench.turn(&LIMITS);
        }
        bench.now - begun
    };
    let alone = draw(None);
    draw(Some(tokens)) / alone
}

#[test]
fn images_of_one_step_take_no_more_than_their_share_of_the_time() {
    for own_tokens in [300, 2000] {
        for tokens in [50, 300, 2000] {
            for aside_steps in [0.1, 1.0, 3.0, 10.0] {
                let ratio = beside_single_steps(own_tokens, tokens, aside_steps);
                let beside = format!("{own_tokens} tokens beside {tokens}, non_step_work of {aside_steps} steps");
                assert!(ratio < 2.5, "{ratio} times as long as alone: {beside}");
            }
        }
    }
}

#[test]
fn a_key_of_higher_priority_gets_four_times_as_much() {
    let mut bench = Bench::new();
    for owner in [0, 1] {
        for _ in 0..400 {
            bench.arrive(owner, 4, 2000);
        }
    }
    for job in bench.jobs.iter_mut().take(400) {
        job.weight = Priority::High.weight();
    }
    for _ in 0..3000 {
        bench.turn(&LIMITS);
    }
    let done = |owner: KeyId| -> u32 {
        bench.jobs.iter().filter(|job| job.owner == owner).map(|job| job.steps - job.steps_left).sum()
    };
    let ratio = f64::from(done(bench.owners[0])) / f64::from(done(bench.owners[1]));
    assert!((3.8..4.2).contains(&ratio), "{ratio}");
}

/// Steps and tokens of a job, and whose it is: from 64×64 to some megapixels.
fn any_job() -> impl Strategy<Value = (usize, u32, usize)> {
    (0..4usize, 1..30u32, prop_oneof![20..200usize, 200..2000usize, 2000..9000usize])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes in when: each step is within the limits, each image gets its steps and is finished once, and
    /// everything ends.
    #[test]
    fn everything_is_drawn_and_no_limit_is_passed(
        jobs in prop::collection::vec((any_job(), 0..60usize), 1..40),
        images_max in 1..9usize,
        step_tokens_max in 500..20_000usize,
    ) {
        let limits = EngineLimits { images_max, step_tokens_max };
        let mut bench = Bench::new();
        let mut arrivals = jobs.clone();
        let steps: usize = jobs.iter().map(|((_, steps, _), _)| *steps as usize).sum();
        for turn in 0.. {
            prop_assert!(turn <= 61 + steps + 2 * jobs.len(), "it goes on and on");
            for ((owner, steps, tokens), _) in arrivals.extract_if(.., |(_, at)| *at <= turn) {
                bench.arrive(owner, steps, tokens);
            }
            let before: Vec<Job> = bench.jobs.clone();
            match bench.turn(&limits) {
                Action::Idle => {
                    prop_assert!(bench.jobs.iter().all(|job| job.ended.is_some()), "idle beside work");
                    if arrivals.is_empty() {
                        break;
                    }
                }
                Action::Admit(_) => {
                    let held = bench.jobs.iter().filter(|job| job.is_admitted && job.ended.is_none()).count();
                    prop_assert!(held <= images_max);
                }
                Action::Step(ids) => {
                    let chosen: Vec<&Job> = before.iter().filter(|job| ids.contains(&job.id)).collect();
                    let tokens: usize = chosen.iter().map(|job| job.tokens).sum();
                    prop_assert_eq!(chosen.len(), ids.len());
                    prop_assert!(chosen.iter().all(|job| job.is_admitted && job.steps_left > 0));
                    prop_assert!(chosen.len() == 1 || (tokens <= step_tokens_max && chosen.len() <= images_max));
                }
                Action::Finish(id) => {
                    let job = before.iter().find(|job| job.id == id).expect("known");
                    prop_assert!(job.is_admitted && job.steps_left == 0 && job.ended.is_none());
                }
            }
        }
    }

    /// Two owners that always have something to draw get the same time of the engine, whatever they ask for: never
    /// further apart than the fairness window on either side, and what cannot be divided. Two things are not counted
    /// against who is ahead. A step in which everybody rides who can takes nothing from anybody, however unlike their
    /// images are. And while others are being drawn it is admitted and decoded for no longer than they have stepped.
    #[test]
    fn owners_get_the_same(
        kinds in prop::array::uniform2(prop::collection::vec(any_job(), 1..6)),
        turns in 200..1500usize,
        admit_seconds in 0.0..0.5,
        finish_steps in 0.0..4.0,
    ) {
        let costs = CostModel::known(
            OVERHEAD_SECONDS, SECONDS_PER_TOKEN, admit_seconds, finish_steps * SECONDS_PER_TOKEN,
        );
        let mut bench = Bench { costs, ..Bench::new() };
        let [one, other] = [bench.owners[0], bench.owners[1]];
        let got = |bench: &Bench, owner| bench.seconds.get(&owner).copied().unwrap_or(0.0);
        let lead = |bench: &Bench| got(bench, one) - got(bench, other);
        let work = |(_, steps, tokens): &(usize, u32, usize)| f64::from(*steps) * *tokens as f64;
        let window = kinds.iter().flatten().map(work).fold(0.0, f64::max) * costs.seconds_per_packed_work();
        // What one may hold when the other begins to step, and a step.
        let undivided = 3.0 * (admit_seconds + costs.finish_seconds(9000.0)) + costs.step_seconds(9000.0);
        let mut next = kinds.each_ref().map(|own| own.iter().cycle());
        let (mut uncontested, mut asides_ahead, mut stepped) = (0.0, 0.0, 0.0);
        for turn in 0..turns {
            for owner in [0, 1] {
                let open = bench.jobs.iter().filter(|job| job.owner == bench.owners[owner] && job.ended.is_none());
                if open.count() < 3 {
                    let (_, steps, tokens) = *next[owner].next().expect("endless");
                    bench.arrive(owner, steps, tokens);
                }
            }
            let is_ready = |job: &&Job| job.ended.is_none() && job.steps_left > 0 && job.is_admitted;
            let ready = bench.jobs.iter().filter(is_ready).count();
            let (now, before) = (bench.now, lead(&bench));
            let action = bench.turn(&LIMITS);
            let gained = lead(&bench) - before;
            match action {
                Action::Step(ids) => {
                    stepped += bench.now - now;
                    uncontested += if ids.len() == ready { gained.abs() } else { 0.0 };
                }
                _ if before * gained > 0.0 && before.abs() > window => asides_ahead += bench.now - now,
                _ => {}
            }
            let apart = lead(&bench).abs();
            let drift = 2.0 * window + undivided;
            let bound = drift + uncontested + asides_ahead;
            prop_assert!(apart <= bound, "{apart} s apart after {turn} turns, bound {bound} s");
            let bound = undivided + stepped;
            prop_assert!(asides_ahead <= bound, "{asides_ahead} s aside of who is ahead, bound {bound} s");
        }
    }

    /// A large image is passed by small ones for so long only, even when its own owner never stops asking for small
    /// ones and others have more than enough to do. The bound: until it is due nobody need care for it; from then on only
    /// what was there already goes before it, and it has its owner's share of the engine.
    #[test]
    fn the_wait_is_bounded(
        steps in 2..20u32,
        tokens in 2000..9000usize,
        rivals in 1..4usize,
        small in 20..1500usize,
        backlog in 1..6usize,
        admit_seconds in 0.0..0.5,
        finish_steps in 0.0..4.0,
    ) {
        let costs = CostModel::known(
            OVERHEAD_SECONDS, SECONDS_PER_TOKEN, admit_seconds, finish_steps * SECONDS_PER_TOKEN,
        );
        let mut bench = Bench { costs, ..Bench::new() };
        let large = bench.arrive(0, steps, tokens).id;
        let due = PATIENCE * f64::from(steps) * costs.step_seconds(tokens as f64);
        let engine_seconds = |steps: u32, tokens: usize| {
            let tokens = tokens as f64;
            f64::from(steps) * costs.step_seconds(tokens) + costs.admit_seconds() + costs.finish_seconds(tokens)
        };
        let (alone, small_seconds) = (engine_seconds(steps, tokens), engine_seconds(4, small));
        let behind_it = alone + backlog as f64 * small_seconds;
        // Two windows: what its owner may be behind when it is due, and how far the others may get ahead.
        let bound = due + rivals as f64 * (behind_it + 2.0 * alone) + behind_it + 1.0;
        while bench.job(large).ended.is_none() {
            prop_assert!(bench.now <= bound, "not drawn after {} s, bound {bound} s", bench.now);
            for owner in 0..rivals {
                let owner_id = bench.owners[owner];
                let open = bench.jobs.iter().filter(|job| job.owner == owner_id && job.ended.is_none());
                for _ in open.count()..=backlog {
                    bench.arrive(owner, 4, small);
                }
            }
            bench.jobs.retain(|job| job.ended.is_none());
            bench.turn(&LIMITS);
            if bench.jobs.iter().all(|job| job.id != large) {
                break;
            }
        }
    }
}
