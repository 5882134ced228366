//! Detects a stalled engine, so that the process can be restarted: a hanging call cannot be aborted, and a new process
//! may get what a device lacks after a failure.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cost::CostModel;

/// A call that takes this many times its expected time counts as hanging.
const EXPECTED_TIMES_MAX: f64 = 60.0;
/// After this many rebuilds in a row without a finished image, rebuilding does not help.
pub(super) const FRUITLESS_REBUILDS_MAX: u32 = 3;

/// Why an engine is considered stalled.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Stall {
    /// A call takes far too long.
    #[error("engine {engine} has been busy with {what} for {} s; {expected_seconds:.2} s were expected", took.as_secs())]
    Call {
        /// Which one.
        engine: usize,
        /// What it is doing.
        what: &'static str,
        /// How long it has been doing that.
        took: Duration,
        /// What such a call has taken so far.
        expected_seconds: f64,
    },
    /// Its thread has ended.
    #[error("the thread of engine {engine} has ended, by a bug in this program")]
    Gone {
        /// Which one.
        engine: usize,
    },
    /// It fails after every rebuild.
    #[error("engine {engine} was rebuilt {times} times and has finished no image in between")]
    FruitlessRebuilds {
        /// Which one.
        engine: usize,
        /// How often.
        times: u32,
    },
}

/// The kinds of engine calls.
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
            Self::Admit => "admitting an image",
            Self::Step => "a step",
            Self::Preview => "a preview",
            Self::Decode => "decoding an image",
        }
    }

    /// Likely duration for an engine that holds images with steps of these `works`: the longest of all calls of the
    /// kind that can be meant. An engine that holds none is warming up.
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

/// How long a call may take. Never less than `least`: the machine may have been busy or asleep.
pub(super) fn allowed(expected_seconds: f64, least: Duration) -> Duration {
    Duration::try_from_secs_f64(expected_seconds * EXPECTED_TIMES_MAX).unwrap_or(Duration::MAX).max(least)
}

/// The current call of one engine, and its start.
#[derive(Debug, Default)]
pub(super) struct Watch(Mutex<Option<(Call, Instant)>>);

/// Guard of a call under way.
pub(super) struct UnderWay<'a>(&'a Watch);

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Option<(Call, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, call: Call) -> UnderWay<'_> {
        *self.lock() = Some((call, Instant::now()));
        UnderWay(self)
    }

    /// The current call, and for how long it has run.
    pub(super) fn under_way(&self) -> Option<(Call, Duration)> {
        self.lock().map(|(call, since)| (call, since.elapsed()))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
