//! Where steps run: simulated, or on the CPU.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fluxserve::domain::engine::{Slot, StepEngine};
use fluxserve::domain::ids::JobId;
use fluxserve::engine::FluxEngine;
use fluxserve::queue::cost::CostModel;

use crate::workload::Job;

/// Where steps run: simulated, or on the CPU.
pub(crate) trait Device {
    fn now(&self) -> f64;
    fn wait_until(&mut self, moment: f64);
    fn admit(&mut self, job: &Job);
    fn step(&mut self, jobs: &[&Job]);
    fn finish(&mut self, job: &Job);
    fn release(&mut self, job: &Job);
}

pub(crate) struct Simulated {
    pub(crate) now: f64,
    pub(crate) costs: CostModel,
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

pub(crate) struct Real<'a> {
    pub(crate) started: Instant,
    pub(crate) engine: &'a mut FluxEngine,
    pub(crate) slots: HashMap<JobId, Slot>,
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
