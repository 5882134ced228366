//! Threads that work while steps run, and take no time from them.

/// How many steps of `nice` such a thread is below others. Those that compute for a server are five below: as their equal, it would
/// take a third of two cores from them, and a step waits for the slowest of its threads.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 15;

/// Lowers the priority of this thread alone, which only Linux can.
#[cfg(target_os = "linux")]
pub(super) fn give_way() {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "the priority of a thread in the background cannot be lowered");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn give_way() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn only_the_thread_that_asks_gives_way() {
        let before = getpriority_process(None).expect("a priority");
        let lowered = std::thread::spawn(|| {
            give_way();
            getpriority_process(None).expect("a priority")
        });
        assert_eq!(lowered.join().expect("ends"), (before + NICENESS).min(19));
        assert_eq!(getpriority_process(None).expect("a priority"), before, "of the thread that did not ask");
    }
}
