//! From the signal to the exit: the first SIGINT or SIGTERM asks everybody to finish, the second one ends the process.

use std::io;

use tokio::sync::watch;

/// The exit code of a process that was told twice.
const SECOND_SIGNAL_EXIT_CODE: i32 = 1;

/// Asks everybody who holds the other end to finish.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    /// Asks. Doing it twice is doing it once.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

/// Tells whether, and when, it is time to finish. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Whether it is time to finish.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is time to finish.
    pub async fn requested(&self) {
        if self.0.clone().wait_for(|requested| *requested).await.is_err() {
            // The trigger is gone without having asked: nobody ever will.
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

/// A shutdown that the process's signals request.
///
/// # Errors
/// When the system does not let signals be caught.
pub fn on_signals() -> io::Result<Shutdown> {
    let (trigger, shutdown) = channel();
    let mut signals = Signals::catch()?;
    tokio::spawn(async move {
        let name = signals.next().await;
        tracing::info!("{name}: finishing what has been accepted; a second signal ends at once");
        trigger.request();
        let name = signals.next().await;
        tracing::warn!("{name} again: ending at once");
        std::process::exit(SECOND_SIGNAL_EXIT_CODE);
    });
    Ok(shutdown)
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn catch() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
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
    async fn everybody_hears_of_it_also_those_who_come_late() {
        let (trigger, shutdown) = channel();
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.requested().await }
        });
        assert!(!shutdown.is_requested());
        trigger.request();
        trigger.request();
        waiting.await.expect("heard");
        drop(trigger);
        shutdown.clone().requested().await;
        assert!(shutdown.is_requested());
    }

    #[tokio::test]
    async fn a_lost_trigger_is_no_request() {
        let (trigger, shutdown) = channel();
        drop(trigger);
        let outcome = tokio::time::timeout(Duration::from_millis(20), shutdown.requested()).await;
        assert!(outcome.is_err() && !shutdown.is_requested());
    }
}
