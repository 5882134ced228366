//! The types every other module shares: ids, a valid request, a model's card, a key's scope, a job's life, and the
//! [`engine::StepEngine`] trait between queue and device.
//!
//! Knows nothing of tokio, axum, sqlx or candle, and imports no other module of this crate.

pub mod adapter;
pub mod budget;
pub mod byte_size;
pub mod clock;
pub mod conditioning;
pub mod conversion;
pub mod device;
pub mod engine;
pub mod format;
pub mod hub_token;
pub mod ids;
pub mod image;
pub mod image_size;
pub mod job;
pub mod limits;
pub mod model;
pub mod model_source;
pub mod money;
pub mod month;
pub mod namespace;
pub mod networks;
pub mod operation_group;
pub mod overlay;
pub mod owner_counts;
pub mod pace;
pub mod password;
pub mod precision;
pub mod priority;
pub mod provenance;
pub mod rates;
pub mod recent;
pub mod review;
pub mod scope;
pub mod shared_secret;
pub mod spec;
pub mod step_cache;
pub mod usage;
pub mod webhook;
pub mod weight_storage;
