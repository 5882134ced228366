//! What this process takes of the machine.

/// Bytes of memory that are in use, where the system tells (Linux).
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    read(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn read(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_read() {
        assert_eq!(read("Name:\tfluxserve\nVmRSS:\t   12345 kB\nThreads:\t3\n"), Some(12345 * 1024));
        assert_eq!(read("VmRSS:\tmuch"), None);
        assert_eq!(read(""), None);
    }
}
