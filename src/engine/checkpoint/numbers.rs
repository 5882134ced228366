//! How a tensor's bytes in a file become numbers, tile by tile. Parts that belong to a tensor, such as the scales of its
//! blocks, are read with the tile.

use std::sync::Arc;

use candle_core::DType;

use super::source::Blob;
use crate::engine::blocks::bitsandbytes::{four_bits, int8, nested_scale};
use crate::engine::blocks::{BlockType, Coding};

/// How a tensor's numbers are stored.
#[derive(Debug, Clone)]
pub(super) enum Numbers {
    Blocks(BlockType),
    /// Each number of the type times one scale.
    Scaled(BlockType, f32),
    FourBits(Arc<FourBits>),
    Int8(Arc<Int8>),
}

/// bitsandbytes' types of four bits.
#[derive(Debug)]
pub(super) struct FourBits {
    pub(super) levels: [f32; 16],
    /// Numbers with one scale.
    pub(super) block: usize,
    pub(super) scales: BlockScales,
}

/// The scales of the blocks.
#[derive(Debug)]
pub(super) enum BlockScales {
    /// f32 in a file, from a byte on.
    Plain(Arc<Blob>, usize),
    Nested(NestedScales),
}

/// Scales that are quantized in blocks of their own.
#[derive(Debug)]
pub(super) struct NestedScales {
    /// Their codes, a byte each, in a file, from a byte on.
    pub(super) file: Arc<Blob>,
    pub(super) start: usize,
    pub(super) levels: Box<[f32; 256]>,
    pub(super) block: usize,
    pub(super) scales: Vec<f32>,
    pub(super) offset: f32,
}

/// bitsandbytes' int8: rows with a scale each.
#[derive(Debug)]
pub(super) struct Int8 {
    pub(super) columns: usize,
    pub(super) scales: Vec<f32>,
}

impl Numbers {
    /// The type of numbers that are stored as they are.
    pub(super) fn plain(&self) -> Option<DType> {
        match self {
            Self::Blocks(BlockType::F32) => Some(DType::F32),
            Self::Blocks(BlockType::F16) => Some(DType::F16),
            Self::Blocks(BlockType::Bf16) => Some(DType::BF16),
            _ => None,
        }
    }

    /// The one scale of numbers that are stored in e4m3.
    pub(super) fn e4m3_scale(&self) -> Option<f32> {
        match self {
            Self::Blocks(BlockType::F8E4M3) => Some(1.0),
            Self::Scaled(BlockType::F8E4M3, scale) => Some(*scale),
            _ => None,
        }
    }

    /// Numbers that are decoded together: reading begins at multiples of this.
    pub(super) fn step(&self) -> usize {
        match self {
            Self::Blocks(kind) | Self::Scaled(kind, _) => kind.numbers(),
            Self::FourBits(_) => 2,
            Self::Int8(_) => 1,
        }
    }

    /// Bytes of so many numbers, a multiple of [`Self::step`] or up to the tensor's end.
    pub(super) fn bytes(&self, count: usize) -> usize {
        match self {
            Self::Blocks(kind) | Self::Scaled(kind, _) => count.div_ceil(kind.numbers()) * kind.bytes(),
            Self::FourBits(_) => count.div_ceil(2),
            Self::Int8(_) => count,
        }
    }

    /// Decodes the numbers from number `first` on, a multiple of [`Self::step`]. `codes` are their bytes.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn decode(&self, codes: &[u8], first: usize, out: &mut [f32]) -> Result<(), String> {
        match self {
            Self::Blocks(kind) => kind.decode(codes, out),
            Self::Scaled(kind, scale) => {
                kind.decode(codes, out);
                for value in out {
                    *value *= scale;
                }
            }
            Self::FourBits(packed) => packed.decode(codes, first, out)?,
            Self::Int8(packed) => packed.decode(codes, first, out),
        }
        Ok(())
    }
}

impl Numbers {
    /// The same with all that belongs to the first `count` numbers in the host's memory.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn resident(&self, count: usize) -> Result<Self, String> {
        match self {
            Self::FourBits(packed) => {
                let FourBits { levels, block, scales } = &**packed;
                let scales = scales.resident(count.div_ceil(*block))?;
                Ok(Self::FourBits(Arc::new(FourBits { levels: *levels, block: *block, scales })))
            }
            Self::Blocks(_) | Self::Scaled(..) | Self::Int8(_) => Ok(self.clone()),
        }
    }

    /// How `count` numbers from number `first` on are coded.
    ///
    /// # Errors
    /// When a file cannot be read, or they do not begin with a block of scales.
    pub(super) fn coding(&self, first: usize, count: usize) -> Result<Coding<'_>, String> {
        match self {
            Self::Blocks(kind) => Ok(Coding::Blocks(*kind, 1.0)),
            Self::Scaled(kind, scale) => Ok(Coding::Blocks(*kind, *scale)),
            Self::FourBits(packed) => {
                let FourBits { levels, block, scales } = &**packed;
                if !first.is_multiple_of(*block) {
                    return Err(format!("number {first} is inside a block of {block}"));
                }
                Ok(Coding::FourBits {
                    levels,
                    block: *block,
                    scales: scales.read(first / block, count.div_ceil(*block))?,
                })
            }
            Self::Int8(packed) => {
                let rows = first / packed.columns..(first + count) / packed.columns;
                let scales = packed.scales.get(rows).ok_or_else(|| "rows without scales".to_owned())?;
                Ok(Coding::Int8 { scales })
            }
        }
    }

    /// Bytes that belong to the first `count` numbers beside their codes, where they are resident.
    pub(super) fn side_bytes(&self, count: usize) -> usize {
        match self {
            Self::Blocks(_) | Self::Scaled(..) => 0,
            Self::FourBits(packed) => {
                let blocks = count.div_ceil(packed.block);
                match &packed.scales {
                    BlockScales::Plain(..) => blocks * size_of::<f32>(),
                    BlockScales::Nested(nested) => blocks + nested.scales.len() * size_of::<f32>(),
                }
            }
            Self::Int8(packed) => packed.scales.len() * size_of::<f32>(),
        }
    }
}

impl FourBits {
    fn decode(&self, codes: &[u8], first: usize, out: &mut [f32]) -> Result<(), String> {
        if out.is_empty() {
            return Ok(());
        }
        let block = first / self.block;
        let scales = self.scales.read(block, (first + out.len() - 1) / self.block - block + 1)?;
        four_bits(codes, &self.levels, (first, self.block), &scales, out);
        Ok(())
    }
}

impl BlockScales {
    /// The scales of the first `count` blocks, in the host's memory.
    fn resident(&self, count: usize) -> Result<Self, String> {
        match self {
            Self::Plain(file, start) => Ok(Self::Plain(Arc::new(file.part(*start, count * size_of::<f32>())?), 0)),
            Self::Nested(nested) => {
                let NestedScales { file, start, levels, block, scales, offset } = nested;
                let file = Arc::new(file.part(*start, count)?);
                let (levels, scales) = (levels.clone(), scales.clone());
                Ok(Self::Nested(NestedScales { file, start: 0, levels, block: *block, scales, offset: *offset }))
            }
        }
    }

    /// The scales of `count` blocks, from block `first` on.
    fn read(&self, first: usize, count: usize) -> Result<Vec<f32>, String> {
        let mut scales = vec![0.0; count];
        match self {
            Self::Plain(file, start) => {
                let mut bytes = vec![0; count * size_of::<f32>()];
                file.read(start + first * size_of::<f32>(), &mut bytes)?;
                BlockType::F32.decode(&bytes, &mut scales);
            }
            Self::Nested(nested) => {
                let mut codes = vec![0; count];
                nested.file.read(nested.start + first, &mut codes)?;
                for (index, (scale, code)) in scales.iter_mut().zip(codes).enumerate() {
                    let outer = nested.scales[(first + index) / nested.block];
                    *scale = nested_scale(code, &nested.levels, outer, nested.offset);
                }
            }
        }
        Ok(scales)
    }
}

impl Int8 {
    fn decode(&self, codes: &[u8], first: usize, out: &mut [f32]) {
        let (mut at, mut codes, mut out) = (first, codes, out);
        while !out.is_empty() {
            let (row, column) = (at / self.columns, at % self.columns);
            let count = (self.columns - column).min(out.len());
            let (now, later) = out.split_at_mut(count);
            int8(&codes[..count], self.scales[row], now);
            (at, codes, out) = (at + count, &codes[count..], later);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(bytes: Vec<u8>) -> Arc<Blob> {
        Arc::new(Blob::made("made", bytes))
    }

    /// Levels that are their own codes.
    fn levels<const COUNT: usize>() -> [f32; COUNT] {
        std::array::from_fn(|level| level as f32)
    }

    #[test]
    fn four_bits_take_the_scales_of_their_blocks_wherever_reading_begins() {
        let scales: Vec<u8> = [1.0_f32, 10.0, 100.0].iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scales = BlockScales::Plain(blob([vec![9; 3], scales].concat()), 3);
        let numbers = Numbers::FourBits(Arc::new(FourBits { levels: levels(), block: 4, scales }));
        let codes = [0x12, 0x34, 0x56, 0x78, 0x9a];
        let expected = [1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0, 80.0, 900.0, 1000.0];
        for first in (0..10).step_by(2) {
            for end in first..=10 {
                let mut out = vec![0.0; end - first];
                numbers.decode(&codes[first / 2..][..numbers.bytes(end - first)], first, &mut out).expect("decodes");
                assert_eq!(out, expected[first..end], "{first}..{end}");
            }
        }
    }

    #[test]
    fn nested_scales_have_blocks_of_their_own() {
        let nested = NestedScales {
            file: blob(vec![0, 1, 2, 3]),
            start: 1,
            levels: Box::new(levels()),
            block: 2,
            scales: vec![10.0, 100.0],
            offset: 0.5,
        };
        let scales = BlockScales::Nested(nested);
        assert_eq!(scales.read(0, 3).expect("reads"), [10.5, 20.5, 300.5]);
        assert_eq!(scales.read(2, 1).expect("reads"), [300.5]);
        assert!(scales.read(2, 2).is_err(), "the file ends");
    }

    #[test]
    fn eight_bits_take_the_scales_of_their_rows_wherever_reading_begins() {
        let numbers = Numbers::Int8(Arc::new(Int8 { columns: 3, scales: vec![127.0, 254.0] }));
        let codes = [1, 2, 0xff, 1, 2, 3];
        let mut all = [0.0; 6];
        numbers.decode(&codes, 0, &mut all).expect("decodes");
        assert_eq!(all, [1.0, 2.0, -1.0, 2.0, 4.0, 6.0]);
        let mut part = [0.0; 3];
        numbers.decode(&codes[2..5], 2, &mut part).expect("decodes");
        assert_eq!(part, all[2..5]);
    }

    #[test]
    fn one_scale_multiplies_every_number() {
        let mut out = [0.0; 2];
        Numbers::Scaled(BlockType::F8E4M3, 0.5).decode(&[0x38, 0xb8], 0, &mut out).expect("decodes");
        assert_eq!(out, [0.5, -0.5]);
    }
}
