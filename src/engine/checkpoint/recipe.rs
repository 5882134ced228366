//! How one tensor is read: which bytes of which files, in which order, as numbers of which type.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use half::vec::HalfBitsVecExt as _;
use half::{bf16, f16};
use rayon::prelude::*;

use super::source::Blob;
use super::values::{Plain, bytes_of, convert};

/// Bytes that are read at a time where they are converted: few enough for a core's own cache.
const CONVERTED_BYTES: usize = 256 << 10;

/// Bytes that one thread reads at a time into the host's memory.
const HOST_PIECE_BYTES: usize = 4 << 20;

/// Part of a tensor, in a file.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) file: Arc<Blob>,
    /// Where it begins in the file.
    pub(super) start: usize,
    /// How many numbers it has.
    pub(super) count: usize,
    /// Their type in the file: BF16, F16 or F32.
    pub(super) dtype: DType,
}

impl Segment {
    /// Reads the numbers from number `first` on into `out`, as numbers of type `dtype`.
    fn read(&self, first: usize, dtype: DType, out: &mut [u8]) -> std::result::Result<(), String> {
        let (from, to) = (self.dtype.size_in_bytes(), dtype.size_in_bytes());
        let start = self.start + first * from;
        if self.dtype == dtype {
            return self.file.read(start, out);
        }
        let count = CONVERTED_BYTES / from;
        let mut bytes = vec![0; CONVERTED_BYTES.min(out.len() / to * from)];
        for (index, out) in out.chunks_mut(count * to).enumerate() {
            let bytes = &mut bytes[..out.len() / to * from];
            self.file.read(start + index * count * from, bytes)?;
            convert(self.dtype, bytes, dtype, out);
        }
        Ok(())
    }
}

/// A tensor that can be read: its segments one after the other.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) segments: Vec<Segment>,
    /// The type to read it as: BF16, F16 or F32.
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
        self.segments.iter().map(|segment| segment.count * segment.dtype.size_in_bytes()).sum()
    }

    /// Reads the tensor's bytes from `at` on into `out`. Both are multiples of the size of its type.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn read(&self, at: usize, out: &mut [u8]) -> std::result::Result<(), String> {
        let width = self.dtype.size_in_bytes();
        let mut skipped = at / width;
        let mut left = out;
        for segment in &self.segments {
            if left.is_empty() {
                break;
            }
            if skipped >= segment.count {
                skipped -= segment.count;
                continue;
            }
            let count = (segment.count - skipped).min(left.len() / width);
            let (now, after) = left.split_at_mut(count * width);
            segment.read(skipped, self.dtype, now)?;
            (left, skipped) = (after, 0);
        }
        if left.is_empty() { Ok(()) } else { Err("a tensor is longer than its parts".to_owned()) }
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
            _ => Tensor::from_vec(self.numbers::<f32>()?, shape, device),
        }
    }

    fn numbers<T: Plain + Clone + Default + Send>(&self) -> Result<Vec<T>> {
        // Zeroed memory costs nothing yet: the system maps each page when it is written, for the thread that writes it.
        let mut values = vec![T::default(); self.bytes() / size_of::<T>()];
        bytes_of(&mut values)
            .par_chunks_mut(HOST_PIECE_BYTES)
            .enumerate()
            .try_for_each(|(index, out)| self.read(index * HOST_PIECE_BYTES, out))
            .map_err(candle_core::Error::msg)?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(dtypes: (DType, DType), segments: &[(&'static [u8], usize, usize)], length: usize) -> Recipe {
        let (from, dtype) = dtypes;
        let segment = |&(bytes, start, count)| {
            let file = Arc::new(Blob::embedded("part", bytes));
            Segment { file, start, count, dtype: from }
        };
        Recipe { segments: segments.iter().map(segment).collect(), dtype, shape: vec![length] }
    }

    #[test]
    fn segments_are_joined_wherever_reading_begins_and_ends() {
        const FIRST: &[u8] = &[9, 0, 1, 2, 3, 4, 5];
        const SECOND: &[u8] = &[6, 7, 8, 9];
        let recipe = recipe((DType::BF16, DType::BF16), &[(FIRST, 1, 3), (SECOND, 0, 1)], 4);
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
        let count = HOST_PIECE_BYTES + 77;
        let numbers: Vec<f32> = (0..count).map(|number| (number % 509) as f32 - 254.0).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes()).collect();
        let bytes: &'static [u8] = bytes.leak();
        let half = count / 2;
        let parts = [(bytes, 2 * half, count - half), (bytes, 0, half)];
        let tensor = recipe((DType::BF16, DType::F32), &parts, count).read_to_host().expect("read");
        let expected: Vec<f32> = numbers[half..].iter().chain(&numbers[..half]).copied().collect();
        assert!(tensor.to_vec1::<f32>().expect("numbers") == expected);
    }
}
