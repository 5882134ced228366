//! Warm-up: proves that an engine works, and measures its steps.
//!
//! Generates one image. Then a few steps of ever larger batches show how a step's time grows with its content, until
//! packing more stops paying, the engine's limits are reached, or the time for this is used up.

use std::time::{Duration, Instant};

use super::Broken;
use crate::domain::engine::{EngineError, Slot};
use crate::domain::spec::GenerateSpec;
use crate::queue::cost::{CostModel, WorkScale};
use crate::queue::guarded::GuardedEngine;

/// Batch sizes, in order.
const PACKS: [usize; 4] = [2, 4, 8, 16];
/// This many are enough to fit a line; larger ones are tried only where packing pays.
const PACKS_AT_LEAST: usize = 2;
/// Longest measurement: a slow device is not asked for large steps.
const LEARNING_MAX: Duration = Duration::from_secs(5);
/// Repeats per batch size. The quickest is the device's; the others were disturbed by the machine.
const TIMES_EACH: u32 = 3;

/// Runs the warm-up and returns the measured costs.
pub(super) fn run(engine: &mut GuardedEngine, spec: &GenerateSpec, scale: WorkScale) -> Result<CostModel, Broken> {
    let mut costs = CostModel::default();
    let work = scale.step_work(spec);
    // The first image pays for one-time work: memory, kernels, tables.
    generate_one(engine, spec, |_| ())?;
    let started = Instant::now();
    let (mut quickest, mut admitting, mut finishing) = (Duration::MAX, Duration::ZERO, Duration::ZERO);
    for _ in 0..TIMES_EACH {
        let took = generate_one(engine, spec, |step| quickest = quickest.min(step))?;
        (admitting, finishing) = took;
        if started.elapsed() > LEARNING_MAX {
            break;
        }
    }
    costs.note_warm_up(work, quickest);
    costs.note_admission(admitting);
    costs.note_finish(work, finishing);
    for (index, images) in PACKS.into_iter().enumerate() {
        if index >= PACKS_AT_LEAST && !pays(&costs, work * PACKS[index - 1] as f64) {
            break;
        }
        let limits = engine.limits()?;
        let expected = costs.step_seconds(work * images as f64) * f64::from(TIMES_EACH);
        let is_over = started.elapsed().as_secs_f64() + expected > LEARNING_MAX.as_secs_f64();
        if is_over || images > limits.images_max || images * spec.step_tokens() > limits.step_tokens_max {
            break;
        }
        if let Some(took) = step_together(engine, spec, images)? {
            costs.note_warm_up(work * images as f64, took);
        }
    }
    Ok(costs)
}

/// Whether a step gains anything by holding more than `work`.
fn pays(costs: &CostModel, work: f64) -> bool {
    costs.packed_work() > work
}

/// Generates one image; returns the times to admit and to finish it.
fn generate_one(
    engine: &mut GuardedEngine,
    spec: &GenerateSpec,
    mut note_step: impl FnMut(Duration),
) -> Result<(Duration, Duration), Broken> {
    let started = Instant::now();
    let slot = admit(engine, spec)?;
    let admitting = started.elapsed();
    for _ in 0..spec.steps() {
        let started = Instant::now();
        engine.step(&[slot])?;
        note_step(started.elapsed());
    }
    let started = Instant::now();
    engine.finish(slot)?;
    Ok((admitting, started.elapsed()))
}

/// Admits an image and encodes all of its request's images, which no step is to pay for.
fn admit(engine: &mut GuardedEngine, spec: &GenerateSpec) -> Result<Slot, EngineError> {
    let slot = engine.admit(spec)?;
    while !engine.encode_part(slot)? {}
    Ok(slot)
}

/// The quickest of a few steps of a batch; `None` where the engine rejects it.
fn step_together(engine: &mut GuardedEngine, spec: &GenerateSpec, images: usize) -> Result<Option<Duration>, Broken> {
    let mut quickest: Option<Duration> = None;
    for _ in 0..TIMES_EACH {
        let mut slots: Vec<Slot> = Vec::with_capacity(images);
        let took = (|| -> Result<Duration, EngineError> {
            for _ in 0..images {
                slots.push(admit(engine, spec)?);
            }
            let started = Instant::now();
            engine.step(&slots)?;
            Ok(started.elapsed())
        })();
        for slot in slots {
            engine.release(slot)?;
        }
        match took {
            Ok(took) => quickest = Some(quickest.map_or(took, |best| best.min(took))),
            Err(error) if error.breaks_engine() => return Err(error.into()),
            Err(error) => {
                tracing::info!(%error, images, "this batch is too large for the device");
                return Ok(None);
            }
        }
    }
    Ok(quickest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_batches_are_tried_only_where_they_pay() {
        let after = |overhead: f64| {
            let mut costs = CostModel::default();
            for images in [1.0, 2.0, 4.0] {
                costs.note_warm_up(1000.0 * images, Duration::from_secs_f64(overhead + 0.01 * images));
            }
            pays(&costs, 4000.0)
        };
        assert!(!after(0.0) && !after(0.005), "the device is full");
        assert!(after(0.02), "half of a step of one image is overhead");
    }
}
