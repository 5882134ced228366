//! Modulation of a packed stream: each sequence has its own shift, scale and gate.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::matrix_product::MatrixProduct;
use super::vector::{mean_and_scale, vectorized};
use super::{Rows, Segments, is_launchable, is_on_cpu, is_on_cuda};

/// Epsilon of every LayerNorm in FLUX.
pub(super) const EPSILON: f64 = 1e-6;

/// `(1 + scale) × LayerNorm(x) + shift`, with the shift and scale of the sequence a row belongs to. LayerNorm has no
/// weights of its own; its statistics are taken in f32.
///
/// `x [rows, width]`, `shift` and `scale` `[sequences, width]` -> `[rows, width]`, dtype of `x`.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn modulated_layer_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, segments: &Segments) -> Result<Tensor> {
    if is_on_cpu(x) || (is_on_cuda(&[x, shift, scale]) && is_launchable(segments)) {
        return x.apply_op3_no_bwd(shift, scale, &ModulatedLayerNorm { segments });
    }
    modulated_layer_norm_composed(x, shift, scale, segments)
}

fn modulated_layer_norm_composed(x: &Tensor, shift: &Tensor, scale: &Tensor, segments: &Segments) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centered = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centered.broadcast_div(&(variance + EPSILON)?.sqrt()?)?.to_dtype(x.dtype())?;
    let rows = spread(&(scale + 1.0)?, segments)?;
    normed.mul(&rows)?.add(&spread(shift, segments)?)
}

/// `x + gate × y`, with the gate of the sequence a row belongs to.
///
/// `x` and `y` `[rows, width]`, `gate [sequences, width]` -> `[rows, width]`.
///
/// # Errors
/// When shapes or devices do not fit.
pub(crate) fn gated_residual(x: &Tensor, y: &MatrixProduct, gate: &Tensor, segments: &Segments) -> Result<Tensor> {
    if (is_on_cpu(x) && y.bias().is_none()) || (is_on_cuda(&[x, gate]) && y.is_on_cuda() && is_launchable(segments)) {
        return x.apply_op3_no_bwd(&y.values, gate, &GatedResidual { segments, bias: y.bias() });
    }
    gated_residual_composed(x, y, gate, segments)
}

fn gated_residual_composed(x: &Tensor, y: &MatrixProduct, gate: &Tensor, segments: &Segments) -> Result<Tensor> {
    x.add(&y.biased()?.mul(&spread(gate, segments)?)?)
}

/// One row per token from one row per sequence.
fn spread(per_sequence: &Tensor, segments: &Segments) -> Result<Tensor> {
    let width = per_sequence.dim(1)?;
    let parts = segments
        .ranges()
        .enumerate()
        .map(|(sequence, range)| per_sequence.narrow(0, sequence, 1)?.broadcast_as((range.len(), width)))
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}

/// Fills a matrix like `x` row by row, on all threads. `fill` is given the row's index, its sequence and its memory.
fn by_rows(x: &Rows, segments: &Segments, fill: impl Fn(usize, usize, &mut [f32]) + Sync) -> (CpuStorage, Shape) {
    let sequences = segments.ranges().enumerate().flat_map(|(sequence, range)| range.map(move |_| sequence));
    let sequences: Vec<usize> = sequences.collect();
    let mut out = vec![0.0_f32; x.count * x.width];
    let rows = out.par_chunks_mut(x.width).zip(sequences).enumerate();
    rows.for_each(|(row, (out, sequence))| fill(row, sequence, out));
    (CpuStorage::F32(out), Shape::from((x.count, x.width)))
}

fn check(x: &Rows, other: &Rows, per_sequence: &Rows, segments: &Segments) -> Result<()> {
    let fits = x.count == segments.rows()
        && other.width == x.width
        && per_sequence.width == x.width
        && per_sequence.count == segments.count();
    if !fits {
        bail!("modulation: {} rows of {} do not fit {segments:?}", x.count, x.width);
    }
    Ok(())
}

vectorized! {
    /// A row of [`ModulatedLayerNorm`].
    fn normalize<'a>(values: &'a [f32], scale: &'a [f32], shift: &'a [f32], out: &'a mut [f32]) {
        let (mean, inverse) = mean_and_scale(values, EPSILON as f32);
        for (((out, &value), &scale), &shift) in out.iter_mut().zip(values).zip(scale).zip(shift) {
            *out = (value - mean) * inverse * (1.0 + scale) + shift;
        }
    }
}

vectorized! {
    /// A row of [`GatedResidual`].
    fn add_gated<'a>(x: &'a [f32], y: &'a [f32], gate: &'a [f32], out: &'a mut [f32]) {
        for (((out, &x), &y), &gate) in out.iter_mut().zip(x).zip(y).zip(gate) {
            *out = x + gate * y;
        }
    }
}

struct ModulatedLayerNorm<'a> {
    segments: &'a Segments,
}

impl CustomOp3 for ModulatedLayerNorm<'_> {
    fn name(&self) -> &'static str {
        "modulated-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        shift: &CpuStorage,
        shift_l: &Layout,
        scale: &CpuStorage,
        scale_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, shift, scale) = (Rows::new(x, xl)?, Rows::new(shift, shift_l)?, Rows::new(scale, scale_l)?);
        check(&x, &shift, &scale, self.segments)?;
        Ok(by_rows(&x, self.segments, |row, sequence, out| {
            normalize(x.row(row), scale.row(sequence), shift.row(sequence), out);
        }))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        shift: &CudaStorage,
        shift_l: &Layout,
        scale: &CudaStorage,
        scale_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::cuda::rows::modulated_layer_norm(
            [(x, xl), (shift, shift_l), (scale, scale_l)],
            self.segments,
            EPSILON as f32,
        )
    }
}

struct GatedResidual<'a> {
    segments: &'a Segments,
    /// The bias of `y`; only on CUDA.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "on the CPU the bias has been added"))]
    bias: Option<&'a Tensor>,
}

impl CustomOp3 for GatedResidual<'_> {
    fn name(&self) -> &'static str {
        "gated-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        y: &CpuStorage,
        yl: &Layout,
        gate: &CpuStorage,
        gate_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, y, gate) = (Rows::new(x, xl)?, Rows::new(y, yl)?, Rows::new(gate, gate_l)?);
        check(&x, &y, &gate, self.segments)?;
        Ok(by_rows(&x, self.segments, |row, sequence, out| {
            add_gated(x.row(row), y.row(row), gate.row(sequence), out);
        }))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        y: &CudaStorage,
        yl: &Layout,
        gate: &CudaStorage,
        gate_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::cuda::rows::gated_residual([(x, xl), (y, yl), (gate, gate_l)], self.bias, self.segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_fused_ops_equal_the_composed_ones() {
        let device = Device::Cpu;
        let segments = Segments::from_lengths([5, 1, 12]);
        for width in [7, 64, 129] {
            let random = |rows: usize| Tensor::randn(0.0_f32, 2.0, (rows, width), &device).expect("randn");
            let (x, y, shift, scale) = (random(18), random(18), random(3), random(3));
            let y = MatrixProduct::from(y);
            let pairs = [
                (
                    modulated_layer_norm(&x, &shift, &scale, &segments),
                    modulated_layer_norm_composed(&x, &shift, &scale, &segments),
                ),
                (gated_residual(&x, &y, &scale, &segments), gated_residual_composed(&x, &y, &scale, &segments)),
            ];
            for (fused, composed) in pairs {
                let difference = (fused.expect("fused") - composed.expect("composed")).expect("same shape");
                let largest: f32 = difference.abs().and_then(|d| d.max_all()?.to_scalar()).expect("number");
                assert!(largest < 1e-5, "width {width}: {largest:e}");
            }
        }
    }
}
