//! What happens around every request: its id, its line in the log, its deadline, and what becomes of a panic.

pub(super) mod access_log;
pub(super) mod client_address;
pub(super) mod cors;
pub(super) mod deadline;
pub(super) mod host;
pub(super) mod management;
pub(super) mod panic;
pub(super) mod request_id;
pub(super) mod spare;
