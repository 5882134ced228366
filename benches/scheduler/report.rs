//! What is printed.

use std::collections::BTreeMap;

use crate::policies::{Outcome, Policy};
use crate::workload::Job;

impl Outcome {
    /// Share of all requests that were served in time.
    fn goodput(&self) -> f64 {
        self.ended.iter().filter(|ended| ended.in_time).count() as f64 / self.requested as f64
    }

    fn latency(&self, share: f64, small_only: bool) -> f64 {
        let mut latencies: Vec<f64> =
            self.ended.iter().filter(|ended| ended.is_small || !small_only).map(|ended| ended.latency).collect();
        latencies.sort_by(f64::total_cmp);
        latencies.get(((latencies.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    }

    /// Jain's index of what each key got relative to its fair share: all it requested, or an equal part of the rest.
    fn fairness(&self) -> f64 {
        let mut left: f64 = self.served.iter().sum();
        let mut fair = [0.0; 3];
        let mut keys: Vec<usize> = (0..3).collect();
        keys.sort_by(|one, other| self.requested_work[*one].total_cmp(&self.requested_work[*other]));
        for (index, key) in keys.iter().enumerate() {
            fair[*key] = self.requested_work[*key].min(left / (3 - index) as f64);
            left -= fair[*key];
        }
        let ratios: Vec<f64> = (0..3).filter(|key| fair[*key] > 0.0).map(|key| self.served[key] / fair[key]).collect();
        let (sum, squares): (f64, f64) = (ratios.iter().sum(), ratios.iter().map(|ratio| ratio * ratio).sum());
        sum * sum / (ratios.len() as f64 * squares)
    }

    fn print(&self, name: &str) {
        println!(
            "{name:<46}{:>8.1} %{:>9.2}{:>9.2}{:>9.2}{:>9.2}{:>8.3}",
            100.0 * self.goodput(),
            self.latency(0.5, false),
            self.latency(0.99, false),
            self.latency(0.5, true),
            self.latency(0.99, true),
            self.fairness(),
        );
    }
}

pub(crate) fn heading(text: &str) {
    println!("\n{text}");
    println!("{:<46}{:>10}{:>9}{:>9}{:>9}{:>9}{:>8}", "", "in time", "p50 s", "p99 s", "p50 s", "p99 s", "fair");
    println!("{:<46}{:>10}{:>18}{:>18}{:>8}", "", "", "all", "small", "");
}

const POLICIES: [(&str, Policy); 6] = [
    ("step by step, deadlines known", Policy::Steps { knows_deadlines: true }),
    ("one at a time, late ones dropped", Policy::OneAtATime { drops_late: true }),
    ("equal batches, late ones dropped", Policy::EqualBatches { drops_late: true }),
    ("step by step, deadlines unknown", Policy::Steps { knows_deadlines: false }),
    ("one at a time", Policy::OneAtATime { drops_late: false }),
    ("equal batches", Policy::EqualBatches { drops_late: false }),
];

pub(crate) fn compare(arrivals: &[Job], mut on: impl FnMut(Policy, &[Job]) -> Outcome) {
    let mut outcomes = BTreeMap::new();
    for (index, (name, policy)) in POLICIES.iter().enumerate() {
        let outcome = on(*policy, arrivals);
        outcome.print(name);
        outcomes.insert(index, outcome);
    }
    let ratio = |ours: usize, other: usize| {
        let (ours, other) = (&outcomes[&ours], &outcomes[&other]);
        let small = other.latency(0.99, true) / ours.latency(0.99, true);
        format!("{:.2} times as many in time, small p99 {small:.1} times shorter", ours.goodput() / other.goodput())
    };
    for (ours, kind) in [(0, "deadlines known"), (3, "deadlines unknown")] {
        println!("  {kind}, to one at a time: {}", ratio(ours, 4));
        println!("  {kind}, to equal batches: {}", ratio(ours, 5));
    }
    println!("  deadlines known, to one at a time that drops late ones: {}", ratio(0, 1));
}
