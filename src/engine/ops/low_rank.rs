//! Changes of low rank, of the rows of some sequences of a stream: what an adapter adds to the outputs of a layer.

#[cfg(any(test, feature = "cuda"))]
pub(super) mod launches;
pub(super) mod part;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Storage, Tensor, bail};

#[cfg(feature = "cuda")]
use super::cuda;
use super::gemm::{Destination, MatrixRef, Onto, Threads, multiply, multiply_into};
use super::{CHUNK, Rows, is_on_cpu, is_on_cuda};

pub(crate) use part::LowRankPart;
use part::PARTS_MAX;

/// Maximum rank that is left to the kernels. They take any, a tile of ranks after the other, but the first one reads its rows again for
/// each tile: beyond this, products of their own that pass over the rows six times cost less.
const RANK_MAX: usize = 512;

/// Adds `scale × (x downᵀ) upᵀ` of each part to its columns of its rows. On CUDA in two launches for all parts that the kernels take;
/// the others are products of their own.
///
/// `out [rows, outputs]` is changed in place, `x [rows, inputs]`; all have one dtype. What is between the two products is rounded
/// to it. A row's bits do not depend on the parts of other rows.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, or parts have some of their rows in common.
pub(crate) fn low_rank_add(out: &Tensor, x: &Tensor, parts: &[LowRankPart]) -> Result<()> {
    check(out, x, parts)?;
    let (fused, composed) = if is_on_cpu(out) {
        (parts.to_vec(), Vec::new())
    } else if is_on_cuda(&[out, x]) {
        apart(parts, |part| is_on_cuda(&[part.down, part.up]) && part.down.is_contiguous() && part.up.is_contiguous())
    } else {
        (Vec::new(), parts.to_vec())
    };
    if !fused.is_empty() {
        out.inplace_op2(x, &LowRankAdd(&fused))?;
    }
    composed.iter().filter(|part| !part.rows.is_empty()).try_for_each(|part| add_composed(out, x, part))
}

/// `down` and `up` of a part, with the rank filled up by zeros to what the kernels take. What they add stays the same.
///
/// # Errors
/// When the device is out of memory.
pub(crate) fn padded(down: &Tensor, up: &Tensor) -> Result<[Tensor; 2]> {
    let rank = down.dim(0)?;
    let missing = rank.next_multiple_of(CHUNK) - rank;
    Ok([down.pad_with_zeros(0, 0, missing)?, up.pad_with_zeros(1, 0, missing)?.contiguous()?])
}

fn check(out: &Tensor, x: &Tensor, parts: &[LowRankPart]) -> Result<()> {
    let ((rows, outputs), (x_rows, inputs)) = (out.dims2()?, x.dims2()?);
    if rows != x_rows {
        bail!("changes of {rows} rows by {x_rows}");
    }
    for (index, part) in parts.iter().enumerate() {
        let LowRankPart { rows: own, columns, down, up, .. } = part;
        let fits = own.start <= own.end && own.end <= rows && columns.start <= columns.end && columns.end <= outputs;
        if !fits || down.dims() != [part.rank(), inputs] || up.dims() != [columns.len(), part.rank()] {
            bail!(
                "a change of rows {own:?} and columns {columns:?} by {:?} and {:?} does not fit {rows}x{outputs} from {inputs} \
                 inputs",
                down.dims(),
                up.dims()
            );
        }
        let is_apart = |other: &LowRankPart| {
            let is_empty = own.is_empty() || other.rows.is_empty();
            is_empty || other.rows == *own || other.rows.end <= own.start || own.end <= other.rows.start
        };
        if let Some(other) = parts[..index].iter().find(|other| !is_apart(other)) {
            bail!("changes of rows {:?} and of {own:?}, which have some in common", other.rows);
        }
    }
    Ok(())
}

/// The parts that the kernels take, and the others. Those of the same rows stay together, and which they are depends on them alone:
/// else a row's bits would depend on what other rows have. `is_readable`: whether the kernels can read a part's matrices.
fn apart<'a>(
    parts: &[LowRankPart<'a>],
    is_readable: impl Fn(&LowRankPart) -> bool,
) -> (Vec<LowRankPart<'a>>, Vec<LowRankPart<'a>>) {
    let is_for_kernels = |part: &LowRankPart| {
        let in_chunks = [part.rank(), part.columns.start, part.columns.len()];
        let are_chunks = in_chunks.iter().all(|count| count.is_multiple_of(CHUNK));
        (1..=RANK_MAX).contains(&part.rank()) && are_chunks && is_readable(part)
    };
    parts.iter().cloned().partition(|part| {
        let of_rows = || parts.iter().filter(|other| other.rows == part.rows);
        of_rows().count() <= PARTS_MAX && of_rows().all(is_for_kernels)
    })
}

/// By candle's own operations.
fn add_composed(out: &Tensor, x: &Tensor, part: &LowRankPart) -> Result<()> {
    let LowRankPart { rows, columns, down, up, scale } = part;
    let inner = (x.narrow(0, rows.start, rows.len())?.matmul(&down.t()?)? * f64::from(*scale))?;
    let rows_of = out.narrow(0, rows.start, rows.len())?;
    let changed = (rows_of.narrow(1, columns.start, columns.len())? + inner.matmul(&up.t()?)?)?;
    let beside = [(0, columns.start), (columns.end, out.dim(1)? - columns.end)];
    let [left, right] = beside.map(|(start, width)| (width > 0).then(|| rows_of.narrow(1, start, width)).transpose());
    let whole: Vec<Tensor> = [left?, Some(changed), right?].into_iter().flatten().collect();
    out.slice_set(&Tensor::cat(&whole, 1)?, 0, rows.start)
}

struct LowRankAdd<'a>(&'a [LowRankPart<'a>]);

impl InplaceOp2 for LowRankAdd<'_> {
    fn name(&self) -> &'static str {
        "low-rank-add"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, out_l: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        let (x, (_, outputs)) = (Rows::new(x, xl)?, out_l.shape().dims2()?);
        let (CpuStorage::F32(out), Some((start, end))) = (out, out_l.contiguous_offsets()) else {
            bail!("expected a contiguous matrix in f32 to change")
        };
        for part in self.0.iter().filter(|part| !part.rows.is_empty() && !part.columns.is_empty()) {
            add_on_cpu(&mut out[start..end], outputs, &x, part)?;
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut CudaStorage, out_l: &Layout, x: &CudaStorage, xl: &Layout) -> Result<()> {
        cuda::low_rank::add((out, out_l), (x, xl), self.0)
    }
}

fn add_on_cpu(out: &mut [f32], outputs: usize, x: &Rows, part: &LowRankPart) -> Result<()> {
    let (rows, columns, rank) = (&part.rows, &part.columns, part.rank());
    if rank == 0 {
        return Ok(());
    }
    let x_rows = MatrixRef::new(&x.values[rows.start * x.stride..], rows.len(), x.width, x.stride);
    let mut inner = vec![0.0_f32; rows.len() * rank];
    with_numbers(part.down, |down| {
        multiply(
            &mut inner,
            x_rows,
            MatrixRef::new(down, rank, x.width, x.width).transposed(),
            Onto::Nothing,
            Threads::All,
        );
    })?;
    for number in &mut inner {
        *number *= part.scale;
    }
    let destination = Destination { values: &mut out[rows.start * outputs + columns.start..], stride: outputs };
    with_numbers(part.up, |up| {
        let up = MatrixRef::new(up, columns.len(), rank, rank).transposed();
        multiply_into(destination, MatrixRef::new(&inner, rows.len(), rank, rank), up, Onto::Destination, Threads::All);
    })
}

/// Calls `body` with the numbers of a matrix in f32 on the CPU.
fn with_numbers<R>(matrix: &Tensor, body: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let matrix = matrix.contiguous()?;
    let (storage, layout) = matrix.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(body(super::contiguous(storage, layout)?)),
        _ => bail!("a change on another device than what it changes"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::engine::noise::standard_normal;

    fn random(seed: u64, rows: usize, columns: usize) -> Tensor {
        let numbers = standard_normal(seed, 0, (rows * columns).next_multiple_of(16));
        Tensor::from_vec(numbers[..rows * columns].to_vec(), (rows, columns), &Device::Cpu).expect("tensor")
    }

    /// Of a rank.
    fn matrices(seed: u64, [inputs, columns]: [usize; 2], rank: usize) -> [Tensor; 2] {
        [random(seed, rank, inputs), random(seed + 1, columns, rank)]
    }

    fn numbers(x: &Tensor) -> Vec<Vec<f32>> {
        x.to_vec2().expect("numbers")
    }

    const OUTPUTS: usize = 40;
    const INPUTS: usize = 24;

    /// Changed rows: a sequence with two changes on top of each other, one that is left alone, and one of a single row.
    fn changed(out: &Tensor, x: &Tensor, run: fn(&Tensor, &Tensor, &[LowRankPart]) -> Result<()>) -> Tensor {
        let out = out.copy().expect("copies");
        let all = [(16, 40), (5, 8), (128, 17)];
        let all = all.map(|(rank, columns)| matrices(rank as u64, [INPUTS, columns], rank));
        let part = |number: usize, rows, columns, scale| {
            let [down, up] = &all[number];
            LowRankPart { rows, columns, down, up, scale }
        };
        let parts = [part(0, 2..9, 0..40, 0.5), part(1, 2..9, 16..24, -2.0), part(2, 12..13, 23..40, 1.0)];
        run(&out, x, &parts).expect("adds");
        out
    }

    #[test]
    fn parts_are_added_to_their_rows_and_columns_and_to_no_others() {
        let (out, x) = (random(1, 14, OUTPUTS), random(2, 14, INPUTS));
        let found = changed(&out, &x, low_rank_add);
        let composed = changed(&out, &x, |out, x, parts| parts.iter().try_for_each(|part| add_composed(out, x, part)));
        for (row, (found, composed)) in numbers(&found).iter().zip(numbers(&composed)).enumerate() {
            for (found, composed) in found.iter().zip(&composed) {
                let tolerance = 1e-4 * composed.abs().max(10.0);
                assert!((found - composed).abs() <= tolerance, "row {row}: {found} and {composed}");
            }
        }
        let before = numbers(&out);
        for (row, found) in numbers(&found).iter().enumerate() {
            let is_changed: Vec<bool> = found.iter().zip(&before[row]).map(|(found, before)| found != before).collect();
            let expected = |column: usize| (2..9).contains(&row) || row == 12 && column >= 23;
            assert_eq!(is_changed, (0..OUTPUTS).map(expected).collect::<Vec<_>>(), "row {row}");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_the_others_get() {
        let (out, x) = (random(3, 300, OUTPUTS), random(4, 300, INPUTS));
        let [one, other] = [1, 2].map(|seed| matrices(seed, [INPUTS, OUTPUTS], 12));
        let run = |first: usize, count: usize, has_other: bool| {
            let out = out.narrow(0, first, count).and_then(|rows| rows.copy()).expect("rows");
            let x = x.narrow(0, first, count).expect("rows");
            let own = 100_usize.saturating_sub(first)..(250 - first).min(count);
            let columns = 0..OUTPUTS;
            let mut parts =
                vec![LowRankPart { rows: own, columns: columns.clone(), down: &one[0], up: &one[1], scale: 0.7 }];
            if has_other {
                parts.push(LowRankPart { rows: 0..100, columns, down: &other[0], up: &other[1], scale: 1.0 });
            }
            low_rank_add(&out, &x, &parts).expect("adds");
            numbers(&out)
        };
        let together = run(0, 300, true);
        for (first, count) in [(100, 150), (100, 1), (180, 3), (249, 1)] {
            assert_eq!(run(first, count, false), together[first..first + count], "{count} rows from {first} on");
        }
    }

    #[test]
    fn what_the_kernels_do_not_take_keeps_no_other_rows_from_them() {
        let all = [8, 256, RANK_MAX, RANK_MAX + 8, 12].map(|rank| matrices(rank as u64, [INPUTS, OUTPUTS], rank));
        let [down_of_one, up_of_one] = &all[0];
        let part = |first_row: usize, number: usize| {
            let [down, up] = &all[number];
            LowRankPart { rows: first_row..first_row + 2, columns: 0..OUTPUTS, down, up, scale: 1.0 }
        };
        let moved = LowRankPart { rows: 8..10, columns: 4..12, down: down_of_one, up: up_of_one, scale: 1.0 };
        let mut parts = vec![part(0, 0), part(2, 1), part(0, 2), part(4, 0), part(4, 3), part(6, 4), moved];
        parts.extend((0..=PARTS_MAX).map(|_| part(10, 0)));
        let places =
            |parts: &[LowRankPart]| -> Vec<_> { parts.iter().map(|part| (part.rows.start, part.rank())).collect() };
        let (fused, composed) = apart(&parts, |_| true);
        assert_eq!(places(&fused), [(0, 8), (2, 256), (0, RANK_MAX)]);
        let beginning = [(4, 8), (4, RANK_MAX + 8), (6, 12), (8, 8)];
        assert_eq!(places(&composed)[..4], beginning);
        assert_eq!(places(&composed)[4..], [(10, 8); PARTS_MAX + 1]);
        let (fused, composed) = apart(&parts[..3], |part| part.rank() != 8);
        assert_eq!((places(&fused), places(&composed)), (vec![(2, 256)], vec![(0, 8), (0, RANK_MAX)]));
    }

    #[test]
    fn a_rank_that_is_filled_up_adds_the_same() {
        let x = random(5, 6, INPUTS);
        let [down, up] = matrices(6, [INPUTS, OUTPUTS], 5);
        let run = |down: &Tensor, up: &Tensor| {
            let out = Tensor::zeros((6, OUTPUTS), DType::F32, &Device::Cpu).expect("zeros");
            let part = LowRankPart { rows: 0..6, columns: 0..OUTPUTS, down, up, scale: 1.0 };
            low_rank_add(&out, &x, &[part]).expect("adds");
            numbers(&out).concat()
        };
        let [wide_down, wide_up] = padded(&down, &up).expect("pads");
        assert_eq!((wide_down.dims(), wide_up.dims()), (&[8, INPUTS][..], &[OUTPUTS, 8][..]));
        let mut pairs = run(&down, &up).into_iter().zip(run(&wide_down, &wide_up));
        assert!(pairs.all(|(found, filled)| (found - filled).abs() <= 1e-4));
        let [same, _] = padded(&wide_down, &wide_up).expect("nothing to pad");
        assert_eq!(same.dims(), wide_down.dims());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let (out, x) = (random(7, 8, OUTPUTS), random(8, 8, INPUTS));
        let [down, up] = matrices(9, [INPUTS, OUTPUTS], 4);
        let part = |rows, columns| LowRankPart { rows, columns, down: &down, up: &up, scale: 1.0 };
        let refused = |parts: &[LowRankPart]| low_rank_add(&out, &x, parts).expect_err("refused").to_string();
        assert!(refused(&[part(0..9, 0..OUTPUTS)]).contains("rows 0..9"));
        assert!(refused(&[part(0..8, 1..OUTPUTS)]).contains("columns 1..40"));
        assert!(refused(&[part(0..8, 1..OUTPUTS + 1)]).contains("does not fit 8x40 from 24"));
        let error = refused(&[part(0..5, 0..OUTPUTS), part(4..8, 0..OUTPUTS)]);
        assert!(error.contains("0..5 and of 4..8, which have some in common"), "{error}");
        let apart = [0..5, 5..8, 3..3].map(|rows| part(rows, 0..OUTPUTS));
        low_rank_add(&out, &x, &apart).expect("apart");
        low_rank_add(&out, &x, &[]).expect("nothing");
        assert!(low_rank_add(&out, &random(8, 7, INPUTS), &[]).is_err());
    }
}
