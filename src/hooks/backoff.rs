//! When a failed delivery is tried again.

use std::time::Duration;

/// Wait after the first failure.
const FIRST: Duration = Duration::from_secs(5);
/// Factor from one wait to the next.
const FACTOR: u32 = 3;
/// Longest wait.
const LONGEST: Duration = Duration::from_hours(6);
/// How many attempts fail before a delivery is given up: the waits in between add up to about 21 hours.
pub(super) const FAILURES_MAX: u32 = 12;

/// The wait after `failures` failures in a row: it triples, up to six hours. `random`, from 0 to 1, spreads it from 85 to 105
/// hundredths of that, so that what failed together does not return together. `None`: no further attempt.
pub(super) fn wait_after(failures: u32, random: f64) -> Option<Duration> {
    if failures >= FAILURES_MAX {
        return None;
    }
    let steps = failures.saturating_sub(1);
    let wait = FACTOR.checked_pow(steps).and_then(|factor| FIRST.checked_mul(factor)).unwrap_or(LONGEST).min(LONGEST);
    Some(wait.mul_f64(0.85 + 0.2 * random.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_within_a_day() {
        for random in [0.0, 0.5, 1.0] {
            let waits: Vec<Duration> = (1..).map_while(|failures| wait_after(failures, random)).collect();
            assert_eq!(waits.len() as u32, FAILURES_MAX - 1);
            assert!(waits.is_sorted(), "{waits:?}");
            let total: Duration = waits.iter().sum();
            assert!((Duration::from_hours(18)..Duration::from_hours(24)).contains(&total), "{total:?}");
        }
        assert_eq!(wait_after(1, 0.75), Some(FIRST));
        assert_eq!(wait_after(3, 0.75), Some(FIRST * 9));
        assert_eq!(wait_after(FAILURES_MAX, 0.0), None);
    }
}
