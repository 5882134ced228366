//! Compares step-level scheduling with one image at a time, and with batches of equal requests.
//!
//! `cargo bench --bench scheduler` plays the same arrivals (Poisson, three keys with different shares, mixed sizes and
//! steps) against each policy: first on a cost model of an H200, driven by the planner itself; then on the real engine
//! with the demo model, on this machine's CPU, in real time.
//!
//! `FLUXSERVE_BENCH_JOBS` is the number of jobs in a simulation (default 4000), `FLUXSERVE_BENCH_SECONDS` the length of
//! each real run (default 60; 0 skips them).

#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark prints its result")]

mod device;
mod policies;
mod report;
mod workload;

use std::collections::HashMap;
use std::time::Instant;

use fluxserve::catalog::embedded_files;
use fluxserve::domain::device::DeviceChoice;
use fluxserve::domain::engine::{Slot, StepEngine};
use fluxserve::domain::ids::{KeyId, ModelId};
use fluxserve::engine::FluxEngine;
use fluxserve::queue::cost::{CostModel, WorkScale};

use device::{Real, Simulated};
use policies::play;
use report::{compare, heading};
use workload::Workload;

fn main() {
    let owners: Vec<KeyId> = (0..3).map(|_| KeyId::generate()).collect();
    let jobs = setting("JOBS", 4000.0) as usize;
    let workload = Workload::h200();
    for load in [0.7, 0.9, 1.0, 1.3] {
        heading(&format!("H200, simulated: {jobs} jobs at {load} times the saturation rate of one at a time"));
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
        heading(&format!(
            "This CPU, flux-shapes, {seconds} s each, at {load} times the saturation rate of one at a time"
        ));
        let arrivals = workload.arrivals(load, |_, now| now > seconds, owners);
        compare(&arrivals, |policy, arrivals| {
            let mut device = Real { started: Instant::now(), engine: &mut engine, slots: HashMap::new() };
            play(policy, &workload, arrivals, &mut device, owners)
        });
    }
}

/// Measures steps of each size here, alone and batched.
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
