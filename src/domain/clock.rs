//! Time as a dependency, so that expiry can be tested without waiting.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use time::{Duration, OffsetDateTime};

/// Where "now" comes from.
pub trait Clock: Send + Sync {
    /// The present moment, UTC.
    fn now(&self) -> OffsetDateTime;

    /// How long this process has run, about: only differences mean anything. Unlike [`Clock::now`] it never goes back or
    /// leaps, whoever sets the machine's clock meanwhile, so whatever is told to wait, and every rate, is measured by it.
    fn uptime(&self) -> Duration;
}

/// The moment without what the database does not keep of it: what is told when something is made is then what is told of
/// it later.
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

/// A clock that stands still until it is told to move: for tests.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<(OffsetDateTime, Duration)>>);

impl ManualClock {
    /// A clock standing at `now`.
    pub fn new(now: OffsetDateTime) -> Self {
        Self(Arc::new(Mutex::new((now, Duration::ZERO))))
    }

    /// Lets time pass. With a negative duration the clock is set back, as [`ManualClock::set_by`] does.
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
