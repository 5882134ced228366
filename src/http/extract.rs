//! From the request's parts to what handlers work with; whatever is wrong with a part is refused here.

pub(super) mod administrator;
pub(super) mod body;
pub(super) mod caller;
pub(super) mod idempotency;
pub(super) mod json;
pub(super) mod path;
pub(super) mod preferences;
pub(super) mod query;
pub(super) mod watching;
