//! How one tensor is read: which bytes of which files, in which order, as numbers of which type.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use half::vec::HalfBitsVecExt as _;
use half::{bf16, f16};
use rayon::prelude::*;

use super::numbers::Numbers;
use super::source::{Blob, PIECE_BYTES};
use super::values::{Plain, bytes_of, convert};

/// Bytes that are read at a time where they are converted: few enough for a core's own cache.
const CONVERTED_BYTES: usize = 256 << 10;

/// Numbers that are decoded at a time, a multiple of every block.
const DECODED_NUMBERS: usize = 32 << 10;

/// Consecutive numbers of a tensor in a file.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) file: Arc<Blob>,
    /// Where the tensor begins in the file.
    pub(super) start: usize,
    /// How many of its numbers come before these.
    pub(super) skipped: usize,
    /// How many these are.
    pub(super) count: usize,
    /// How they are stored.
    pub(super) numbers: Numbers,
}

impl Segment {
    /// Bytes that are read for it.
    fn file_bytes(&self) -> usize {
        self.numbers.bytes(self.count)
    }

    /// Reads the numbers from number `first` on into `out`, as numbers of type `dtype`.
    fn read(&self, first: usize, dtype: DType, out: &mut [u8]) -> std::result::Result<(), String> {
        match self.numbers.plain() {
            _ if dtype == DType::U8 => self.file.read(self.start + self.skipped + first, out),
            Some(plain) => self.read_plain(plain, first, dtype, out),
            None => self.read_decoded(first, dtype, out),
        }
    }

    /// Reads the numbers from number `first` on.
    fn expand(&self, first: usize, out: &mut [f32]) -> std::result::Result<(), String> {
        let (at, step) = (self.skipped + first, self.numbers.step());
        let are_whole = at.is_multiple_of(step) && out.len().is_multiple_of(step);
        let bytes = self.numbers.bytes(out.len());
        match self.file.slice(self.start + self.numbers.bytes(at - at % step), bytes) {
            Some(codes) if are_whole => self.numbers.decode(codes, at, out),
            _ => self.read(first, DType::F32, bytes_of(out)),
        }
    }

    fn read_plain(&self, plain: DType, first: usize, dtype: DType, out: &mut [u8]) -> std::result::Result<(), String> {
        let (from, to) = (plain.size_in_bytes(), dtype.size_in_bytes());
        let start = self.start + (self.skipped + first) * from;
        if plain == dtype {
            return self.file.read(start, out);
        }
        let count = CONVERTED_BYTES / from;
        let mut bytes = vec![0; CONVERTED_BYTES.min(out.len() / to * from)];
        for (index, out) in out.chunks_mut(count * to).enumerate() {
            let bytes = &mut bytes[..out.len() / to * from];
            self.file.read(start + index * count * from, bytes)?;
            convert(plain, bytes, dtype, out);
        }
        Ok(())
    }

    /// Decodes whole blocks, also those of which only a part is wanted.
    fn read_decoded(&self, first: usize, dtype: DType, out: &mut [u8]) -> std::result::Result<(), String> {
        let (width, step) = (dtype.size_in_bytes(), self.numbers.step());
        let (mut at, mut left) = (self.skipped + first, out);
        let tile = (left.len() / width + step).next_multiple_of(step).min(DECODED_NUMBERS);
        let (mut codes, mut values) = (vec![0; self.numbers.bytes(tile)], vec![0.0_f32; tile]);
        while !left.is_empty() {
            let begin = at - at % step;
            let wanted = (left.len() / width).min(begin + tile - at);
            let count = (at + wanted).next_multiple_of(step) - begin;
            let (codes, values) = (&mut codes[..self.numbers.bytes(count)], &mut values[..count]);
            self.file.read(self.start + self.numbers.bytes(begin), codes)?;
            self.numbers.decode(codes, begin, values)?;
            let (now, later) = left.split_at_mut(wanted * width);
            convert(DType::F32, bytes_of(&mut values[at - begin..at - begin + wanted]), dtype, now);
            (at, left) = (at + wanted, later);
        }
        Ok(())
    }
}

/// A tensor that can be read: its segments one after the other.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) segments: Vec<Segment>,
    /// The type to read it as: BF16, F16 or F32. U8 for the codes of numbers that take a byte each, as they are.
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
}

impl Recipe {
    /// The tensor's size in memory.
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_in_bytes()
    }

    /// Bytes that are read for it.
    pub(super) fn file_bytes(&self) -> usize {
        self.segments.iter().map(Segment::file_bytes).sum()
    }

    /// Its size in memory as it is stored.
    pub(super) fn stored_bytes(&self) -> usize {
        self.segments.iter().map(|part| part.file_bytes() + part.numbers.side_bytes(part.count)).sum()
    }

    /// The scale of each row of a matrix in e4m3, of which every tensor in the files has one scale. `None` for any other tensor.
    pub(super) fn e4m3_scales(&self) -> Option<Vec<f32>> {
        let [rows, columns] = *self.shape.as_slice() else { return None };
        let mut scales = Vec::with_capacity(rows);
        for Segment { numbers, count, .. } in &self.segments {
            let scale = numbers.e4m3_scale()?;
            if columns == 0 || !count.is_multiple_of(columns) {
                return None;
            }
            scales.extend(std::iter::repeat_n(scale, count / columns));
        }
        Some(scales)
    }

    /// Reads the tensor's bytes from `at` on into `out`. Both are multiples of the size of its type.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn read(&self, at: usize, out: &mut [u8]) -> std::result::Result<(), String> {
        let width = self.dtype.size_in_bytes();
        let mut left = out;
        self.each_segment(at / width, left.len() / width, |segment, first, count| {
            let (now, later) = std::mem::take(&mut left).split_at_mut(count * width);
            left = later;
            segment.read(first, self.dtype, now)
        })
    }

    /// Reads the numbers from number `first` on, as f32.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn expand(&self, first: usize, out: &mut [f32]) -> std::result::Result<(), String> {
        let mut left = out;
        self.each_segment(first, left.len(), |segment, first, count| {
            let (now, later) = std::mem::take(&mut left).split_at_mut(count);
            left = later;
            segment.expand(first, now)
        })
    }

    /// The bytes of so many numbers from number `first` on, where they are stored in bf16 in one piece in the host's memory.
    pub(super) fn bf16(&self, first: usize, count: usize) -> Option<&[u8]> {
        let mut bytes = None;
        let all = self.each_segment(first, count, |segment, first, now| {
            if now == count && segment.numbers.plain() == Some(DType::BF16) {
                let start = segment.start + (segment.skipped + first) * size_of::<bf16>();
                bytes = segment.file.slice(start, count * size_of::<bf16>());
            }
            Ok(())
        });
        all.ok().and(bytes)
    }

    /// Calls `read` for each segment that has some of `count` numbers from number `first` on: with the first of its own, and
    /// how many.
    fn each_segment<'a>(
        &'a self,
        first: usize,
        count: usize,
        mut read: impl FnMut(&'a Segment, usize, usize) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String> {
        let (mut skipped, mut left) = (first, count);
        for segment in &self.segments {
            if left == 0 {
                break;
            }
            if skipped >= segment.count {
                skipped -= segment.count;
                continue;
            }
            let now = (segment.count - skipped).min(left);
            read(segment, skipped, now)?;
            (left, skipped) = (left - now, 0);
        }
        if left == 0 { Ok(()) } else { Err("a tensor is longer than its parts".to_owned()) }
    }

    /// Reads the tensor into the host's memory, on all threads.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn read_to_host(&self) -> Result<Tensor> {
        let (shape, device) = (self.shape.as_slice(), &Device::Cpu);
        match self.dtype {
            DType::BF16 => Tensor::from_vec(self.numbers::<u16>()?.reinterpret_into::<bf16>(), shape, device),
            DType::F16 => Tensor::from_vec(self.numbers::<u16>()?.reinterpret_into::<f16>(), shape, device),
            DType::U8 => Tensor::from_vec(self.numbers::<u8>()?, shape, device),
            _ => Tensor::from_vec(self.numbers::<f32>()?, shape, device),
        }
    }

    /// Reads the tensor on all threads, as numbers of the width of its type, or as bytes.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn numbers<T: Plain + Clone + Default + Send>(&self) -> Result<Vec<T>> {
        // Zeroed memory costs nothing yet: the system maps each page when it is written, for the thread that writes it.
        let mut values = vec![T::default(); self.bytes() / size_of::<T>()];
        bytes_of(&mut values)
            .par_chunks_mut(PIECE_BYTES)
            .enumerate()
            .try_for_each(|(index, out)| self.read(index * PIECE_BYTES, out))
            .map_err(candle_core::Error::msg)?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::blocks::BlockType;

    fn recipe(dtypes: (BlockType, DType), segments: &[(&'static [u8], usize, usize)], length: usize) -> Recipe {
        let (from, dtype) = dtypes;
        let segment = |&(bytes, start, count)| {
            let file = Arc::new(Blob::embedded("part", bytes));
            Segment { file, start, skipped: 0, count, numbers: Numbers::Blocks(from) }
        };
        Recipe { segments: segments.iter().map(segment).collect(), dtype, shape: vec![length] }
    }

    #[test]
    fn segments_are_joined_wherever_reading_begins_and_ends() {
        const FIRST: &[u8] = &[9, 0, 1, 2, 3, 4, 5];
        const SECOND: &[u8] = &[6, 7, 8, 9];
        let recipe = recipe((BlockType::Bf16, DType::BF16), &[(FIRST, 1, 3), (SECOND, 0, 1)], 4);
        assert_eq!((recipe.bytes(), recipe.file_bytes()), (8, 8));
        let expected = [0, 1, 2, 3, 4, 5, 6, 7];
        for start in (0..8).step_by(2) {
            for end in (start..=8).step_by(2) {
                let mut out = vec![0xff; end - start];
                recipe.read(start, &mut out).expect("read");
                assert_eq!(out, expected[start..end], "{start}..{end}");
            }
        }
        let error = recipe.read(6, &mut [0; 4]).expect_err("there is no more");
        assert!(error.contains("longer"), "{error}");
    }

    #[test]
    fn numbers_are_converted_as_they_are_read() {
        // More than one conversion and one thread's read, and no round number.
        let count = PIECE_BYTES + 77;
        let numbers: Vec<f32> = (0..count).map(|number| (number % 509) as f32 - 254.0).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes()).collect();
        let bytes: &'static [u8] = bytes.leak();
        let half = count / 2;
        let parts = [(bytes, 2 * half, count - half), (bytes, 0, half)];
        let tensor = recipe((BlockType::Bf16, DType::F32), &parts, count).read_to_host().expect("read");
        let expected: Vec<f32> = numbers[half..].iter().chain(&numbers[..half]).copied().collect();
        assert!(tensor.to_vec1::<f32>().expect("numbers") == expected);
    }

    /// As in the layout of folders, where queries, keys and values are tensors of their own.
    #[test]
    fn joined_matrices_in_e4m3_keep_their_codes_and_their_scales() {
        let (count, columns) = (PIECE_BYTES + 8, 8);
        let bytes: Vec<u8> = (0..2 * count + 3).map(|code| (code % 127) as u8).collect();
        let file = Arc::new(Blob::made("part", bytes.clone()));
        let part = |start, count, numbers| Segment { file: Arc::clone(&file), start, skipped: 0, count, numbers };
        let scaled = |scale| Numbers::Scaled(BlockType::F8E4M3, scale);
        let segments = vec![
            part(3, count, scaled(-0.25)),
            part(3 + count, 16, Numbers::Blocks(BlockType::F8E4M3)),
            part(19 + count, 8, scaled(3.0)),
        ];
        let rows = count / columns + 3;
        let recipe = Recipe { segments, dtype: DType::U8, shape: vec![rows, columns] };
        let codes = recipe.read_to_host().and_then(|codes| codes.flatten_all()?.to_vec1::<u8>()).expect("reads");
        assert!(codes == bytes[3..3 + rows * columns]);
        let scales = recipe.e4m3_scales().expect("in e4m3");
        assert_eq!((scales.len(), &scales[..2], &scales[rows - 3..]), (rows, &[-0.25; 2][..], &[1.0, 1.0, 3.0][..]));
        // Scaled, these are the numbers of the file.
        let full = Recipe { dtype: DType::F32, ..recipe.clone() }.read_to_host().and_then(|full| full.to_vec2::<f32>());
        for ((row, codes), scale) in full.expect("reads").iter().zip(codes.chunks(columns)).zip(scales) {
            let mut numbers = vec![0.0; columns];
            BlockType::F8E4M3.decode(codes, &mut numbers);
            assert!(row.iter().zip(&numbers).all(|(found, number)| found.to_bits() == (number * scale).to_bits()));
        }
        let with = |numbers| {
            let segments = vec![part(0, 16, scaled(1.0)), part(16, 16, numbers)];
            Recipe { segments, dtype: DType::F32, shape: vec![4, columns] }.e4m3_scales()
        };
        assert_eq!(with(scaled(2.0)), Some(vec![1.0, 1.0, 2.0, 2.0]));
        for other in [BlockType::F8E5M2, BlockType::Bf16, BlockType::Q8_0] {
            assert_eq!(with(Numbers::Blocks(other)), None, "{other:?}");
        }
        assert_eq!(Recipe { shape: vec![2, 16], ..recipe }.e4m3_scales(), None, "a row of two scales");
    }

    #[test]
    fn blocks_are_decoded_wherever_reading_begins_and_ends() {
        // Two parts, of which the second begins inside a block, and more than one tile.
        let blocks = 2 * DECODED_NUMBERS / 32;
        let block = |index: usize| {
            let scale = f16::from_f32(1.0 + (index % 7) as f32);
            let codes = (0..32).map(|number| (number as u8).wrapping_mul(index as u8 | 1));
            scale.to_le_bytes().into_iter().chain(codes).collect::<Vec<u8>>()
        };
        let bytes: Vec<u8> = (0..blocks).flat_map(block).collect();
        let mut expected = vec![0.0; 32 * blocks];
        BlockType::Q8_0.decode(&bytes, &mut expected);
        let file = Arc::new(Blob::made("part", [vec![1, 2, 3], bytes].concat()));
        let (numbers, half) = (Numbers::Blocks(BlockType::Q8_0), 16 * blocks + 5);
        let segment =
            |skipped, count| Segment { file: Arc::clone(&file), start: 3, skipped, count, numbers: numbers.clone() };
        let segments = vec![segment(half, 32 * blocks - half), segment(0, half)];
        expected.rotate_left(half);
        let recipe = Recipe { segments, dtype: DType::F32, shape: vec![32 * blocks] };
        let length = recipe.bytes();
        for (start, end) in [(0, length), (4, 8), (124, 132), (length / 2 - 60, length / 2 + 60), (length - 4, length)]
        {
            let mut out = vec![0xff; end - start];
            recipe.read(start, &mut out).expect("read");
            let wanted: Vec<u8> = expected[start / 4..end / 4].iter().flat_map(|value| value.to_le_bytes()).collect();
            assert!(out == wanted, "{start}..{end}");
        }
        let narrow = Recipe { dtype: DType::BF16, ..recipe };
        let read = narrow.read_to_host().and_then(|tensor| tensor.to_vec1::<bf16>()).expect("numbers");
        assert!(read.iter().zip(&expected).all(|(read, value)| *read == bf16::from_f32(*value)));
    }
}
