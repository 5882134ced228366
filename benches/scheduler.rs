//! What planning step by step is worth, beside one image at a time and beside batches of equal requests.
//!
//! `cargo bench --bench scheduler` plays the same arrivals (Poisson, three keys of unequal appetite, sizes and steps
//! mixed) against each way of scheduling: first on an engine that is only a cost model of an H200, driven by the planner
//! itself; then on the real engine with the demo model, on this machine's CPU, in real time.
//!
//! `FLUXSERVE_BENCH_JOBS` is how many jobs arrive in a simulation (default 4000), `FLUXSERVE_BENCH_SECONDS` how long each
//! real run takes (default 60; 0 leaves them out).

#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark prints its result")]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use fluxserve::catalog::{card_or_flux_dev, embedded_files};
use fluxserve::domain::device::DeviceChoice;
use fluxserve::domain::engine::{EngineLimits, Slot, StepEngine};
use fluxserve::domain::ids::{JobId, KeyId, ModelId};
use fluxserve::domain::priority::Priority;
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::engine::FluxEngine;
use fluxserve::queue::cost::{CostModel, WorkScale};
use fluxserve::queue::ledger::{Ledger, Share};
use fluxserve::queue::planner::{Action, Candidate, NonStepWork, PlannerState, Urgency, plan};

/// How much of what arrives each key asks for.
const APPETITES: [f64; 3] = [0.6, 0.3, 0.1];
/// An image is of use within so many times what it takes alone, and never within less than this.
const DEADLINE_FACTOR: f64 = 5.0;
/// Jobs that wait or are drawn; more are turned away.
const JOBS_MAX: usize = 256;
/// Most requests in a batch of equal ones.
const BATCH_MAX: usize = 8;
const STEPS: [u32; 4] = [10, 20, 28, 50];
const SEED: u64 = 42;

#[derive(Debug, Clone)]
struct Job {
    id: JobId,
    key: usize,
    spec: GenerateSpec,
    work: f64,
    arrives: f64,
    deadline: f64,
    steps_left: u32,
    is_admitted: bool,
}

/// How a job ended.
#[derive(Debug, Clone, Copy)]
struct Ended {
    latency: f64,
    in_time: bool,
    is_small: bool,
}

/// What images are asked for, and how often.
struct Workload {
    model: ModelId,
    sides: [(u32, f64); 4],
    small_side: u32,
    scale: WorkScale,
    costs: CostModel,
}

/// Where steps are done: on paper, or on the CPU. Seconds each takes.
trait Device {
    fn now(&self) -> f64;
    fn wait_until(&mut self, moment: f64);
    fn admit(&mut self, job: &Job);
    fn step(&mut self, jobs: &[&Job]);
    fn finish(&mut self, job: &Job);
    fn release(&mut self, job: &Job);
}

struct Simulated {
    now: f64,
    costs: CostModel,
}

impl Device for Simulated {
    fn now(&self) -> f64 {
        self.now
    }

    fn wait_until(&mut self, moment: f64) {
        self.now = self.now.max(moment);
    }

    fn admit(&mut self, _: &Job) {
        self.now += self.costs.admit_seconds();
    }

    fn step(&mut self, jobs: &[&Job]) {
        self.now += self.costs.step_seconds(jobs.iter().map(|job| job.work).sum());
    }

    fn finish(&mut self, job: &Job) {
        self.now += self.costs.finish_seconds(job.work);
    }

    fn release(&mut self, _: &Job) {}
}

struct Real<'a> {
    started: Instant,
    engine: &'a mut FluxEngine,
    slots: HashMap<JobId, Slot>,
}

impl Device for Real<'_> {
    fn now(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn wait_until(&mut self, moment: f64) {
        std::thread::sleep(Duration::from_secs_f64((moment - self.now()).max(0.0)));
    }

    fn admit(&mut self, job: &Job) {
        let slot = self.engine.admit(&job.spec).expect("admitted");
        self.slots.insert(job.id, slot);
    }

    fn step(&mut self, jobs: &[&Job]) {
        let slots: Vec<Slot> = jobs.iter().map(|job| self.slots[&job.id]).collect();
        self.engine.step(&slots).expect("a step");
    }

    fn finish(&mut self, job: &Job) {
        let slot = self.slots.remove(&job.id).expect("admitted");
        self.engine.finish(slot).expect("an image");
    }

    fn release(&mut self, job: &Job) {
        if let Some(slot) = self.slots.remove(&job.id) {
            self.engine.release(slot);
        }
    }
}

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn pick(&mut self, shares: impl Iterator<Item = f64>) -> usize {
        let mut left = self.uniform();
        let mut last = 0;
        for (place, share) in shares.enumerate() {
            last = place;
            if left < share {
                break;
            }
            left -= share;
        }
        last
    }
}

impl Workload {
    /// FLUX.1-dev on an H200, at the rate of a peak matrix product: 22 ms a step at 512², 75 ms at 1024²; the rest from
    /// what others report of H100s (30 ms to encode a prompt, 28 ms to decode 1024²).
    fn h200() -> Self {
        let scale = WorkScale { attention_balance_tokens: 18_432 };
        let (small, large) = (scale.sequence_work(1536.0), scale.sequence_work(4608.0));
        let per_work = (0.075 - 0.022) / (large - small);
        Self {
            model: ModelId::new("black-forest-labs/FLUX.1-dev"),
            sides: [(256, 0.25), (512, 0.35), (768, 0.2), (1024, 0.2)],
            small_side: 512,
            scale,
            costs: CostModel::known(0.022 - per_work * small, per_work, 0.030, 0.028 / large),
        }
    }

    fn spec(&self, side: u32, steps: u32, seed: u64) -> GenerateSpec {
        let prompt = "a red circle on a blue background".to_owned();
        let (width, height) = (Some(side), Some(side));
        let params = GenerateParams { prompt, width, height, steps: Some(steps), seed, ..Default::default() };
        GenerateSpec::new(params, &card_or_flux_dev(&self.model)).expect("a valid image")
    }

    fn alone_seconds(&self, spec: &GenerateSpec) -> f64 {
        let work = self.scale.step_work(spec);
        let steps = f64::from(spec.steps()) * self.costs.step_seconds(work);
        self.costs.admit_seconds() + steps + self.costs.finish_seconds(work)
    }

    /// Mean of what an image takes alone: its inverse is the rate at which one at a time is busy all the time.
    fn mean_alone_seconds(&self) -> f64 {
        let sides = self.sides.iter();
        let of_side = |side| STEPS.iter().map(|steps| self.alone_seconds(&self.spec(side, *steps, 0))).sum::<f64>();
        sides.map(|(side, share)| share * of_side(*side) / STEPS.len() as f64).sum()
    }

    /// Jobs that arrive at `load` times the rate that one at a time can bear, until `is_over`.
    fn arrivals(&self, load: f64, is_over: impl Fn(usize, f64) -> bool, owners: &[KeyId]) -> Vec<Job> {
        let mut random = Random(SEED);
        let mean_gap = self.mean_alone_seconds() / load;
        let (mut jobs, mut now) = (Vec::new(), 0.0);
        loop {
            now -= mean_gap * (1.0 - random.uniform()).ln();
            if is_over(jobs.len(), now) {
                return jobs;
            }
            let side = self.sides[random.pick(self.sides.iter().map(|(_, share)| *share))].0;
            let steps = STEPS[random.pick(STEPS.iter().map(|_| 0.25))];
            let key = random.pick(APPETITES.into_iter()).min(owners.len() - 1);
            let spec = self.spec(side, steps, jobs.len() as u64);
            jobs.push(Job {
                id: JobId::generate(),
                key,
                work: self.scale.step_work(&spec),
                arrives: now,
                deadline: now + DEADLINE_FACTOR * self.alone_seconds(&spec),
                steps_left: steps,
                is_admitted: false,
                spec,
            });
        }
    }
}

/// What came of one way of scheduling.
struct Outcome {
    ended: Vec<Ended>,
    asked: usize,
    /// Work that was done and asked for, by key, while jobs still arrived.
    served: [f64; 3],
    asked_work: [f64; 3],
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Policy {
    /// The planner; it may know the deadlines.
    Steps { knows_deadlines: bool },
    /// First come, first served; it may turn away those whose deadline has passed.
    OneAtATime { drops_late: bool },
    /// As that, with all equal requests that wait, up to a number.
    EqualBatches { drops_late: bool },
}

/// Plays `arrivals` on `device`.
fn play(policy: Policy, workload: &Workload, arrivals: &[Job], device: &mut dyn Device, owners: &[KeyId]) -> Outcome {
    let mut run = Run {
        arrivals: arrivals.iter().cloned().collect(),
        open: Vec::new(),
        outcome: Outcome { ended: Vec::new(), asked: arrivals.len(), served: [0.0; 3], asked_work: [0.0; 3] },
        small_side: workload.small_side,
        device,
    };
    match policy {
        Policy::Steps { knows_deadlines } => run.steps(workload, owners, knows_deadlines),
        Policy::OneAtATime { drops_late } => run.whole(1, drops_late),
        Policy::EqualBatches { drops_late } => run.whole(BATCH_MAX, drops_late),
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
    /// Lets those in who have arrived. `false` when nobody is there and nobody will come.
    fn let_in(&mut self) -> bool {
        loop {
            let now = self.device.now();
            while self.arrivals.front().is_some_and(|job| job.arrives <= now) {
                let job = self.arrivals.pop_front().expect("just seen");
                self.outcome.asked_work[job.key] += job.work * f64::from(job.spec.steps());
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

    /// Work counts for fairness while jobs still arrive: what is left over at the end is anybody's.
    fn count_step(&mut self, key: usize, work: f64) {
        if !self.arrivals.is_empty() {
            self.outcome.served[key] += work;
        }
    }

    fn end(&mut self, place: usize) {
        let job = self.open.remove(place);
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

    /// Whole requests, in the order in which they came, `batch_max` equal ones at a time.
    fn whole(&mut self, batch_max: usize, drops_late: bool) {
        while self.let_in() {
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
                // Arrivals go on meanwhile, so that fairness is counted over the same time.
                for job in &batch {
                    self.count_step(job.key, job.work);
                }
                self.let_in();
            }
            for job in &batch {
                self.device.finish(job);
                let place = self.open.iter().position(|open| open.id == job.id).expect("it was not ended");
                self.end(place);
            }
        }
    }

    /// All who have something to draw, and one that an admission or a decoding was for.
    fn aside(&self, owner: KeyId, owners: &[KeyId]) -> Vec<Share> {
        let mut shares: Vec<Share> =
            self.open.iter().map(|job| Share { owner: owners[job.key], weight: 1.0, part: 0.0 }).collect();
        shares.push(Share { owner, weight: 1.0, part: 1.0 });
        shares
    }

    /// Step by step, as the planner says.
    fn steps(&mut self, workload: &Workload, owners: &[KeyId], knows_deadlines: bool) {
        let limits = EngineLimits { images_max: 32, step_tokens_max: 33_792 };
        let (mut ledger, mut non_step_work) = (Ledger::default(), NonStepWork::default());
        while self.let_in() {
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
            let place_of = |id: JobId| self.open.iter().position(|job| job.id == id).expect("a candidate");
            match plan(&state, &limits).action {
                Action::Idle => {}
                Action::Admit(id) => {
                    let place = place_of(id);
                    self.device.admit(&self.open[place]);
                    self.open[place].is_admitted = true;
                    let owner = owners[self.open[place].key];
                    non_step_work.note(self.device.now() - now);
                    ledger.note(&self.aside(owner, owners), workload.costs.work_of(self.device.now() - now));
                }
                Action::Finish(id) => {
                    let place = place_of(id);
                    self.device.finish(&self.open[place]);
                    let owner = owners[self.open[place].key];
                    non_step_work.note(self.device.now() - now);
                    ledger.note(&self.aside(owner, owners), workload.costs.work_of(self.device.now() - now));
                    self.end(place);
                }
                Action::Step(ids) => {
                    let places: Vec<usize> = ids.iter().map(|id| place_of(*id)).collect();
                    self.device.step(&places.iter().map(|place| &self.open[*place]).collect::<Vec<_>>());
                    non_step_work.note_step(self.device.now() - now);
                    let mut shares: Vec<Share> =
                        self.open.iter().map(|job| Share { owner: owners[job.key], weight: 1.0, part: 0.0 }).collect();
                    for place in places {
                        self.open[place].steps_left -= 1;
                        let (key, work) = (self.open[place].key, self.open[place].work);
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
        is_admitted: job.is_admitted,
    }
}

impl Outcome {
    /// Of those that asked, who had the image in time.
    fn goodput(&self) -> f64 {
        self.ended.iter().filter(|ended| ended.in_time).count() as f64 / self.asked as f64
    }

    fn latency(&self, share: f64, small_only: bool) -> f64 {
        let mut latencies: Vec<f64> =
            self.ended.iter().filter(|ended| ended.is_small || !small_only).map(|ended| ended.latency).collect();
        latencies.sort_by(f64::total_cmp);
        latencies.get(((latencies.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    }

    /// Jain's index of what each key got, next to what is fair: all it asked for, or else an equal part of the rest.
    fn fairness(&self) -> f64 {
        let mut left: f64 = self.served.iter().sum();
        let mut fair = [0.0; 3];
        let mut keys: Vec<usize> = (0..3).collect();
        keys.sort_by(|one, other| self.asked_work[*one].total_cmp(&self.asked_work[*other]));
        for (place, key) in keys.iter().enumerate() {
            fair[*key] = self.asked_work[*key].min(left / (3 - place) as f64);
            left -= fair[*key];
        }
        let ratios: Vec<f64> = (0..3).filter(|key| fair[*key] > 0.0).map(|key| self.served[key] / fair[key]).collect();
        let (sum, squares): (f64, f64) = (ratios.iter().sum(), ratios.iter().map(|ratio| ratio * ratio).sum());
        sum * sum / (ratios.len() as f64 * squares)
    }

    fn line(&self, name: &str) {
        println!(
            "{name:<46}{:>8.1} %{:>9.2}{:>9.2}{:>9.2}{:>9.2}{:>8.3}",
            100.0 * self.goodput(),
            self.latency(0.5, false),
            self.latency(0.99, false),
            self.latency(0.5, true),
            self.latency(0.99, true),
            self.fairness(),
        );
    }
}

fn heading(text: &str) {
    println!("\n{text}");
    println!("{:<46}{:>10}{:>9}{:>9}{:>9}{:>9}{:>8}", "", "in time", "p50 s", "p99 s", "p50 s", "p99 s", "fair");
    println!("{:<46}{:>10}{:>18}{:>18}{:>8}", "", "", "all", "small", "");
}

const POLICIES: [(&str, Policy); 6] = [
    ("step by step, deadlines known", Policy::Steps { knows_deadlines: true }),
    ("one at a time, late ones dropped", Policy::OneAtATime { drops_late: true }),
    ("equal batches, late ones dropped", Policy::EqualBatches { drops_late: true }),
    ("step by step, deadlines unknown", Policy::Steps { knows_deadlines: false }),
    ("one at a time", Policy::OneAtATime { drops_late: false }),
    ("equal batches", Policy::EqualBatches { drops_late: false }),
];

fn compare(arrivals: &[Job], mut on: impl FnMut(Policy, &[Job]) -> Outcome) {
    let mut outcomes = BTreeMap::new();
    for (place, (name, policy)) in POLICIES.iter().enumerate() {
        let outcome = on(*policy, arrivals);
        outcome.line(name);
        outcomes.insert(place, outcome);
    }
    let ratio = |ours: usize, other: usize| {
        let (ours, other) = (&outcomes[&ours], &outcomes[&other]);
        let small = other.latency(0.99, true) / ours.latency(0.99, true);
        format!("{:.2} times as many in time, small p99 {small:.1} times shorter", ours.goodput() / other.goodput())
    };
    for (ours, kind) in [(0, "deadlines known"), (3, "deadlines unknown")] {
        println!("  {kind}, to one at a time: {}", ratio(ours, 4));
        println!("  {kind}, to equal batches: {}", ratio(ours, 5));
    }
    println!("  deadlines known, to one at a time that drops late ones: {}", ratio(0, 1));
}

fn main() {
    let owners: Vec<KeyId> = (0..3).map(|_| KeyId::generate()).collect();
    let jobs = setting("JOBS", 4000.0) as usize;
    let workload = Workload::h200();
    for load in [0.7, 0.9, 1.0, 1.3] {
        heading(&format!("H200, simulated: {jobs} jobs at {load} times what one at a time bears"));
        let arrivals = workload.arrivals(load, |count, _| count >= jobs, &owners);
        compare(&arrivals, |policy, arrivals| {
            let mut device = Simulated { now: 0.0, costs: workload.costs };
            play(policy, &workload, arrivals, &mut device, &owners)
        });
    }
    let seconds = setting("SECONDS", 60.0);
    if seconds > 0.0 {
        on_the_cpu(seconds, &owners);
    }
}

fn on_the_cpu(seconds: f64, owners: &[KeyId]) {
    let model = ModelId::new("fluxserve/flux-shapes");
    let files = embedded_files(&model).expect("compiled in");
    let mut engine = FluxEngine::load(&files, DeviceChoice::Cpu).expect("an engine");
    let scale = WorkScale { attention_balance_tokens: engine.attention_balance_tokens() };
    let sides = [(64, 0.25), (128, 0.35), (192, 0.2), (256, 0.2)];
    let mut workload = Workload { model, sides, small_side: 128, scale, costs: CostModel::default() };
    workload.costs = measure(&mut engine, &workload);
    println!("\nmeasured on this CPU: {:?}", workload.costs);
    for load in [1.0, 1.3] {
        heading(&format!("This CPU, flux-shapes, {seconds} s each, at {load} times what one at a time bears"));
        let arrivals = workload.arrivals(load, |_, now| now > seconds, owners);
        compare(&arrivals, |policy, arrivals| {
            let mut device = Real { started: Instant::now(), engine: &mut engine, slots: HashMap::new() };
            play(policy, &workload, arrivals, &mut device, owners)
        });
    }
}

/// What steps of each size take here, alone and together.
fn measure(engine: &mut FluxEngine, workload: &Workload) -> CostModel {
    let mut costs = CostModel::default();
    for (side, _) in workload.sides {
        for images in [1, 1, 2, 4] {
            let spec = workload.spec(side, 4, 1);
            let started = Instant::now();
            let slots: Vec<Slot> = (0..images).map(|_| engine.admit(&spec).expect("admitted")).collect();
            costs.note_admission(started.elapsed() / images);
            for _ in 0..spec.steps() {
                let started = Instant::now();
                engine.step(&slots).expect("a step");
                costs.note_warm_up(workload.scale.step_work(&spec) * f64::from(images), started.elapsed());
            }
            let started = Instant::now();
            for slot in slots {
                engine.finish(slot).expect("an image");
            }
            costs.note_finish(workload.scale.step_work(&spec), started.elapsed() / images);
        }
    }
    costs
}

fn setting(name: &str, default: f64) -> f64 {
    let text = std::env::var(format!("FLUXSERVE_BENCH_{name}")).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}
