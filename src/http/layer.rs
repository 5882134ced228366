//! Layers around every request: its id, its log line, its deadline, the handling of panics.

pub(super) mod access_log;
pub(super) mod client_address;
pub(super) mod cors;
pub(super) mod deadline;
pub(super) mod host;
pub(super) mod management;
pub(super) mod panic;
pub(super) mod request_id;
pub(super) mod spare;
