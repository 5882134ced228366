use std::cell::Cell;
use std::collections::BTreeSet;

use super::*;
use crate::catalog::card_or_flux_dev;
use crate::domain::engine::EngineLimits;
use crate::domain::ids::ModelId;
use crate::domain::image::RgbImage;

/// A fake engine with memory for two images per step.
#[derive(Default)]
struct Small {
    images: BTreeSet<Slot>,
    admitted: u64,
    steps: usize,
    waits: Cell<usize>,
    /// Whether a failed call breaks the device.
    breaks: bool,
    is_broken: bool,
}

impl StepEngine for Small {
    fn limits(&self) -> EngineLimits {
        EngineLimits { images_max: 8, step_tokens_max: 2000 }
    }

    fn admit(&mut self, _: &GenerateSpec) -> Result<Slot, EngineError> {
        self.admitted += 1;
        self.images.insert(Slot(self.admitted));
        Ok(Slot(self.admitted))
    }

    fn step(&mut self, slots: &[Slot]) -> Result<(), EngineError> {
        if slots.len() > 2 {
            return Err(EngineError::OutOfMemory("no more".into()));
        }
        self.steps += 1;
        Ok(())
    }

    fn finish(&mut self, slot: Slot) -> Result<RgbImage, EngineError> {
        self.images.remove(&slot);
        Err(EngineError::NotFinite)
    }

    fn release(&mut self, slot: Slot) {
        self.images.remove(&slot);
    }
}

impl Timed for Small {
    fn wait(&self) -> Result<(), EngineError> {
        self.waits.set(self.waits.get() + 1);
        if self.is_broken { Err(EngineError::Fatal("CUDA_ERROR_LAUNCH_FAILED".into())) } else { Ok(()) }
    }

    fn encode_text(&mut self, _: &str, _: usize) -> Result<(), EngineError> {
        self.is_broken = self.breaks;
        Err(EngineError::Fatal("no encoders".into()))
    }

    fn decode(&self, _: Slot) -> Result<(), EngineError> {
        Ok(())
    }
}

fn bench(engine: &mut Small, deadline: Option<Instant>) -> Bench<'_> {
    Bench::new(engine, card_or_flux_dev(&ModelId::new("test/model")), 3, deadline)
}

fn squares(count: usize) -> Vec<ImageSize> {
    vec![ImageSize { width: 64, height: 64 }; count]
}

fn repeats(timing: &Timing) -> Option<usize> {
    match timing.outcome {
        Outcome::Measured { repeats, .. } => Some(repeats),
        _ => None,
    }
}

#[test]
fn each_part_runs_once_more_than_it_is_timed_and_the_device_is_waited_for() {
    let mut engine = Small::default();
    let mut bench = bench(&mut engine, None);
    assert_eq!(repeats(&bench.step(&squares(2))), Some(3));
    assert_eq!((engine.steps, engine.waits.get(), engine.images.len()), (4, 8, 0));
    let mut bench = self::bench(&mut engine, None);
    let size = squares(1)[0];
    for timing in [bench.admit(size), bench.decode(size), bench.finish(size), bench.image(size, 5)] {
        assert_eq!(repeats(&timing), Some(3), "{timing:?}");
    }
    assert_eq!(engine.steps, 4 + 4 + 1 + 3 * 5, "steps, finish, a warm-up of one step, complete images");
    assert!(engine.images.is_empty());
}

#[test]
fn a_part_that_does_not_fit_or_fails_is_reported_and_the_rest_continues() {
    let mut engine = Small::default();
    let mut bench = bench(&mut engine, None);
    assert_eq!(bench.step(&squares(4)).outcome, Outcome::DoesNotFit { reason: "no more".into() });
    assert_eq!(bench.text().outcome, Outcome::Failed { reason: "the engine failed: no encoders".into() });
    assert_eq!(repeats(&bench.step(&squares(1))), Some(3));
    assert!(engine.images.is_empty());
}

#[test]
fn a_device_that_answers_no_more_is_noticed() {
    let mut engine = Small::default();
    let mut timed = bench(&mut engine, None);
    assert!(matches!(timed.run(&Todo::Text).outcome, Outcome::Failed { .. }));
    assert!(matches!(timed.run(&Todo::Step(squares(4))).outcome, Outcome::DoesNotFit { .. }));
    assert_eq!(timed.lost(), None, "the device still answers");
    let mut engine = Small { breaks: true, ..Small::default() };
    let mut timed = bench(&mut engine, None);
    assert_eq!(timed.run(&Todo::Text).outcome, Outcome::Failed { reason: "the engine failed: no encoders".into() });
    assert_eq!(timed.lost(), Some("the engine failed: CUDA_ERROR_LAUNCH_FAILED"));
}

#[test]
fn nothing_is_started_that_would_end_too_late() {
    let mut engine = Small::default();
    let mut timed = bench(&mut engine, Some(Instant::now() + Duration::from_hours(1)));
    timed.seconds_per_token = 1.0;
    assert_eq!(repeats(&timed.step(&squares(1))), Some(3), "two steps of 528 seconds, at worst");
    assert_eq!(timed.image(squares(1)[0], 50).outcome, Outcome::NoTime);
    assert_eq!(bench(&mut engine, Some(Instant::now())).text().outcome, Outcome::NoTime);
}

#[test]
fn the_median_of_an_even_number_lies_between_two() {
    assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
}
