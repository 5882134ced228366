//! Arriving jobs: what images are requested, and how often.

use fluxserve::catalog::card_or_flux_dev;
use fluxserve::domain::ids::{JobId, KeyId, ModelId};
use fluxserve::domain::spec::{GenerateParams, GenerateSpec};
use fluxserve::queue::cost::{CostModel, WorkScale};

/// Each key's share of the arrivals.
const KEY_SHARES: [f64; 3] = [0.6, 0.3, 0.1];

/// An image's deadline, as a multiple of its time alone.
const DEADLINE_FACTOR: f64 = 5.0;

const STEPS: [u32; 4] = [10, 20, 28, 50];

const SEED: u64 = 42;

#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) key: usize,
    pub(crate) spec: GenerateSpec,
    pub(crate) work: f64,
    pub(crate) arrives: f64,
    pub(crate) deadline: f64,
    pub(crate) steps_left: u32,
    pub(crate) is_admitted: bool,
}

/// Distribution of requests, and the device's costs.
pub(crate) struct Workload {
    pub(crate) model: ModelId,
    pub(crate) sides: [(u32, f64); 4],
    pub(crate) small_side: u32,
    pub(crate) scale: WorkScale,
    pub(crate) costs: CostModel,
}

impl Workload {
    /// FLUX.1-dev on an H200, at peak GEMM rate: 22 ms per step at 512², 75 ms at 1024²; the rest from published H100
    /// numbers (30 ms to encode a prompt, 28 ms to decode 1024²).
    pub(crate) fn h200() -> Self {
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

    pub(crate) fn spec(&self, side: u32, steps: u32, seed: u64) -> GenerateSpec {
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

    /// Mean time of an image alone: its inverse is the saturation rate of one at a time.
    fn mean_alone_seconds(&self) -> f64 {
        let sides = self.sides.iter();
        let of_side = |side| STEPS.iter().map(|steps| self.alone_seconds(&self.spec(side, *steps, 0))).sum::<f64>();
        sides.map(|(side, share)| share * of_side(*side) / STEPS.len() as f64).sum()
    }

    /// Jobs that arrive at `load` times the saturation rate of one at a time, until `is_over`.
    pub(crate) fn arrivals(&self, load: f64, is_over: impl Fn(usize, f64) -> bool, owners: &[KeyId]) -> Vec<Job> {
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
            let key = random.pick(KEY_SHARES.into_iter()).min(owners.len() - 1);
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
        for (index, share) in shares.enumerate() {
            last = index;
            if left < share {
                break;
            }
            left -= share;
        }
        last
    }
}
