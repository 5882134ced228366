//! How far a download is, told in lines: for logs, and for people whose terminal draws no bars.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::hub::Progress;

/// How often is told how far it is.
const INTERVAL: Duration = Duration::from_secs(10);

/// Tells a line now and then.
pub struct Told<F> {
    tell: F,
    state: Mutex<State>,
}

struct State {
    files: usize,
    files_ended: usize,
    bytes: u64,
    bytes_here: u64,
    /// What was fetched since, for the rate.
    since: Instant,
    bytes_fetched: u64,
    told_at: Instant,
    /// What is here of each file that is being fetched.
    open: BTreeMap<String, u64>,
}

impl<F: Fn(&str) + Send + Sync> Told<F> {
    /// Tells its lines to `tell`.
    pub fn new(tell: F) -> Self {
        let now = Instant::now();
        let state = State {
            files: 0,
            files_ended: 0,
            bytes: 0,
            bytes_here: 0,
            since: now,
            bytes_fetched: 0,
            told_at: now,
            open: BTreeMap::new(),
        };
        Self { tell, state: Mutex::new(state) }
    }

    fn change(&self, change: impl FnOnce(&mut State) -> Option<String>) {
        // Told without the lock: who listens may be slow.
        let line = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(line) = line {
            (self.tell)(&line);
        }
    }
}

impl State {
    fn how_far(&self) -> String {
        let rate = self.bytes_fetched as f64 / self.since.elapsed().as_secs_f64().max(0.001);
        let left = (self.bytes - self.bytes_here.min(self.bytes)) as f64 / rate.max(1.0);
        let (here, all) = (size(self.bytes_here), size(self.bytes));
        format!("{here} of {all} are here, {} a second, {} to go", size(rate as u64), duration(left as u64))
    }
}

impl<F: Fn(&str) + Send + Sync> Progress for Told<F> {
    fn planned(&self, files: usize, bytes: u64, bytes_here: u64) {
        self.change(|state| {
            (state.files, state.bytes, state.bytes_here) = (files, bytes, bytes_here);
            state.since = Instant::now();
            Some(format!("{files} files, {} in all, {} of it here already", size(bytes), size(bytes_here)))
        });
    }

    fn begun(&self, path: &str, _: u64, bytes_here: u64) {
        self.change(|state| {
            state.open.insert(path.to_owned(), bytes_here);
            None
        });
    }

    fn received(&self, path: &str, bytes: u64) {
        self.change(|state| {
            state.bytes_here += bytes;
            state.bytes_fetched += bytes;
            if let Some(open) = state.open.get_mut(path) {
                *open += bytes;
            }
            if state.told_at.elapsed() < INTERVAL {
                return None;
            }
            state.told_at = Instant::now();
            Some(state.how_far())
        });
    }

    fn lost(&self, path: &str, bytes: u64) {
        self.change(|state| {
            state.bytes_here = state.bytes_here.saturating_sub(bytes);
            state.open.insert(path.to_owned(), 0);
            None
        });
    }

    fn ended(&self, path: &str) {
        self.change(|state| {
            state.files_ended += 1;
            let bytes = state.open.remove(path).unwrap_or_default();
            Some(format!("`{path}` is here and compared, {}", size(bytes)))
        });
    }

    fn waiting(&self, reason: &str, wait: Duration) {
        self.change(|_| Some(format!("{reason}; asking again in {} s", wait.as_secs_f64().ceil())));
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_adds_up() {
        let lines = Mutex::new(Vec::new());
        let told = Told::new(|line: &str| lines.lock().expect("no panic").push(line.to_owned()));
        told.planned(2, 3 << 20, 1 << 20);
        told.begun("vae/config.json", 2 << 20, 0);
        told.received("vae/config.json", 2 << 20);
        told.ended("vae/config.json");
        told.waiting("the hub is asked too often", Duration::from_millis(1500));
        drop(told);
        let expected = [
            "2 files, 3.0 MiB in all, 1.0 MiB of it here already",
            "`vae/config.json` is here and compared, 2.0 MiB",
            "the hub is asked too often; asking again in 2 s",
        ];
        assert_eq!(lines.into_inner().expect("no panic"), expected);
        assert_eq!((size(999), duration(61), duration(5400)), ("999 B".into(), "2 min".into(), "1.5 h".into()));
    }
}
