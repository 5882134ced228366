//! The routes for clients, one file for each thing they work with.

pub(super) mod catalog;
pub(super) mod events;
pub(super) mod exec_credential;
pub(super) mod health;
pub(super) mod inference;
pub(super) mod input_images;
pub(super) mod jobs;
pub(super) mod openai;
mod turns;
