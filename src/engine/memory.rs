//! What fits in a device's memory. `plan.rs` is the arithmetic, `budget.rs` asks the device.
//!
//! Must not know file formats, or how a layer computes.

mod budget;
mod plan;

pub(crate) use budget::{Room, arrangements_within, plan_for, plan_within, room_for};
pub use plan::TooLarge;
