//! Shutdown by signals: the first SIGINT, SIGTERM or SIGHUP requests a graceful shutdown, the second one ends the
//! process.
//!
//! A signal takes effect before it is logged: the log may be blocked.

mod file_size;

use std::io;
use std::time::Duration;

pub use file_size::outlive_file_size_limit;
use tokio::sync::watch;

/// The exit code after a second signal.
const SECOND_SIGNAL_EXIT_CODE: i32 = 1;
/// Time for the log line about it.
const LAST_WORD: Duration = Duration::from_millis(100);

/// Requests the shutdown from all holders of the other end.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    /// Requests the shutdown. Idempotent.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

/// Tells whether shutdown is requested, and waits for it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Whether shutdown is requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when shutdown is requested.
    pub async fn requested(&self) {
        if self.0.clone().wait_for(|requested| *requested).await.is_err() {
            // The trigger was dropped without a request: there will be none.
            std::future::pending::<()>().await;
        }
    }
}

/// The two ends.
#[must_use]
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

/// A shutdown that is requested by the process's signals.
///
/// # Errors
/// When the signals cannot be caught.
pub fn on_signals() -> io::Result<Shutdown> {
    let (trigger, shutdown) = channel();
    let mut signals = Signals::catch()?;
    tokio::spawn(async move {
        let name = signals.next().await;
        trigger.request();
        tracing::info!("{name}: finishing accepted jobs; a second signal ends the process at once");
        let name = signals.next().await;
        let exit = || std::process::exit(SECOND_SIGNAL_EXIT_CODE);
        let exits = std::thread::Builder::new().name("exit".into()).spawn(move || {
            std::thread::sleep(LAST_WORD);
            exit();
        });
        if exits.is_err() {
            exit();
        }
        tracing::warn!("{name} again: ending at once");
    });
    Ok(shutdown)
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// The terminal was closed. `None` if the process was started to survive that (`nohup`).
    hangup: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    fn catch() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let hangup = SignalKind::hangup();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if is_ignored(hangup.as_raw_value()) { None } else { Some(signal(hangup)?) },
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            () = received(&mut self.hangup) => "SIGHUP",
        }
    }
}

#[cfg(unix)]
async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether the process was started with a signal ignored, if the system reports it (Linux).
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| is_ignored_by(&status, signal))
}

#[cfg(unix)]
fn is_ignored_by(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn catch() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) -> &'static str {
        self.0.recv().await;
        "Ctrl-C"
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn early_and_late_waiters_are_notified() {
        let (trigger, shutdown) = channel();
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.requested().await }
        });
        assert!(!shutdown.is_requested());
        trigger.request();
        trigger.request();
        waiting.await.expect("notified");
        drop(trigger);
        shutdown.clone().requested().await;
        assert!(shutdown.is_requested());
    }

    #[cfg(unix)]
    #[test]
    fn an_inherited_ignored_signal_is_detected() {
        let status = "Name:\tfluxserve\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored_by(status, 1) && is_ignored_by(status, 13));
        assert!(!is_ignored_by(status, 2) && !is_ignored_by(status, 15) && !is_ignored_by("", 1));
    }

    #[tokio::test]
    async fn a_dropped_trigger_is_no_request() {
        let (trigger, shutdown) = channel();
        drop(trigger);
        let outcome = tokio::time::timeout(Duration::from_millis(20), shutdown.requested()).await;
        assert!(outcome.is_err() && !shutdown.is_requested());
    }
}
