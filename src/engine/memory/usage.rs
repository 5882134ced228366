//! What a device's memory was used for, beside what was planned.

/// How much more than what was reported is news.
const GROWTH: f64 = 1.02;

/// The most memory of a device that was used at a time.
pub(crate) struct MemoryUse {
    /// Bytes that were free when it was planned. `None` on the CPU.
    free: Option<usize>,
    reported: usize,
}

impl MemoryUse {
    pub(crate) fn new(free: Option<usize>) -> Self {
        Self { free, reported: 0 }
    }

    /// Logs the most bytes that were used so far, if they have grown.
    pub(crate) fn report(&mut self, most_used: Option<usize>) {
        let (Some(most_used), Some(free)) = (most_used, self.free) else { return };
        if self.has_grown(most_used) {
            let gib = |bytes: usize| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
            tracing::info!(used = gib(most_used), planned_within = gib(free), "the most of the device's memory so far");
        }
    }

    /// Whether this is more than what was reported, which it replaces then.
    fn has_grown(&mut self, most_used: usize) -> bool {
        let has_grown = most_used as f64 > self.reported as f64 * GROWTH;
        if has_grown {
            self.reported = most_used;
        }
        has_grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_growth_is_reported() {
        let mut memory = MemoryUse::new(Some(1 << 30));
        let reported = [1000, 1000, 1010, 1030, 900, 2000].map(|used| memory.has_grown(used));
        assert_eq!(reported, [true, false, false, true, false, true]);
    }
}
