//! The threads that compute on the CPU. All engines of the process share them.

use std::collections::BTreeSet;
use std::path::Path;

use rayon::ThreadPoolBuilder;

use crate::config::Config;

/// Where Linux says which processors are threads of one core.
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// How many steps of `nice` compute threads of a server are below its other threads: enough that a request is answered while all
/// cores compute, and few enough that other programs do not take the machine.
const SERVER_NICENESS: i32 = 5;

/// Starts the threads of a command that computes.
pub fn start_compute_threads(config: &Config) {
    start(config, || ());
}

/// Starts those of a server, whose other threads go first.
pub(super) fn start_behind_server(config: &Config) {
    start(config, lower_priority);
}

/// Does nothing where the threads are running already: a process has one set of them.
fn start(config: &Config, at_start: impl Fn() + Send + Sync + 'static) {
    let count = config.engine.threads.map_or_else(default_count, |threads| threads as usize);
    let pool = ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("compute-{index}"))
        .start_handler(move |_| at_start());
    match pool.build_global() {
        Ok(()) => tracing::debug!(count, "started the compute threads"),
        Err(error) => tracing::debug!(%error, "the compute threads are running already"),
    }
}

/// A thread for each core that this process may use. A core's second thread has no arithmetic units of its own, and takes cache
/// from the first.
fn default_count() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let status = std::fs::read_to_string("/proc/self/status").ok();
    let cores = status.and_then(|status| cores(&status, Path::new(PROCESSORS)));
    cores.map_or(available, |cores| cores.min(available))
}

/// Cores of the processors that the process with this status may use.
fn cores(status: &str, processors: &Path) -> Option<usize> {
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = BTreeSet::new();
    for processor in numbers(allowed)? {
        let siblings = processors.join(format!("cpu{processor}/topology/thread_siblings_list"));
        cores.insert(std::fs::read_to_string(siblings).ok()?);
    }
    Some(cores.len()).filter(|&cores| cores > 0)
}

/// The numbers of a list like `0-3,8`.
fn numbers(list: &str) -> Option<BTreeSet<usize>> {
    let mut numbers = BTreeSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(numbers)
}

/// Lowers the priority of this thread alone, which only Linux can.
#[cfg(target_os = "linux")]
fn lower_priority() {
    if let Err(error) = rustix::process::nice(SERVER_NICENESS) {
        tracing::debug!(%error, "the priority of a compute thread cannot be lowered");
    }
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four processors on two cores, of which the process may use all, one core, or a thread of each.
    #[test]
    fn threads_of_a_core_count_once() {
        let folder = tempfile::tempdir().expect("a folder");
        for (processor, siblings) in [(0, "0,2\n"), (1, "1,3\n"), (2, "0,2\n"), (3, "1,3\n")] {
            let topology = folder.path().join(format!("cpu{processor}/topology"));
            std::fs::create_dir_all(&topology).expect("a folder");
            std::fs::write(topology.join("thread_siblings_list"), siblings).expect("a file");
        }
        let of = |allowed: &str| cores(&format!("Name:\tx\nCpus_allowed_list:\t{allowed}\n"), folder.path());
        assert_eq!(["0-3", "0,2", "0-1", "3"].map(of), [Some(2), Some(1), Some(2), Some(1)]);
        assert_eq!(["0-4", "", "a-b"].map(of), [None; 3], "unknown processors, and no list");
        assert_eq!(cores("Name:\tx\n", folder.path()), None);
    }

    #[test]
    fn there_is_a_thread_at_least_and_none_for_a_processor_that_is_not_there() {
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        assert!((1..=available).contains(&default_count()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_priority_of_one_thread_is_lowered() {
        use rustix::process::getpriority_process;

        let before = getpriority_process(None).expect("a priority");
        let lowered = std::thread::spawn(|| {
            lower_priority();
            getpriority_process(None).expect("a priority")
        });
        assert_eq!(lowered.join().expect("ends"), (before + SERVER_NICENESS).min(19));
        assert_eq!(getpriority_process(None).expect("a priority"), before, "of the thread that did not ask");
    }
}
