//! The administrator's routes, behind a signed-in session. Their bodies are in `wire`.

pub(super) mod api_keys;
pub(super) mod audit;
pub(super) mod jobs;
pub(super) mod kubernetes;
pub(super) mod loras;
pub(super) mod overview;
pub(super) mod playground;
pub(super) mod projects;
pub(super) mod session;
pub(super) mod usage;
pub(super) mod usage_report;
pub(super) mod webhooks;
pub(super) mod wire;
