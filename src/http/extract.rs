//! Extractors: turn the parts of a request into what handlers work with, and refuse invalid parts.

pub(super) mod administrator;
pub(super) mod body;
pub(super) mod caller;
pub(super) mod form;
pub(super) mod idempotency;
pub(super) mod image_upload;
pub(super) mod json;
mod multipart;
pub(super) mod path;
pub(super) mod preferences;
pub(super) mod query;
pub(super) mod upload;
pub(super) mod watching;
