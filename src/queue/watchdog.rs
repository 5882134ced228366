//! Whether an engine draws nothing any more, so that whoever runs the worker starts it again: a call that does not come
//! back cannot be broken off, and what a device lacks after a failure may be had again by another process.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cost::CostModel;

/// A call that takes so many times what was expected is thought not to come back.
const EXPECTED_TIMES_MAX: f64 = 60.0;
/// So many times in a row an engine is built again without an image in between: then building it again does not help.
pub(super) const BUILDS_IN_VAIN_MAX: u32 = 3;

/// Why an engine is thought to draw nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Stall {
    /// It is at something that takes far too long.
    #[error("engine {engine} has been at {what} for {} s, where {expected_seconds:.2} s were expected", took.as_secs())]
    Call {
        /// Which one.
        engine: usize,
        /// What it is at.
        what: &'static str,
        /// For how long.
        took: Duration,
        /// What such a thing has taken so far.
        expected_seconds: f64,
    },
    /// Its thread is gone.
    #[error("the thread of engine {engine} has ended, by a mistake in this program")]
    Gone {
        /// Which one.
        engine: usize,
    },
    /// It fails, however often it is built again.
    #[error("engine {engine} was built again {times} times and has finished no image in between")]
    BuiltInVain {
        /// Which one.
        engine: usize,
        /// How often.
        times: u32,
    },
}

/// What an engine can be at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Admit,
    Step,
    Preview,
    Decode,
}

impl Call {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Admit => "taking an image in",
            Self::Step => "a step",
            Self::Preview => "a preview",
            Self::Decode => "decoding an image",
        }
    }

    /// What it is likely to take an engine that holds images whose steps are so much work: of all calls of its kind that
    /// can be meant, the longest. One that holds none is being built again, and draws its first images.
    pub(super) fn expected_seconds(self, costs: &CostModel, works: &[f64]) -> f64 {
        if works.is_empty() {
            return costs.admit_seconds().max(costs.warm_up_seconds());
        }
        match self {
            Self::Admit => costs.admit_seconds(),
            Self::Step => costs.step_seconds(works.iter().sum()),
            Self::Preview | Self::Decode => costs.finish_seconds(works.iter().copied().fold(0.0, f64::max)),
        }
    }
}

/// How long a call may take of which so much is expected. Never less than `least`: the machine may have been busy with, or
/// have slept over, something else.
pub(super) fn allowed(expected_seconds: f64, least: Duration) -> Duration {
    Duration::try_from_secs_f64(expected_seconds * EXPECTED_TIMES_MAX).unwrap_or(Duration::MAX).max(least)
}

/// What one engine is at, and since when.
#[derive(Debug, Default)]
pub(super) struct Watch(Mutex<Option<(Call, Instant)>>);

/// Ends with the call.
pub(super) struct UnderWay<'a>(&'a Watch);

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Option<(Call, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, call: Call) -> UnderWay<'_> {
        *self.lock() = Some((call, Instant::now()));
        UnderWay(self)
    }

    /// What the engine is at, and for how long.
    pub(super) fn under_way(&self) -> Option<(Call, Duration)> {
        self.lock().map(|(call, since)| (call, since.elapsed()))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
