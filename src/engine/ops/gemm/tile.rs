//! The innermost loop of every product on the CPU: a tile of sums that stays in a vector unit's registers.
//!
//! One operand lies in lanes, a number of each lane next to the other; of the other operand one number at a time is repeated in all
//! lanes. So that operand is read where it is, in any order: a weight's rows need no rearrangement.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
#[cfg(target_arch = "x86_64")]
use std::mem::transmute;

#[cfg(target_arch = "x86_64")]
use super::INNER_BLOCK;

/// A vector unit with fused multiplication and addition, which this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VectorUnit {
    /// 32 registers of 16 numbers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 16 registers of 8 numbers.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// As AVX-512, of pairs: see [`super::rounded`]. For nothing else.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

/// What a tile reads and writes.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Numbers of each sum.
    pub(super) depth: usize,
    /// `[depth, lanes]`, contiguous; or where those are from which `offsets` count.
    pub(super) lanes: *const f32,
    /// Null, or where the lanes of each number of the inner dimension begin: `[depth]`.
    pub(super) offsets: *const u32,
    /// Element (row, depth) is at `row × row_stride + depth × depth_stride`.
    pub(super) rows: *const f32,
    pub(super) row_stride: usize,
    pub(super) depth_stride: usize,
    /// `[rows, lanes]`, contiguous.
    pub(super) totals: *mut f32,
    /// Whether sums are written, instead of added to what is there.
    pub(super) is_first: bool,
}

impl VectorUnit {
    /// The units of this processor, the fastest first. Another has none: then the `gemm` crate multiplies.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let has_avx512 = is_x86_feature_detected!("avx512f");
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        [has_avx512.then_some(Self::Avx512), has_avx2.then_some(Self::Avx2)].into_iter().flatten()
    }

    /// The units of this processor, the fastest first. Another has none: then the `gemm` crate multiplies.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        std::iter::empty()
    }

    /// The unit of this processor that multiplies pairs of bf16, if it has one.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of_pairs() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")).then_some(Self::Avx512Bf16)
    }

    /// The unit of this processor that multiplies pairs of bf16, if it has one.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn of_pairs() -> Option<Self> {
        None
    }

    /// The fastest of this processor.
    pub(crate) fn of_this_processor() -> Option<Self> {
        Self::all().next()
    }

    /// Numbers in a vector.
    pub(crate) fn width(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => 16,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 8,
        }
    }

    /// Vectors of lanes, and rows, of the largest tile: as many sums as registers leave room for. Rows of a weight are often a multiple of
    /// a page apart, so that the first cache holds no more than eight lines of them: with six there is room for the lanes. Beside sums and
    /// lanes compilers use two registers for repeated numbers: with a tile of 3 × 4, AVX2 would keep a sum in memory, at half the speed.
    fn tile(self) -> [usize; 2] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => [4, 6],
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => [2, 6],
        }
    }

    /// Length of a block of the inner dimension, in what this unit multiplies: a block is as many numbers for all.
    pub(super) fn inner_block(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 => INNER_BLOCK,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => INNER_BLOCK / 2,
        }
    }

    /// Most vectors of lanes in a tile.
    pub(super) fn vectors_max(self) -> usize {
        self.tile()[0]
    }

    /// Most rows of a tile.
    pub(super) fn rows_max(self) -> usize {
        self.tile()[1]
    }

    /// Sums the products of some vectors of lanes with at most [`Self::rows_max`] rows. Each is one chain of fused operations in the
    /// order of `depth`, so its bits depend on nothing else. Returns how many rows were taken.
    ///
    /// # Safety
    /// This processor must have the unit, and there must be `rows` of what the operands point to, at least one; `totals` must not
    /// overlap the others.
    #[expect(unsafe_code, reason = "vector instructions read and write through pointers")]
    pub(super) unsafe fn multiply(self, vectors: usize, rows: usize, operands: &Operands) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as the caller promises.
            Self::Avx512 => unsafe { avx512::tile(vectors, rows, operands) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as the caller promises.
            Self::Avx2 => unsafe { avx2::tile(vectors, rows, operands) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as the caller promises.
            Self::Avx512Bf16 => unsafe { avx512_bf16::tile(vectors, rows, operands) },
        }
    }
}

/// A module with a vector unit's tiles of so many vectors and rows.
#[cfg(target_arch = "x86_64")]
macro_rules! tiles {
    (@vectors $vectors:ident, $operands:ident, $rows:literal, [$($number:literal),+]) => {
        match $vectors {
            $($number => of::<$number, $rows>($operands),)+
            other => unreachable!("{other} vectors of lanes"),
        }
    };
    ($module:ident, $features:literal, $width:literal, $zero:ident, $load:ident, $store:ident, $repeat:ident, $add:ident,
     $fused:path, $vectors:tt, [$($rows:literal),+]) => {
        mod $module {
            use std::arch::x86_64::{$add, $load, $repeat, $store, $zero};

            use super::Operands;

            /// As [`super::VectorUnit::multiply`].
            #[expect(unsafe_code, reason = "vector instructions read and write through pointers")]
            pub(super) unsafe fn tile(vectors: usize, rows: usize, operands: &Operands) -> usize {
                $(
                    if rows >= $rows {
                        // SAFETY: as the caller promises.
                        unsafe { tiles!(@vectors vectors, operands, $rows, $vectors) };
                        return $rows;
                    }
                )+
                0
            }

            #[target_feature(enable = $features)]
            #[expect(unsafe_code, reason = "vector instructions read and write through pointers")]
            unsafe fn of<const VECTORS: usize, const ROWS: usize>(operands: &Operands) {
                // SAFETY: as the caller promises.
                unsafe {
                    if operands.offsets.is_null() {
                        sum::<VECTORS, ROWS, false>(operands);
                    } else {
                        sum::<VECTORS, ROWS, true>(operands);
                    }
                }
            }

            #[target_feature(enable = $features)]
            #[expect(unsafe_code, reason = "vector instructions read and write through pointers")]
            unsafe fn sum<const VECTORS: usize, const ROWS: usize, const HAS_OFFSETS: bool>(operands: &Operands) {
                let Operands { depth, lanes, offsets, rows, row_stride, depth_stride, totals, is_first } = *operands;
                let mut sums = [[$zero(); VECTORS]; ROWS];
                for at in 0..depth {
                    // SAFETY: there are `depth` offsets.
                    let start = if HAS_OFFSETS { unsafe { *offsets.add(at) as usize } } else { at * VECTORS * $width };
                    // No closure, which would be called for each vector, and no loop, which stays one in builds for tests.
                    let mut own = [$zero(); VECTORS];
                    // SAFETY: so many lanes begin there.
                    unsafe {
                        let lanes = lanes.add(start);
                        if VECTORS > 0 {
                            own[0] = $load(lanes);
                        }
                        if VECTORS > 1 {
                            own[1] = $load(lanes.add($width));
                        }
                        if VECTORS > 2 {
                            own[2] = $load(lanes.add(2 * $width));
                        }
                        if VECTORS > 3 {
                            own[3] = $load(lanes.add(3 * $width));
                        }
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: there are so many rows of `depth` numbers.
                        let number = $repeat(unsafe { *rows.add(row * row_stride + at * depth_stride) });
                        for (sum, own) in sums.iter_mut().zip(own) {
                            *sum = $fused(own, number, *sum);
                        }
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    for (vector, sum) in sums.into_iter().enumerate() {
                        // SAFETY: the totals have so many rows of lanes.
                        unsafe {
                            let total = totals.add((row * VECTORS + vector) * $width);
                            $store(total, if is_first { sum } else { $add($load(total), sum) });
                        }
                    }
                }
            }
        }
    };
}

/// [`tiles`] of AVX-512's registers.
#[cfg(target_arch = "x86_64")]
macro_rules! tiles_of_avx512 {
    ($module:ident, $features:literal, $fused:path) => {
        tiles!(
            $module,
            $features,
            16,
            _mm512_setzero_ps,
            _mm512_loadu_ps,
            _mm512_storeu_ps,
            _mm512_set1_ps,
            _mm512_add_ps,
            $fused,
            [1, 2, 3, 4],
            [6, 4, 2, 1]
        );
    };
}

#[cfg(target_arch = "x86_64")]
tiles_of_avx512!(avx512, "avx512f", std::arch::x86_64::_mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
tiles_of_avx512!(avx512_bf16, "avx512f,avx512bf16", super::add_products_of_pairs);
#[cfg(target_arch = "x86_64")]
tiles!(
    avx2,
    "avx2,fma",
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_add_ps,
    std::arch::x86_64::_mm256_fmadd_ps,
    [1, 2],
    [6, 4, 2, 1]
);

/// The sum with the product of the second numbers of two pairs, and then with that of the first ones. Each sum is rounded once. What is
/// too small for a normal number is zero.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn add_products_of_pairs(own: __m512, number: __m512, sum: __m512) -> __m512 {
    // SAFETY: both types are 512 bits, all of which are numbers.
    #[expect(unsafe_code, reason = "the same bits as another type")]
    let [own, number] = unsafe { [transmute::<__m512, __m512bh>(own), transmute::<__m512, __m512bh>(number)] };
    _mm512_dpbf16_ps(sum, own, number)
}
