//! Rows of quantized weights on a device.

use candle_core::{Device, Result, Tensor, bail};

use crate::engine::blocks::bitsandbytes::{four_bits, int8};
use crate::engine::blocks::{BlockType, Coding};
use crate::engine::ops::CHUNK;

/// Rows of one coding, as they are stored.
#[derive(Debug)]
pub(crate) struct PackedRows {
    /// `[bytes]`, u8.
    pub(in crate::engine::ops) codes: Tensor,
    pub(in crate::engine::ops) rows: usize,
    pub(in crate::engine::ops) columns: usize,
    pub(in crate::engine::ops) coding: DeviceCoding,
}

/// [`Coding`] with its numbers on the device, f32.
#[derive(Debug)]
pub(in crate::engine::ops) enum DeviceCoding {
    Blocks(BlockType, f32),
    /// `levels [16]`, `scales [blocks]`.
    FourBits {
        levels: Tensor,
        block: usize,
        scales: Tensor,
    },
    /// `scales [rows]`.
    Int8 {
        scales: Tensor,
    },
}

impl PackedRows {
    /// Copies rows to a device.
    ///
    /// # Errors
    /// When their lengths do not fit, a row is no multiple of eight numbers, or the device is out of memory.
    pub(crate) fn new(codes: &[u8], [rows, columns]: [usize; 2], coding: Coding, device: &Device) -> Result<Self> {
        let count = rows * columns;
        if !columns.is_multiple_of(CHUNK) || codes.len() != coding.bytes(count) {
            bail!("{} bytes for {rows} rows of {columns} numbers, or not in chunks of {CHUNK}", codes.len());
        }
        let on_device = |numbers: &[f32]| Tensor::new(numbers, device);
        let coding = match coding {
            Coding::Blocks(kind, _) if !count.is_multiple_of(kind.numbers()) => {
                bail!("{rows} rows of {columns} numbers are no whole blocks of {kind:?}")
            }
            Coding::Blocks(kind, scale) => DeviceCoding::Blocks(kind, scale),
            Coding::FourBits { block, scales, .. } if !block.is_multiple_of(CHUNK) || scales.len() * block < count => {
                bail!("{} scales of blocks of {block} for {count} numbers", scales.len())
            }
            Coding::FourBits { levels, block, scales } => {
                DeviceCoding::FourBits { levels: on_device(levels)?, block, scales: on_device(&scales)? }
            }
            Coding::Int8 { scales } if scales.len() != rows => bail!("{} scales for {rows} rows", scales.len()),
            Coding::Int8 { scales } => DeviceCoding::Int8 { scales: on_device(scales)? },
        };
        Ok(Self { codes: Tensor::new(codes, device)?, rows, columns, coding })
    }

    /// How many rows these are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
}

impl PackedRows {
    /// Writes the numbers, of codes on the CPU.
    pub(super) fn expand_on_cpu(&self, out: &mut [f32]) -> Result<()> {
        let codes = self.codes.to_vec1::<u8>()?;
        match &self.coding {
            DeviceCoding::Blocks(kind, scale) => {
                kind.decode(&codes, out);
                for number in out {
                    *number *= scale;
                }
            }
            DeviceCoding::FourBits { levels, block, scales } => {
                let (levels, scales) = (levels.to_vec1::<f32>()?, scales.to_vec1::<f32>()?);
                let Some(levels) = levels.first_chunk() else { bail!("{} levels of four bits", levels.len()) };
                four_bits(&codes, levels, (0, *block), &scales, out);
            }
            DeviceCoding::Int8 { scales } => {
                let rows = codes.chunks_exact(self.columns).zip(out.chunks_exact_mut(self.columns));
                for ((codes, out), scale) in rows.zip(scales.to_vec1::<f32>()?) {
                    int8(codes, scale, out);
                }
            }
        }
        Ok(())
    }
}
