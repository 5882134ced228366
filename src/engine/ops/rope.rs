//! Query and key normalization with rotary position embedding, on the packed `[query | key | value]` stream.

mod tables;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, InplaceOp2, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use super::matrix_product::MatrixProduct;
use super::vector::{rms_normalize, vectorized};
use super::{Places, Rows, cuda, is_launchable, is_on_cpu, is_on_cuda};

pub(crate) use tables::Rotary;

/// Epsilon of the query and key RMSNorm.
const EPSILON: f64 = 1e-6;

/// Normalizes queries and keys per head and rotates them; values are copied.
///
/// `qkv [rows, 3 × heads × head width]` (rows may be a narrow slice of a wider matrix), `query_scale` and `key_scale`
/// `[head width]` -> the same shape, contiguous, dtype of `qkv`. `rotary` is `None` for tokens at position zero.
/// Neighboring dimensions (2i, 2i + 1) of a head form a pair, as in the FLUX reference implementation.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn normalize_and_rotate(
    qkv: &MatrixProduct,
    query_scale: &Tensor,
    key_scale: &Tensor,
    rotary: Option<&Rotary>,
) -> Result<Tensor> {
    if (is_on_cpu(&qkv.values) && qkv.bias().is_none()) || is_ours_on_cuda(qkv, [query_scale, key_scale]) {
        let op = NormalizeAndRotate { bias: qkv.bias(), query_scale, key_scale, rotary };
        return qkv.values.apply_op1_no_bwd(&op);
    }
    normalize_and_rotate_composed(&qkv.biased()?, query_scale, key_scale, rotary)
}

/// [`normalize_and_rotate`] into the rows of a joint stream, at the places of the sequences; the other rows are unchanged. The
/// scales are those of queries and keys.
///
/// `joint [rows, 3 × heads × head width]`, contiguous; `qkv` is no part of it.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn normalize_and_rotate_into(
    joint: &Tensor,
    places: &Places,
    qkv: &MatrixProduct,
    [query_scale, key_scale]: [&Tensor; 2],
    rotary: Option<&Rotary>,
) -> Result<()> {
    let is_possible = is_on_cuda(&[joint]) && joint.is_contiguous() && is_launchable(&places.sources);
    if is_possible && is_ours_on_cuda(qkv, [query_scale, key_scale]) {
        let op = NormalizeAndRotate { bias: qkv.bias(), query_scale, key_scale, rotary };
        return joint.inplace_op2(&qkv.values, &Placed { op, places });
    }
    let rotated = normalize_and_rotate(qkv, query_scale, key_scale, rotary)?;
    for (rows, start) in places.pairs().filter(|(rows, _)| !rows.is_empty()) {
        joint.slice_set(&rotated.narrow(0, rows.start, rows.len())?, 0, start)?;
    }
    Ok(())
}

/// Whether the CUDA kernels apply to these operands.
fn is_ours_on_cuda(qkv: &MatrixProduct, [query_scale, key_scale]: [&Tensor; 2]) -> bool {
    let is_shareable = || query_scale.dim(0).is_ok_and(cuda::rows::is_shareable);
    qkv.is_on_cuda() && is_on_cuda(&[query_scale, key_scale]) && is_shareable()
}

fn normalize_and_rotate_composed(
    qkv: &Tensor,
    query_scale: &Tensor,
    key_scale: &Tensor,
    rotary: Option<&Rotary>,
) -> Result<Tensor> {
    let (rows, width) = qkv.dims2()?;
    let head_width = query_scale.dim(0)?;
    let heads = width / 3 / head_width;
    let wide = qkv.to_dtype(DType::F32)?.reshape((rows, 3, heads, head_width))?;
    let mut parts = Vec::with_capacity(3);
    for (part, scale) in [query_scale, key_scale].into_iter().enumerate() {
        let x = wide.narrow(1, part, 1)?.squeeze(1)?;
        let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?.recip()?;
        let x = x.broadcast_mul(&inverse)?.broadcast_mul(&scale.to_dtype(DType::F32)?)?;
        let x = match rotary {
            Some(rotary) => {
                let pairs = x.reshape((rows, heads, head_width / 2, 2))?;
                let (a, b) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
                let (cos, sin) = (rotary.cos.unsqueeze(1)?, rotary.sin.unsqueeze(1)?);
                let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
                let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
                Tensor::stack(&[first, second], 3)?.reshape((rows, heads, head_width))?
            }
            None => x,
        };
        parts.push(x);
    }
    parts.push(wide.narrow(1, 2, 1)?.squeeze(1)?);
    Tensor::stack(&parts, 1)?.reshape((rows, width))?.to_dtype(qkv.dtype())
}

struct NormalizeAndRotate<'a> {
    /// The bias of the stream; only on CUDA.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "on the CPU the bias has been added"))]
    bias: Option<&'a Tensor>,
    query_scale: &'a Tensor,
    key_scale: &'a Tensor,
    rotary: Option<&'a Rotary>,
}

/// Calls `body` with the contiguous f32 values of a CPU tensor.
fn with_values<R>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => body(super::contiguous(storage, layout)?),
        _ => bail!("expected a tensor on the CPU"),
    }
}

impl CustomOp1 for NormalizeAndRotate<'_> {
    fn name(&self) -> &'static str {
        "normalize-and-rotate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = Rows::new(storage, layout)?;
        with_values(self.query_scale, |query_scale| {
            with_values(self.key_scale, |key_scale| match self.rotary {
                None => run(rows, [query_scale, key_scale], None),
                Some(rotary) => with_values(&rotary.cos, |cos| {
                    with_values(&rotary.sin, |sin| run(rows, [query_scale, key_scale], Some([cos, sin])))
                }),
            })
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::rows::normalize_and_rotate(storage, layout, &self.operands(), EPSILON as f32)
    }
}

#[cfg(feature = "cuda")]
impl NormalizeAndRotate<'_> {
    fn operands(&self) -> cuda::rows::HeadOperands<'_> {
        let scales = [self.query_scale, self.key_scale];
        cuda::rows::HeadOperands {
            bias: self.bias,
            scales,
            tables: self.rotary.map(|rotary| [&rotary.cos, &rotary.sin]),
        }
    }
}

/// Into a joint stream.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "on the CPU the rows are copied to their places"))]
struct Placed<'a> {
    op: NormalizeAndRotate<'a>,
    places: &'a Places,
}

impl InplaceOp2 for Placed<'_> {
    fn name(&self) -> &'static str {
        "normalize-and-rotate-into"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("rotation on the CPU returns a matrix of its own")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, joint: &mut CudaStorage, joint_l: &Layout, qkv: &CudaStorage, qkv_l: &Layout) -> Result<()> {
        let operands = self.op.operands();
        cuda::rows::normalize_and_rotate_into((joint, joint_l), self.places, (qkv, qkv_l), &operands, EPSILON as f32)
    }
}

fn run(rows: Rows, scales: [&[f32]; 2], tables: Option<[&[f32]; 2]>) -> Result<(CpuStorage, Shape)> {
    let head_width = scales[0].len();
    let pairs = head_width / 2;
    let part_width = rows.width / 3;
    if part_width * 3 != rows.width || !part_width.is_multiple_of(head_width) || scales[1].len() != head_width {
        bail!("{} columns are not three parts of heads of {head_width}", rows.width);
    }
    if tables.is_some_and(|tables| tables.iter().any(|table| table.len() != rows.count * pairs)) {
        bail!("rotary tables do not fit {} tokens of {pairs} pairs", rows.count);
    }
    let mut out = vec![0.0_f32; rows.count * rows.width];
    out.par_chunks_mut(rows.width).enumerate().for_each(|(index, out)| {
        let input = rows.row(index);
        let tables = tables.map(|[cos, sin]| {
            let range = index * pairs..(index + 1) * pairs;
            [&cos[range.clone()], &sin[range]]
        });
        normalize_and_rotate_row(input, scales, tables, out);
    });
    Ok((CpuStorage::F32(out), Shape::from((rows.count, rows.width))))
}

vectorized! {
    /// A row of queries, keys and values.
    fn normalize_and_rotate_row<'a>(
        input: &'a [f32],
        scales: [&'a [f32]; 2],
        tables: Option<[&'a [f32]; 2]>,
        out: &'a mut [f32],
    ) {
        let (head_width, part_width) = (scales[0].len(), input.len() / 3);
        let (rotated, values) = out.split_at_mut(2 * part_width);
        values.copy_from_slice(&input[2 * part_width..]);
        for (head, out) in rotated.chunks_exact_mut(head_width).enumerate() {
            let scale = scales[usize::from(head * head_width >= part_width)];
            rms_normalize(&input[head * head_width..][..head_width], scale, EPSILON as f32, out);
            if let Some([cos, sin]) = tables {
                rotate_head(out, cos, sin);
            }
        }
    }
}

#[inline(always)]
fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, &cos), &sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * cos - b * sin;
        pair[1] = a * sin + b * cos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ops::Segments;
    use candle_core::Device;

    #[test]
    fn the_fused_op_equals_the_composed_one() {
        let device = Device::Cpu;
        let (heads, axes) = (3, [4, 6, 6]);
        let rotary =
            Rotary::at((0..15).map(|token| [0, token / 5, token % 5]), axes, 10_000.0, &device).expect("tables");
        let wide = Tensor::randn(0.0_f32, 1.0, (15, 3 * heads * 16 + 10), &device).expect("randn");
        let qkv = wide.narrow(1, 0, 3 * heads * 16).expect("narrow");
        let scale = |seed: f32| Tensor::new(vec![seed; 16], &device).expect("scale");
        for rotary in [None, Some(&rotary)] {
            let fused = normalize_and_rotate(&qkv.clone().into(), &scale(0.7), &scale(1.3), rotary).expect("fused");
            let composed = normalize_and_rotate_composed(&qkv, &scale(0.7), &scale(1.3), rotary).expect("composed");
            let largest: f32 = (fused - composed).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
            assert!(largest < 1e-5, "{largest:e}");
        }
    }

    #[test]
    fn writing_two_streams_into_one_equals_concatenating_them() {
        let device = Device::Cpu;
        let scale = Tensor::new(vec![1.3_f32; 16], &device).expect("scale");
        let rotary =
            Rotary::at((0..6).map(|token| [0, token / 2, token % 2]), [4, 6, 6], 10_000.0, &device).expect("tables");
        let random = |rows| MatrixProduct::from(Tensor::randn(0.0_f32, 1.0, (rows, 48), &device).expect("randn"));
        let (text, image) = (random(5), random(6));
        // Text and image of one image, then of another, whose text is empty.
        let texts = Places::new(&Segments::from_lengths([5, 0]), [0, 7]);
        let images = Places::new(&Segments::from_lengths([2, 4]), [5, 7]);
        let joint = Tensor::zeros((11, 48), DType::F32, &device).expect("memory");
        normalize_and_rotate_into(&joint, &texts, &text, [&scale, &scale], None).expect("text");
        normalize_and_rotate_into(&joint, &images, &image, [&scale, &scale], Some(&rotary)).expect("image");
        let apart = [
            normalize_and_rotate(&text, &scale, &scale, None).expect("text"),
            normalize_and_rotate(&image, &scale, &scale, Some(&rotary)).expect("image"),
        ];
        let expected = Tensor::cat(&apart, 0).expect("together");
        assert_eq!(joint.to_vec2::<f32>().expect("values"), expected.to_vec2::<f32>().expect("values"));
    }

    #[test]
    fn position_zero_changes_nothing() {
        let device = Device::Cpu;
        let qkv = Tensor::randn(0.0_f32, 1.0, (4, 48), &device).expect("randn");
        let scale = Tensor::ones(16, DType::F32, &device).expect("ones");
        let identity = Rotary::identity(4, 8, &device).expect("identity");
        let qkv = MatrixProduct::from(qkv);
        let with = normalize_and_rotate(&qkv, &scale, &scale, Some(&identity)).expect("with");
        let without = normalize_and_rotate(&qkv, &scale, &scale, None).expect("without");
        assert_eq!(with.to_vec2::<f32>().expect("values"), without.to_vec2::<f32>().expect("values"));
    }
}
