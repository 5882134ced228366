//! Query and key normalisation with rotary position embedding, on the packed `[query | key | value]` stream.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Device, InplaceOp2, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::rows::HeadOperands;
use super::linear::Product;
use super::vector::{sum_of_squares, vectorized};
use super::{Places, Rows, is_launchable, is_on_cpu, is_on_cuda};

/// Epsilon of the query and key RMSNorm.
const EPSILON: f64 = 1e-6;

/// Cosines and sines of every rotary angle of a token stream, always in f32: in bf16 the angles of a 1024×1024 image
/// would be off by up to 0.18 rad.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    /// `[tokens, head width / 2]`
    pub(crate) cos: Tensor,
    /// `[tokens, head width / 2]`
    pub(crate) sin: Tensor,
}

impl Rotary {
    /// The tables of one image's image tokens, row by row. Text tokens stand at position zero, where every angle is
    /// zero, and have no table.
    ///
    /// `axes` are the head's dimensions given to (time, row, column), `theta` the base of the frequencies. Angles are
    /// computed in f64 as diffusers' `get_1d_rotary_pos_embed` does.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn of_image(rows: usize, columns: usize, axes: [usize; 3], theta: f64, device: &Device) -> Result<Self> {
        let pairs = axes.iter().sum::<usize>() / 2;
        let mut angles = Vec::with_capacity(rows * columns * pairs);
        for row in 0..rows {
            for column in 0..columns {
                for (axis, position) in axes.into_iter().zip([0, row, column]) {
                    let frequency = |pair: usize| theta.powf(-(2.0 * pair as f64) / axis as f64);
                    angles.extend((0..axis / 2).map(|pair| position as f64 * frequency(pair)));
                }
            }
        }
        let table = |function: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&angle| function(angle) as f32).collect();
            Tensor::from_vec(values, (rows * columns, pairs), device)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// These tables behind `text_tokens` of text: of one sequence of the joint stream. Made once for an image, since nothing
    /// in them changes from step to step.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn after_text(&self, text_tokens: usize) -> Result<Self> {
        let text = Self::identity(text_tokens, self.cos.dim(1)?, self.cos.device())?;
        Self::concatenate(&[&text, self])
    }

    /// The tables of all tokens from `start` on, without a copy.
    ///
    /// # Errors
    /// When there are not so many.
    pub(crate) fn starting_at(&self, start: usize) -> Result<Self> {
        let rest = self.tokens().saturating_sub(start);
        Ok(Self { cos: self.cos.narrow(0, start, rest)?, sin: self.sin.narrow(0, start, rest)? })
    }

    /// How many tokens they are of.
    pub(crate) fn tokens(&self) -> usize {
        self.cos.dims()[0]
    }

    /// The tables of several streams, one after the other.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub(crate) fn concatenate(parts: &[&Self]) -> Result<Self> {
        let cos: Vec<_> = parts.iter().map(|part| &part.cos).collect();
        let sin: Vec<_> = parts.iter().map(|part| &part.sin).collect();
        Ok(Self { cos: Tensor::cat(&cos, 0)?, sin: Tensor::cat(&sin, 0)? })
    }

    /// Tables of `tokens` tokens at position zero, which leave everything as it is.
    ///
    /// # Errors
    /// When the device is out of memory.
    fn identity(tokens: usize, pairs: usize, device: &Device) -> Result<Self> {
        Ok(Self {
            cos: Tensor::ones((tokens, pairs), DType::F32, device)?,
            sin: Tensor::zeros((tokens, pairs), DType::F32, device)?,
        })
    }
}

/// Normalises queries and keys per head and rotates them; values pass through.
///
/// `qkv [rows, 3 × heads × head width]` (rows may be a narrow slice of a wider matrix), `query_scale` and `key_scale`
/// `[head width]` -> the same shape, contiguous, dtype of `qkv`. `None` for tokens at position zero.
/// Neighbouring dimensions (2i, 2i + 1) of a head form a pair, as in the FLUX reference implementation.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn normalize_and_rotate(
    qkv: &Product,
    query_scale: &Tensor,
    key_scale: &Tensor,
    rotary: Option<&Rotary>,
) -> Result<Tensor> {
    let is_ours_on_cuda = || qkv.is_on_cuda() && is_on_cuda(&[query_scale, key_scale]) && is_shareable(query_scale);
    if (is_on_cpu(&qkv.values) && qkv.bias().is_none()) || is_ours_on_cuda() {
        let op = NormalizeAndRotate { bias: qkv.bias(), query_scale, key_scale, rotary };
        return qkv.values.apply_op1_no_bwd(&op);
    }
    normalize_and_rotate_composed(&qkv.biased()?, query_scale, key_scale, rotary)
}

/// [`normalize_and_rotate`] into the rows of a joint stream where the sequences have their places; all others stay as they
/// are. `scales` are those of queries and keys.
///
/// `joint [rows, 3 × heads × head width]`, contiguous; `qkv` is no part of it.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub(crate) fn normalize_and_rotate_into(
    joint: &Tensor,
    places: &Places,
    qkv: &Product,
    [query_scale, key_scale]: [&Tensor; 2],
    rotary: Option<&Rotary>,
) -> Result<()> {
    let operands_are_ours = || qkv.is_on_cuda() && is_on_cuda(&[query_scale, key_scale]) && is_shareable(query_scale);
    if is_on_cuda(&[joint]) && joint.is_contiguous() && is_launchable(&places.sources) && operands_are_ours() {
        let op = NormalizeAndRotate { bias: qkv.bias(), query_scale, key_scale, rotary };
        return joint.inplace_op2(&qkv.values, &Placed { op, places });
    }
    let rotated = normalize_and_rotate(qkv, query_scale, key_scale, rotary)?;
    for (rows, start) in places.pairs().filter(|(rows, _)| !rows.is_empty()) {
        joint.slice_set(&rotated.narrow(0, rows.start, rows.len())?, 0, start)?;
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn is_shareable(scale: &Tensor) -> bool {
    scale.dim(0).is_ok_and(super::cuda::rows::is_shareable)
}

#[cfg(not(feature = "cuda"))]
fn is_shareable(_: &Tensor) -> bool {
    false
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
    /// Of the stream; only on CUDA.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "on the CPU a product has its bias already"))]
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
        super::cuda::rows::normalize_and_rotate(storage, layout, &self.operands(), EPSILON as f32)
    }
}

#[cfg(feature = "cuda")]
impl NormalizeAndRotate<'_> {
    fn operands(&self) -> HeadOperands<'_> {
        let scales = [self.query_scale, self.key_scale];
        HeadOperands { bias: self.bias, scales, tables: self.rotary.map(|rotary| [&rotary.cos, &rotary.sin]) }
    }
}

/// Into a joint stream.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "on the CPU rows are put in their places afterwards"))]
struct Placed<'a> {
    op: NormalizeAndRotate<'a>,
    places: &'a Places,
}

impl InplaceOp2 for Placed<'_> {
    fn name(&self) -> &'static str {
        "normalize-and-rotate-into"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("rotation on the CPU makes a matrix of its own")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, joint: &mut CudaStorage, joint_l: &Layout, qkv: &CudaStorage, qkv_l: &Layout) -> Result<()> {
        let operands = self.op.operands();
        super::cuda::rows::normalize_and_rotate_into(
            (joint, joint_l),
            self.places,
            (qkv, qkv_l),
            &operands,
            EPSILON as f32,
        )
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
        vectorized(|| {
            let (rotated, values) = out.split_at_mut(2 * part_width);
            values.copy_from_slice(&input[2 * part_width..]);
            for (head, out) in rotated.chunks_exact_mut(head_width).enumerate() {
                let scale = scales[usize::from(head * head_width >= part_width)];
                normalize_head(&input[head * head_width..][..head_width], scale, out);
                if let Some([cos, sin]) = tables {
                    rotate_head(out, cos, sin);
                }
            }
        });
    });
    Ok((CpuStorage::F32(out), Shape::from((rows.count, rows.width))))
}

#[inline(always)]
fn normalize_head(input: &[f32], scale: &[f32], out: &mut [f32]) {
    let mean_square = sum_of_squares(input) / input.len() as f32;
    let inverse = 1.0 / (mean_square + EPSILON as f32).sqrt();
    for ((out, &value), &scale) in out.iter_mut().zip(input).zip(scale) {
        *out = value * inverse * scale;
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

    #[test]
    fn the_fused_op_equals_its_twin() {
        let device = Device::Cpu;
        let (heads, axes) = (3, [4, 6, 6]);
        let rotary = Rotary::of_image(3, 5, axes, 10_000.0, &device).expect("tables");
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
    fn two_streams_stand_in_one_as_if_they_had_been_put_together() {
        let device = Device::Cpu;
        let scale = Tensor::new(vec![1.3_f32; 16], &device).expect("scale");
        let rotary = Rotary::of_image(3, 2, [4, 6, 6], 10_000.0, &device).expect("tables");
        let random = |rows| Product::from(Tensor::randn(0.0_f32, 1.0, (rows, 48), &device).expect("randn"));
        let (text, image) = (random(5), random(6));
        // Text and image of one image, then of another, whose text is empty.
        let texts = Places::new(&Segments::from_lengths([5, 0]), [0, 7]);
        let images = Places::new(&Segments::from_lengths([2, 4]), [5, 7]);
        let joint = Tensor::zeros((11, 48), DType::F32, &device).expect("room");
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
    fn behind_text_stand_the_tables_of_the_image() {
        let rotary = Rotary::of_image(3, 2, [4, 6, 6], 10_000.0, &Device::Cpu).expect("tables");
        let joint = rotary.after_text(5).expect("joint");
        assert_eq!(
            (joint.tokens(), joint.cos.get(4).and_then(|row| row.to_vec1::<f32>()).expect("a row")),
            (11, vec![1.0; 8])
        );
        let image = joint.starting_at(5).expect("image");
        for (found, expected) in [(&image.cos, &rotary.cos), (&image.sin, &rotary.sin)] {
            assert_eq!(found.to_vec2::<f32>().expect("values"), expected.to_vec2::<f32>().expect("values"));
        }
    }

    #[test]
    fn position_zero_leaves_a_token_as_it_is() {
        let device = Device::Cpu;
        let qkv = Tensor::randn(0.0_f32, 1.0, (4, 48), &device).expect("randn");
        let scale = Tensor::ones(16, DType::F32, &device).expect("ones");
        let identity = Rotary::identity(4, 8, &device).expect("identity");
        let qkv = Product::from(qkv);
        let with = normalize_and_rotate(&qkv, &scale, &scale, Some(&identity)).expect("with");
        let without = normalize_and_rotate(&qkv, &scale, &scale, None).expect("without");
        assert_eq!(with.to_vec2::<f32>().expect("values"), without.to_vec2::<f32>().expect("values"));
    }
}
