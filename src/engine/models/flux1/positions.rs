//! The positions of FLUX.1's tokens, as rotary tables. Text tokens stand at position zero on all axes.

use candle_core::{Device, Result};

use crate::engine::ops::rope::Rotary;

/// Base of the rotary frequencies.
const THETA: f64 = 10_000.0;

/// The tables of one image's tokens, row by row. `axes` are the head's dimensions given to (time, row, column); time is zero.
///
/// # Errors
/// When the device is out of memory.
pub(super) fn image_tables(rows: usize, columns: usize, axes: [usize; 3], device: &Device) -> Result<Rotary> {
    let positions = (0..rows).flat_map(|row| (0..columns).map(move |column| [0, row, column]));
    Rotary::at(positions, axes, THETA, device)
}
