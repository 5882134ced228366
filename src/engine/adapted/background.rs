//! Threads that work while steps run on the same cores, and take little time from them.

use std::time::{Duration, Instant};

/// How many steps of `nice` such a thread is below others. Those that compute for a server are five below, and a step waits for the
/// slowest of them: above them, this one would take three quarters of a core from one. Here it takes a quarter.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// How long it works before it rests.
const WORK: Duration = Duration::from_millis(5);

/// How long it rests. Where two compute threads share a core because this one has another, a core that is free for a moment takes one
/// of them at once; otherwise that takes the system a tenth of a second, and the step as well.
const REST: Duration = Duration::from_millis(1);

/// Lowers the priority of this thread alone, which only Linux can.
#[cfg(target_os = "linux")]
pub(super) fn give_way() {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "the priority of a thread in the background cannot be lowered");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn give_way() {}

/// When a thread rested.
pub(super) struct Pace {
    rested: Instant,
}

impl Pace {
    /// Of a thread that begins to work.
    pub(super) fn new() -> Self {
        Self { rested: Instant::now() }
    }

    /// Rests, if the thread has worked for long. To be called often.
    pub(super) fn keep(&mut self) {
        if self.rested.elapsed() >= WORK {
            std::thread::sleep(REST);
            self.rested = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_thread_that_asks_gives_way() {
        use rustix::process::getpriority_process;

        let before = getpriority_process(None).expect("a priority");
        let lowered = std::thread::spawn(|| {
            give_way();
            getpriority_process(None).expect("a priority")
        });
        assert_eq!(lowered.join().expect("ends"), (before + NICENESS).min(19));
        assert_eq!(getpriority_process(None).expect("a priority"), before, "of the thread that did not ask");
    }

    #[test]
    fn a_thread_that_has_worked_for_long_rests() {
        let begun = Instant::now();
        let mut pace = Pace { rested: begun };
        while begun.elapsed() < WORK {
            std::hint::spin_loop();
        }
        pace.keep();
        assert!(pace.rested >= begun + WORK + REST);
    }
}
