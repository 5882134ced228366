//! Bodies of the management routes, one file for each resource.

pub(in crate::http) mod audit;
pub(in crate::http) mod budget;
pub(in crate::http) mod job;
pub(in crate::http) mod key;
pub(in crate::http) mod kubernetes;
mod limits;
pub(in crate::http) mod lora;
pub(in crate::http) mod overview;
pub(in crate::http) mod project;
pub(in crate::http) mod session;
pub(in crate::http) mod usage;
pub(in crate::http) mod usage_report;
pub(in crate::http) mod webhook;
