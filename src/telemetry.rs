//! Logs, spans and metrics: setup, and every metric's name and unit, once.
//!
//! Owns the subscriber and the recorder of this process. Must not know what is being served; the functions of [`metrics`]
//! take plain numbers and fixed words. Never receives a key, a body or a prompt.

mod error;
mod format;
mod logs;
pub mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
mod panics;
pub mod pipe;
pub mod process;

pub use error::TelemetryError;
pub use format::LogFormat;
pub use logs::{LAST_LINES_DEADLINE, Logging, start_logs};
