//! What a step costs on this device, learned from measurements.
//!
//! Owns the model `seconds of a step = overhead + work × seconds per unit of work` and what follows from it: how much
//! to pack into one step, and when a job is likely to end. Work is counted in tokens, each sequence's by `t × (1 + t /
//! b)`: linear layers cost the same for every token, attention grows with the sequence, and at `b` tokens
//! ([`crate::domain::engine::StepEngine::attention_balance_tokens`]) both cost the same.

use std::time::Duration;

use crate::domain::spec::GenerateSpec;

/// Packing stops where a step's overhead is less than this share of its time: beyond it more images gain little and
/// wait for each other.
const OVERHEAD_SHARE: f64 = 0.2;
/// Work that one step may hold before anything was measured.
const PACKED_WORK_UNKNOWN: f64 = 1024.0;
/// Weight that past measurements keep after one more step: about the last hundred steps count.
const FADING: f64 = 0.99;
/// A step counts as at most this many times its expected time.
const SURPRISE_MAX: f64 = 3.0;
/// More work than any step holds: the packing limit where a step takes the same time whatever it holds.
const PACKED_WORK_MAX: f64 = 1e9;
/// Weight of the newest measurement in the running means of admission and decoding.
const MEAN_SMOOTHING: f64 = 0.2;

/// Converts an image's step to work, for one engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkScale {
    /// Length of a sequence whose attention costs as much as its linear layers, in tokens.
    pub attention_balance_tokens: usize,
}

impl WorkScale {
    /// The work of one step of an image, over all its passes.
    #[must_use]
    pub fn step_work(&self, spec: &GenerateSpec) -> f64 {
        let passes = spec.passes() as f64;
        let tokens = spec.step_tokens() as f64 / passes;
        passes * self.sequence_work(tokens)
    }

    /// The work of one sequence of `tokens` in one step.
    #[must_use]
    pub fn sequence_work(&self, tokens: f64) -> f64 {
        tokens * (1.0 + tokens / self.attention_balance_tokens.max(1) as f64)
    }
}

/// Sums over step measurements, for a linear fit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    count: f64,
    work: f64,
    seconds: f64,
    work_work: f64,
    work_seconds: f64,
}

impl Sums {
    fn add(&mut self, work: f64, seconds: f64) {
        self.count += 1.0;
        self.work += work;
        self.seconds += seconds;
        self.work_work += work * work;
        self.work_seconds += work * seconds;
    }

    fn scaled(self, factor: f64) -> Self {
        Self {
            count: self.count * factor,
            work: self.work * factor,
            seconds: self.seconds * factor,
            work_work: self.work_work * factor,
            work_seconds: self.work_seconds * factor,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            work: self.work + other.work,
            seconds: self.seconds + other.seconds,
            work_work: self.work_work + other.work_work,
            work_seconds: self.work_seconds + other.work_seconds,
        }
    }

    /// Overhead and seconds per work by least squares, neither of them below zero.
    fn line(&self) -> Option<(f64, f64)> {
        let (mean_work, mean_seconds) = (self.work / self.count, self.seconds / self.count);
        let spread = self.work_work / self.count - mean_work * mean_work;
        if spread > 1e-6 * mean_work * mean_work {
            let slope = (self.work_seconds / self.count - mean_work * mean_seconds) / spread;
            let overhead = mean_seconds - slope * mean_work;
            if slope <= 0.0 {
                return Some((mean_seconds, 0.0));
            }
            if overhead >= 0.0 {
                return Some((overhead, slope));
            }
        }
        let through_zero = self.work_seconds / self.work_work;
        (through_zero.is_finite() && through_zero > 0.0).then_some((0.0, through_zero))
    }
}

/// Measured speed of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CostModel {
    /// Steps of different sizes from the warm-up: they keep the line's slope when all later steps are alike.
    warm_up: Sums,
    recent: Sums,
    admit_seconds: f64,
    /// Per unit of an image's step work: decoding grows with the image.
    finish_seconds: f64,
    line: Option<(f64, f64)>,
}

impl CostModel {
    /// A model with a known line, for simulations.
    #[must_use]
    pub fn known(overhead_seconds: f64, seconds_per_work: f64, admit_seconds: f64, finish_seconds: f64) -> Self {
        Self { admit_seconds, finish_seconds, line: Some((overhead_seconds, seconds_per_work)), ..Self::default() }
    }

    /// Notes a step of the warm-up.
    pub fn note_warm_up(&mut self, work: f64, took: Duration) {
        self.warm_up.add(work, took.as_secs_f64());
        self.fit();
    }

    /// Notes a step of jobs.
    pub fn note_step(&mut self, work: f64, took: Duration) {
        // One step that the machine disturbed says little about the others.
        let seconds = took.as_secs_f64();
        let seconds = if self.is_known() { seconds.min(SURPRISE_MAX * self.step_seconds(work)) } else { seconds };
        self.recent = self.recent.scaled(FADING);
        self.recent.add(work, seconds);
        self.fit();
    }

    /// Notes an admission.
    pub fn note_admission(&mut self, took: Duration) {
        smooth(&mut self.admit_seconds, took.as_secs_f64());
    }

    /// Notes the decoding of an image whose step is `work`.
    pub fn note_finish(&mut self, work: f64, took: Duration) {
        smooth(&mut self.finish_seconds, took.as_secs_f64() / work.max(1.0));
    }

    fn fit(&mut self) {
        self.line = self.warm_up.plus(self.recent).line();
    }

    /// Whether anything was measured.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.line.is_some()
    }

    /// Likely time of a step of `work`; 0 before anything was measured.
    #[must_use]
    pub fn step_seconds(&self, work: f64) -> f64 {
        self.line.map_or(0.0, |(overhead, per_work)| overhead + per_work * work)
    }

    /// Total time of the warm-up's steps, one per size.
    #[must_use]
    pub fn warm_up_seconds(&self) -> f64 {
        self.warm_up.seconds
    }

    /// Likely time to admit an image.
    #[must_use]
    pub fn admit_seconds(&self) -> f64 {
        self.admit_seconds
    }

    /// Likely time to decode an image whose step is `work`.
    #[must_use]
    pub fn finish_seconds(&self, work: f64) -> f64 {
        self.finish_seconds * work
    }

    /// How much work one step should hold: beyond it, more images save next to nothing and wait for each other.
    #[must_use]
    pub fn packed_work(&self) -> f64 {
        self.line.map_or(PACKED_WORK_UNKNOWN, |(overhead, per_work)| {
            // overhead / (overhead + per_work × work) = share
            (overhead / per_work * (1.0 / OVERHEAD_SHARE - 1.0)).min(PACKED_WORK_MAX)
        })
    }

    /// How much work steps do in `seconds`, packed as they were lately: the price of an admission or a decoding in
    /// steps. 0 before anything was measured.
    #[must_use]
    pub fn work_of(&self, seconds: f64) -> f64 {
        let measured = self.warm_up.plus(self.recent);
        let per_work =
            if measured.work > 0.0 { measured.seconds / measured.work } else { self.seconds_per_packed_work() };
        if per_work > 0.0 { seconds / per_work } else { 0.0 }
    }

    /// Time per unit of work when steps are packed as they should be.
    #[must_use]
    pub fn seconds_per_packed_work(&self) -> f64 {
        let work = self.packed_work().max(1.0);
        self.step_seconds(work) / work
    }
}

fn smooth(mean: &mut f64, measured: f64) {
    *mean = if *mean == 0.0 { measured } else { *mean + MEAN_SMOOTHING * (measured - *mean) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Steps of 5 ms and 13 µs for each unit of work.
    fn measured(works: &[f64]) -> CostModel {
        let mut model = CostModel::default();
        for work in works {
            model.note_warm_up(*work, seconds(0.005 + 13e-6 * work));
        }
        model
    }

    #[test]
    fn overhead_and_rate_are_found_and_say_how_much_to_pack() {
        let model = measured(&[1600.0, 3200.0, 6400.0]);
        assert!((model.step_seconds(5000.0) - 0.07).abs() < 1e-9);
        // 5 ms are a fifth of 25 ms, of which 20 ms are work.
        assert!((model.packed_work() - 0.02 / 13e-6).abs() < 1.0);
        assert!((model.seconds_per_packed_work() - 0.025 / (0.02 / 13e-6)).abs() < 1e-9);
    }

    #[test]
    fn time_outside_steps_is_worth_the_work_that_steps_do_in_it() {
        let mut model = CostModel::default();
        assert_eq!(model.work_of(1.0), 0.0, "nothing is known");
        for _ in 0..3 {
            model.note_step(1000.0, seconds(0.1));
        }
        assert!((model.work_of(0.5) - 5000.0).abs() < 1e-6, "{}", model.work_of(0.5));
        // A device that takes the same time whatever a step holds: packing has no limit, and this value stays.
        model.note_step(2000.0, seconds(0.1));
        assert!(model.work_of(0.1) < 2000.0);
    }

    #[test]
    fn a_device_without_overhead_packs_nothing() {
        let mut model = CostModel::default();
        for work in [500.0, 1000.0, 4000.0] {
            model.note_warm_up(work, seconds(1e-5 * work));
        }
        assert!(model.packed_work() < 1.0, "{}", model.packed_work());
    }

    #[test]
    fn equal_steps_for_a_long_time_keep_the_overhead() {
        let mut model = measured(&[1600.0, 3200.0, 6400.0]);
        for _ in 0..10_000 {
            model.note_step(1600.0, seconds(0.005 + 13e-6 * 1600.0));
        }
        assert!((model.step_seconds(0.0) - 0.005).abs() < 1e-4, "{}", model.step_seconds(0.0));
    }

    #[test]
    fn a_slower_device_is_noticed() {
        let mut model = measured(&[1600.0, 3200.0, 6400.0]);
        for step in 0..500 {
            let work = if step % 2 == 0 { 1600.0 } else { 6400.0 };
            model.note_step(work, seconds(2.0 * (0.005 + 13e-6 * work)));
        }
        let now = model.step_seconds(5000.0);
        assert!((0.13..0.141).contains(&now), "{now}");
    }

    #[test]
    fn noise_gives_no_negative_overhead_or_rate() {
        let mut model = CostModel::default();
        model.note_step(100.0, seconds(0.2));
        assert!((model.step_seconds(50.0) - 0.1).abs() < 1e-12, "one measurement: proportional");
        model.note_step(200.0, seconds(0.1));
        assert_eq!(model.step_seconds(1e6), model.step_seconds(0.0), "more takes no less");
        assert!(model.packed_work() == PACKED_WORK_MAX && model.seconds_per_packed_work().is_finite());
        let mut model = CostModel::default();
        model.note_step(100.0, seconds(0.1));
        model.note_step(200.0, seconds(0.3));
        assert!(model.step_seconds(0.0) == 0.0, "nothing takes no less than nothing");
    }

    #[test]
    fn one_slow_step_does_not_change_the_model_much() {
        let mut model = measured(&[1600.0, 3200.0, 6400.0]);
        for step in 0..50 {
            model.note_step(1600.0, seconds(if step == 40 { 60.0 } else { 0.005 + 13e-6 * 1600.0 }));
        }
        let expected = 0.005 + 13e-6 * 5000.0;
        assert!((model.step_seconds(5000.0) / expected - 1.0).abs() < 0.2, "{}", model.step_seconds(5000.0));
    }

    /// Blocks that are read for each step take the same time whatever a step holds, until its arithmetic takes longer.
    #[test]
    fn a_step_that_reads_its_weights_is_packed_until_its_arithmetic_takes_as_long() {
        let took = |work: f64| seconds(f64::max(2.0, 1e-4 * work));
        let mut model = CostModel::default();
        for work in [1600.0, 3200.0, 6400.0] {
            model.note_warm_up(work, took(work));
        }
        assert!((model.step_seconds(1600.0) - 2.0).abs() < 1e-9, "{}", model.step_seconds(1600.0));
        assert!(model.packed_work() > 20_000.0, "more images cost nothing yet: {}", model.packed_work());
        // What is packed then is measured, and the time per work is that of large steps again.
        for step in 0..300 {
            let work = if step % 2 == 0 { 25_000.0 } else { 40_000.0 };
            model.note_step(work, took(work));
        }
        let large = model.step_seconds(40_000.0);
        assert!((3.6..4.4).contains(&large), "{large}");
        assert!(model.packed_work() < PACKED_WORK_MAX);
    }

    #[test]
    fn nothing_is_known_at_first_and_nothing_breaks() {
        let model = CostModel::default();
        assert!(!model.is_known() && model.step_seconds(1e6) == 0.0);
        assert!(model.packed_work() == PACKED_WORK_UNKNOWN);
    }

    #[test]
    fn long_sequences_cost_more_than_their_tokens() {
        let scale = WorkScale { attention_balance_tokens: 18_432 };
        // FLUX.1-dev at 1024×1024: a quarter more than its linear layers.
        assert!((scale.sequence_work(4608.0) / 4608.0 - 1.25).abs() < 1e-9);
    }
}
