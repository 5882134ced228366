//! FLUX image inference as one binary: an engine on candle that schedules single denoising steps, a batching queue,
//! and API keys in SQLite. ARCHITECTURE.md tells how the modules hang together.

pub mod app;
pub mod auth;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod decode;
pub mod domain;
pub mod encode;
pub mod engine;
pub mod http;
pub mod hub;
pub mod jobs;
pub mod kubernetes;
pub mod queue;
pub mod shutdown;
pub mod store;
pub mod telemetry;
