//! What fits in a device's memory. `plan.rs` and `autoencoder.rs` are the arithmetic, `budget.rs` asks the device.
//!
//! Must not know file formats, or how a layer computes.

mod autoencoder;
mod budget;
mod plan;
mod usage;

#[cfg(test)]
pub(crate) use autoencoder::HostDecoding;
pub(crate) use budget::{Room, arrangements_within, plan_for, plan_within, room_for};
pub(crate) use plan::PixelLimits;
pub use plan::TooLarge;
#[cfg(test)]
pub(crate) use plan::token_bytes;
pub(crate) use usage::MemoryUse;
