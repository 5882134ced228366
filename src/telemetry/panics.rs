//! Logging of panics. The standard library writes them to standard error and blocks while nothing reads it. That would block
//! an engine's thread, which a caught panic must not stop.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::thread;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::format::LogFormat;
use super::pipe::Pipe;

/// Logs panics of all threads, whatever the log's filter.
pub(super) fn log_to(pipe: Pipe, format: LogFormat) {
    std::panic::set_hook(Box::new(move |panic| {
        // The pipe counts dropped lines.
        let _ = pipe.send(line(panic, format).as_bytes());
    }));
}

fn line(panic: &PanicHookInfo<'_>, format: LogFormat) -> String {
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let message = panic.payload_as_str().unwrap_or("no message");
    let thread = thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    match format {
        LogFormat::Text => {
            let backtrace = backtrace.map(|backtrace| format!("\n{backtrace}")).unwrap_or_default();
            format!("thread '{thread}' panicked at {place}: {message}{backtrace}\n")
        }
        LogFormat::Json => {
            let timestamp = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
            let fields = serde_json::json!({
                "timestamp": timestamp, "level": "ERROR", "message": "panicked", "place": place, "panic": message,
                "thread": thread, "backtrace": backtrace,
            });
            format!("{fields}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("sound").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_written_to_the_log() {
        let kept = Kept::default();
        let pipe = Pipe::start("test", kept.clone()).expect("a thread");
        let before = std::panic::take_hook();
        log_to(pipe.clone(), LogFormat::Json);
        let ended =
            thread::Builder::new().name("lost".into()).spawn(|| panic!("of this test")).map(thread::JoinHandle::join);
        std::panic::set_hook(before);
        assert!(ended.expect("a thread").is_err());
        let _ = pipe.flush(std::time::Duration::from_secs(30));
        let text = String::from_utf8(kept.0.lock().expect("sound").clone()).expect("text");
        // Other tests may panic on purpose at the same time.
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let ours = lines.filter(|line| line["panic"] == "of this test").collect::<Vec<_>>();
        assert_eq!(ours.len(), 1, "{text}");
        assert_eq!(ours[0]["thread"], "lost");
        assert!(ours[0]["place"].as_str().is_some_and(|place| place.contains("panics.rs")), "{text}");
    }
}
