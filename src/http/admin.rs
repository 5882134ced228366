//! The routes for the administrator, behind a signed-in session. What goes over the wire stands in `wire`.

pub(super) mod api_keys;
pub(super) mod audit;
pub(super) mod jobs;
pub(super) mod kubernetes;
pub(super) mod overview;
pub(super) mod playground;
pub(super) mod session;
pub(super) mod usage;
pub(super) mod wire;
