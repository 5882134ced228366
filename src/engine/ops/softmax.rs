//! Softmax of each row of a matrix of scores, for attention whose heads are too wide for the fused kernel.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::vector::softmax_numerators;
use super::{contiguous, is_on_cuda};

/// `softmax(scale × scores)` along the last dimension, computed in f32 -> the same shape and dtype. `scale` is positive.
///
/// # Errors
/// When the device is out of memory.
pub(crate) fn softmax(scores: &Tensor, scale: f64) -> Result<Tensor> {
    if scores.is_contiguous() && is_on_cuda(&[scores]) {
        return scores.apply_op1_no_bwd(&Op { scale: scale as f32 });
    }
    composed(scores, scale)
}

fn composed(scores: &Tensor, scale: f64) -> Result<Tensor> {
    let scaled = (scores.to_dtype(DType::F32)? * scale)?;
    candle_nn::ops::softmax_last_dim(&scaled)?.to_dtype(scores.dtype())
}

struct Op {
    scale: f32,
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut values = contiguous(storage, layout)?.to_vec();
        let Some(&width) = layout.dims().last().filter(|&&width| width > 0) else {
            bail!("softmax: there are no rows in {:?}", layout.dims());
        };
        values.par_chunks_exact_mut(width).for_each(|row| {
            let inverse = 1.0 / softmax_numerators(row, self.scale);
            for value in row {
                *value *= inverse;
            }
        });
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::softmax::softmax(storage, layout, self.scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_fused_op_equals_the_composed_one() {
        for (width, deviation) in [(1, 1.0_f32), (37, 1.0), (1000, 30.0)] {
            let scores = Tensor::randn(-5.0, deviation, (2, 3, width), &Device::Cpu).expect("randn");
            let op = scores.apply_op1_no_bwd(&Op { scale: 0.3 }).expect("fused");
            let composed = composed(&scores, f64::from(0.3_f32)).expect("composed");
            let largest: f32 = (op - composed).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
            assert!(largest < 1e-6, "{width}: {largest:e}");
        }
    }
}
