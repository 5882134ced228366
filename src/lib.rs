//! FLUX image inference as one binary: an engine on candle, a queue that schedules and batches single denoising steps,
//! and API keys in SQLite. ARCHITECTURE.md describes how the modules fit together.

pub mod app;
pub mod auth;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod decode;
pub mod domain;
pub mod encode;
pub mod engine;
pub mod hooks;
pub mod http;
pub mod hub;
pub mod jobs;
pub mod kubernetes;
pub mod loras;
pub mod moderation;
mod outgoing;
pub mod queue;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod uploads;
pub mod usage;
