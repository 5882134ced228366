//! Resources that this process uses.

/// Resident memory in bytes, on Linux.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    read_line(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

fn read_line(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Peak resident memory in bytes, on Linux.
#[must_use]
pub fn resident_bytes_max() -> Option<u64> {
    read_line(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Bytes of memory that this process can take without swapping, on Linux: what the machine has available, or the control group's
/// limit leaves.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let machine = read_line(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(group_bytes().map_or(machine, |group| group.min(machine)))
}

/// What the limit of this process's control group (version 2) leaves. `None` without a limit.
fn group_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}")).ok();
    left_of_limit(&read("memory.max")?, &read("memory.current")?, &read("memory.stat")?)
}

/// The cache of files counts as used by the group, and can be taken back.
fn left_of_limit(limit: &str, used: &str, stat: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file "))?;
    let cache: u64 = cache.trim().parse().ok()?;
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// Seconds since the start of this process, to the hundredth, on Linux.
#[must_use]
pub fn running_seconds() -> Option<f64> {
    let [status, uptime] = ["/proc/self/stat", "/proc/uptime"].map(std::fs::read_to_string);
    seconds_since_start(&status.ok()?, &uptime.ok()?)
}

/// Ticks per second in `/proc` (`USER_HZ`), the same on every supported machine.
const TICKS_PER_SECOND: f64 = 100.0;

fn seconds_since_start(status: &str, uptime: &str) -> Option<f64> {
    // The second field is the program's name in parentheses, with any characters; the start is the 22nd.
    let (_, fields) = status.rsplit_once(')')?;
    let started: f64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let now: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some((now - started / TICKS_PER_SECOND).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_read() {
        let read = |status| read_line(status, "VmRSS:");
        assert_eq!(read("Name:\tfluxserve\nVmRSS:\t   12345 kB\nThreads:\t3\n"), Some(12345 * 1024));
        assert_eq!(read("VmRSS:\tmuch"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn a_limit_leaves_what_is_neither_used_nor_cache() {
        let stat = "anon 700\nfile 250\ninactive_file 200\nactive_file 50\n";
        assert_eq!(left_of_limit("2000\n", "900\n", stat), Some(1300));
        assert_eq!(left_of_limit("500\n", "900\n", stat), Some(0));
        assert_eq!(left_of_limit("max\n", "900\n", stat), None);
        assert_eq!(left_of_limit("2000\n", "900\n", ""), None);
    }

    #[test]
    fn the_start_is_found_after_any_name() {
        let status = "77 (a (b) 1 2) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 12345 20 21";
        let seconds = seconds_since_start(status, "125.50 200.00\n").expect("both are there");
        assert!((seconds - 2.05).abs() < 1e-9, "{seconds}");
        assert_eq!(seconds_since_start("77 (a) S 1", "125.50 200.00"), None);
    }
}
