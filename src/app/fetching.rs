//! Progress of a download as lines, for logs and for terminals without progress bars.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::hub::Progress;

/// Interval of the lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Progress of a download, as lines of text.
pub struct ProgressLines<F> {
    write: F,
    state: Mutex<State>,
}

struct State {
    files: usize,
    files_ended: usize,
    bytes: u64,
    bytes_here: u64,
    /// Start of the transfers, for the rate.
    since: Instant,
    bytes_fetched: u64,
    written_at: Instant,
    /// Received bytes of each file in transfer.
    open: BTreeMap<String, u64>,
}

impl<F: Fn(&str) + Send + Sync> ProgressLines<F> {
    /// Passes each line to `write`.
    pub fn new(write: F) -> Self {
        let now = Instant::now();
        let state = State {
            files: 0,
            files_ended: 0,
            bytes: 0,
            bytes_here: 0,
            since: now,
            bytes_fetched: 0,
            written_at: now,
            open: BTreeMap::new(),
        };
        Self { write, state: Mutex::new(state) }
    }

    fn change(&self, change: impl FnOnce(&mut State) -> Option<String>) {
        // Written without the lock: it may be slow.
        let line = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(line) = line {
            (self.write)(&line);
        }
    }
}

impl State {
    fn summary(&self) -> String {
        let rate = self.bytes_fetched as f64 / self.since.elapsed().as_secs_f64().max(0.001);
        let left = (self.bytes - self.bytes_here.min(self.bytes)) as f64 / rate.max(1.0);
        let (here, all) = (size(self.bytes_here), size(self.bytes));
        format!("{here} of {all}, {}/s, {} left", size(rate as u64), duration(left as u64))
    }
}

impl<F: Fn(&str) + Send + Sync> Progress for ProgressLines<F> {
    fn chosen(&self, path: &str, bytes: u64) {
        self.change(|_| Some(format!("`{path}`, {}", size(bytes))));
    }

    fn planned(&self, files: usize, bytes: u64, bytes_here: u64) {
        self.change(|state| {
            (state.files, state.bytes, state.bytes_here) = (files, bytes, bytes_here);
            // Another download may have gone before.
            (state.since, state.bytes_fetched, state.files_ended) = (Instant::now(), 0, 0);
            let noun = if files == 1 { "file" } else { "files" };
            Some(format!("{files} {noun}, {} in total, {} present already", size(bytes), size(bytes_here)))
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
            if state.written_at.elapsed() < INTERVAL {
                return None;
            }
            state.written_at = Instant::now();
            Some(state.summary())
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
            Some(format!("`{path}` is complete and verified, {}", size(bytes)))
        });
    }

    fn waiting(&self, reason: &str, wait: Duration) {
        self.change(|_| Some(format!("{reason}; retrying in {} s", wait.as_secs_f64().ceil())));
    }
}

/// A number of bytes with its unit.
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
    fn the_lines_add_up() {
        let lines = Mutex::new(Vec::new());
        let progress = ProgressLines::new(|line: &str| lines.lock().expect("no panic").push(line.to_owned()));
        progress.chosen("vae/config.json", 2 << 20);
        progress.planned(2, 3 << 20, 1 << 20);
        progress.begun("vae/config.json", 2 << 20, 0);
        progress.received("vae/config.json", 2 << 20);
        progress.ended("vae/config.json");
        progress.waiting("the hub limits the rate of requests", Duration::from_millis(1500));
        drop(progress);
        let expected = [
            "`vae/config.json`, 2.0 MiB",
            "2 files, 3.0 MiB in total, 1.0 MiB present already",
            "`vae/config.json` is complete and verified, 2.0 MiB",
            "the hub limits the rate of requests; retrying in 2 s",
        ];
        assert_eq!(lines.into_inner().expect("no panic"), expected);
        assert_eq!((size(999), duration(61), duration(5400)), ("999 B".into(), "2 min".into(), "1.5 h".into()));
    }
}
