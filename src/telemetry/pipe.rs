//! Standard error and standard output, each written by a thread of its own.
//!
//! Their reader may stop reading: a terminal in scroll mode, a collector that hangs. Then a write blocks forever, and no
//! request may wait for that. So lines go into a bounded buffer; what does not fit is dropped and counted. Not
//! `tracing-appender`: at its end it writes to the same blocked standard error.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::metrics;

/// Size of the buffer: some thousand lines, for a reader that stalls for a moment.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// Time between two checks whether everything is written.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Time between two checks of an idle thread whether any writer is left.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// A writer that never blocks. Clones write to the same target, in order.
#[derive(Debug, Clone)]
pub struct Pipe(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// Whether something was taken out and is not written yet.
    is_writing: bool,
    dropped: u64,
    /// Why the last write failed, if it did.
    failure: Option<io::ErrorKind>,
}

/// State of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is written.
    All,
    /// It is not written yet.
    NotYet,
    /// The last write failed: the reader is gone.
    Failed(io::ErrorKind),
}

impl Pipe {
    /// Starts the thread that writes to `target`. It ends with the process, or with the last of the clones.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(name: &str, target: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let pipe = Self(Arc::clone(&shared));
        let writing = Arc::downgrade(&shared);
        drop(shared);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut target = target;
            while let Some(shared) = writing.upgrade() {
                shared.write_next(&mut target);
            }
        })?;
        Ok(pipe)
    }

    /// Queues `bytes` to be written. Returns `false` if they do not fit and are dropped.
    pub fn send(&self, bytes: &[u8]) -> bool {
        let mut state = self.0.lock();
        if state.waiting_bytes + bytes.len() > WAITING_BYTES_MAX {
            state.dropped += 1;
            return false;
        }
        state.waiting_bytes += bytes.len();
        state.waiting.push_back(bytes.to_vec());
        self.0.changed.notify_all();
        true
    }

    /// Number of writes that were dropped or failed.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }

    /// State of what was sent.
    #[must_use]
    pub fn written(&self) -> Written {
        self.0.lock().written()
    }

    /// Waits until everything is written or has failed.
    pub async fn settled(&self) -> Written {
        loop {
            match self.written() {
                Written::NotYet => tokio::time::sleep(CHECK_INTERVAL).await,
                written => return written,
            }
        }
    }

    /// Like [`Pipe::settled`], blocking, and for `longest` at most: nothing may ever read.
    pub fn flush(&self, longest: Duration) -> Written {
        let is_not_yet = |state: &mut State| state.written() == Written::NotYet;
        let waited = self.0.changed.wait_timeout_while(self.0.lock(), longest, is_not_yet);
        waited.unwrap_or_else(PoisonError::into_inner).0.written()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the next item, or waits a while for it.
    fn write_next(&self, target: &mut impl Write) {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            // Not forever: the last writer may be gone.
            let waited = self.changed.wait_timeout_while(state, IDLE_CHECK, |state| state.waiting.is_empty());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(bytes) = state.waiting.pop_front() else { return };
        state.waiting_bytes -= bytes.len();
        state.is_writing = true;
        drop(state);
        let outcome = target.write_all(&bytes).and_then(|()| target.flush());
        let mut state = self.lock();
        state.is_writing = false;
        state.failure = outcome.err().map(|error| error.kind());
        state.dropped += u64::from(state.failure.is_some());
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    fn written(&self) -> Written {
        match self.failure {
            _ if self.is_writing || !self.waiting.is_empty() => Written::NotYet,
            Some(kind) => Written::Failed(kind),
            None => Written::All,
        }
    }
}

/// Writer of a line of the log.
#[derive(Debug)]
pub struct LogLine<'a>(&'a Pipe);

impl Write for LogLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.0.send(bytes) {
            metrics::log_lines_dropped(self.0.dropped());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Pipe {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LogLine(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Blocks until it is released.
    struct Stuck(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Returns at once after the release.
            let _ = self.0.recv();
            self.1.lock().expect("sound").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn writers_never_wait_for_the_reader() {
        let (reads, stuck) = mpsc::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let pipe = Pipe::start("test", Stuck(stuck, Arc::clone(&seen))).expect("a thread");
        let line = [b'x'; 1024];
        let started = Instant::now();
        let taken = (0..5000).filter(|_| pipe.send(&line)).count();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        // One line may have been taken out to be written.
        assert!((1024..=1025).contains(&taken), "{taken}");
        assert_eq!(pipe.dropped(), 5000 - taken as u64);
        assert_eq!(pipe.flush(Duration::from_millis(20)), Written::NotYet);
        drop(reads);
        assert_eq!(pipe.flush(Duration::from_secs(30)), Written::All);
        assert_eq!(seen.lock().expect("sound").len(), taken * line.len(), "accepted lines are written");
    }

    #[test]
    fn a_lost_reader_is_reported_and_may_come_back() {
        struct Flaky(u32);
        impl Write for Flaky {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 == 1 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let pipe = Pipe::start("test", Flaky(0)).expect("a thread");
        pipe.send(b"first");
        assert_eq!(pipe.flush(Duration::from_secs(30)), Written::Failed(io::ErrorKind::BrokenPipe));
        pipe.send(b"second");
        assert_eq!(pipe.flush(Duration::from_secs(30)), Written::All);
        assert_eq!(pipe.dropped(), 1);
    }
}
