//! The routes for clients, one file for each resource.

pub(super) mod catalog;
pub(super) mod events;
pub(super) mod exec_credential;
mod fair_semaphore;
pub(super) mod health;
pub(super) mod inference;
pub(super) mod input_images;
pub(super) mod jobs;
pub(super) mod loras;
pub(super) mod openai;
pub(super) mod sdapi;
pub(super) mod uploads;
pub(super) mod wanted_cache;
pub(super) mod wanted_images;
pub(super) mod wanted_loras;
pub(super) mod webhooks;
pub(super) mod write_check;
