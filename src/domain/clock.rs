//! Time as a dependency, so that expiry can be tested without waiting.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use time::{Duration, OffsetDateTime};

/// Where "now" comes from.
pub trait Clock: Send + Sync {
    /// The present moment, UTC.
    fn now(&self) -> OffsetDateTime;

    /// How long this process has run, roughly: only differences have a meaning. Unlike [`Clock::now`] it never goes
    /// back or leaps when the machine's clock is set, so waits and rates are measured by it.
    fn uptime(&self) -> Duration;
}

/// Cuts a moment to the database's resolution, so that a new object shows the same times as a stored one.
#[must_use]
pub fn to_the_millisecond(moment: OffsetDateTime) -> OffsetDateTime {
    moment.truncate_to_millisecond()
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn uptime(&self) -> Duration {
        static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
        Duration::try_from(BEGINNING.elapsed()).unwrap_or(Duration::MAX)
    }
}

/// A clock for tests, which moves only when told to.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<(OffsetDateTime, Duration)>>);

impl ManualClock {
    /// A clock stopped at `now`.
    pub fn new(now: OffsetDateTime) -> Self {
        Self(Arc::new(Mutex::new((now, Duration::ZERO))))
    }

    /// Lets time pass. A negative duration sets the clock back, as [`ManualClock::set_by`] does.
    pub fn advance(&self, by: Duration) {
        let (now, uptime) = &mut *self.lock();
        *now += by;
        *uptime += by.max(Duration::ZERO);
    }

    /// Sets the clock ahead, or back, without any time passing.
    pub fn set_by(&self, by: Duration) {
        self.lock().0 += by;
    }

    fn lock(&self) -> MutexGuard<'_, (OffsetDateTime, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> OffsetDateTime {
        self.lock().0
    }

    fn uptime(&self) -> Duration {
        self.lock().1
    }
}
