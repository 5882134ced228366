//! The limit of file sizes (`ulimit -f`): a write beyond it becomes an error instead of ending the process.

/// The signal's number, the same on Linux, macOS and the BSDs.
#[cfg(unix)]
const SIGXFSZ: i32 = 25;

/// Makes a write beyond the file size limit fail, like one to a full disk, instead of ending the process: database and
/// images handle failures.
///
/// # Panics
/// Outside a tokio runtime.
pub fn outlive_file_size_limit() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // A handler once installed stays; the stream is not needed.
        if let Err(error) = signal(SignalKind::from_raw(SIGXFSZ)) {
            tracing::warn!(%error, "SIGXFSZ cannot be caught: a file beyond its size limit would end the process");
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use super::*;

    const LIMITED: &str = "FLUXSERVE_TEST_HAS_FILE_LIMIT";

    /// Runs in a process of its own, with a limit that the test below sets.
    #[tokio::test]
    async fn in_a_limited_process() {
        if std::env::var_os(LIMITED).is_none() {
            return;
        }
        outlive_file_size_limit();
        let mut file = tempfile::tempfile().expect("a file");
        let failure = (0..1024).find_map(|_| file.write_all(&vec![0; 65_536]).err()).expect("there is a limit");
        assert_eq!(failure.kind(), std::io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_file_that_grows_beyond_its_limit_does_not_end_the_process() {
        let itself = std::env::current_exe().expect("this program");
        let test = concat!(module_path!(), "::in_a_limited_process");
        let (_, test) = test.split_once("::").expect("the crate's name comes first");
        let outcome = Command::new("sh")
            .args(["-c", "ulimit -f 400; exec \"$0\" --exact \"$1\""])
            .arg(itself)
            .arg(test)
            .env(LIMITED, "1")
            .output()
            .expect("runs");
        let told = String::from_utf8_lossy(&outcome.stdout);
        assert!(outcome.status.success() && told.contains("1 passed"), "{}: {told}", outcome.status);
    }
}
