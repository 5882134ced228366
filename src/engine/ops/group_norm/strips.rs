//! GroupNorm in two passes: statistics of some rows at a time, and rows normalized by the statistics of all of them.
//!
//! On the CPU statistics are taken of each row of each channel and merged in the order of the rows, so their bits do not depend
//! on how the rows are divided into strips.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::super::activation::{silu, silu_of};
#[cfg(feature = "cuda")]
use super::super::cuda;
use super::super::vector::{moments, vectorized};
use super::super::{channels_first, channels_last, contiguous, is_on_cpu};
use super::GroupNorm;
use super::parts::pixels_of_parts;

/// Statistics of some rows of an image.
pub(crate) struct Moments {
    /// Mean, and sum of squared differences from it, of each part of each group: `[groups, parts, 2]`, f32.
    values: Tensor,
    /// Numbers in a part of a group.
    counts: Vec<usize>,
}

/// What normalizes an image, from the statistics of all its rows: for each channel the factor, the summand behind it, and the
/// mean of its group, `[3, channels]`, f32.
pub(crate) struct Scales(Tensor);

impl GroupNorm {
    /// Statistics of some rows `[1, channels, rows, width]`.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub(crate) fn moments(&self, rows: &Tensor) -> Result<Moments> {
        let channels = self.channels(rows)?;
        let (_, _, height, width) = rows.dims4()?;
        let (groups, group_channels) = (self.groups, channels / self.groups);
        if self.has_kernels(rows) {
            let values = channels_last(rows)?.apply_op1_no_bwd(&MomentsOp { groups })?;
            let counts = pixels_of_parts(height * width).into_iter().map(|pixels| pixels * group_channels).collect();
            return Ok(Moments { values, counts });
        }
        if rows.is_contiguous() && is_on_cpu(rows) {
            let values = rows.apply_op1_no_bwd(&MomentsOp { groups })?;
            return Ok(Moments { values, counts: vec![width; height * group_channels] });
        }
        let values = rows.contiguous()?.to_dtype(DType::F32)?.reshape((groups, ()))?;
        let mean = values.mean_keepdim(1)?;
        let squares = values.broadcast_sub(&mean)?.sqr()?.sum_keepdim(1)?;
        Ok(Moments { values: Tensor::stack(&[mean, squares], 2)?, counts: vec![group_channels * height * width] })
    }

    /// What normalizes an image of these rows, which are all its rows in order.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn scales(&self, rows: &[Moments]) -> Result<Scales> {
        let channels = self.weight.dim(0)?;
        let values: Vec<&Tensor> = rows.iter().map(|moments| &moments.values).collect();
        let values = Tensor::cat(&values, 1)?.flatten_all()?.to_vec1::<f32>()?;
        let counts: Vec<f64> = rows.iter().flat_map(|moments| &moments.counts).map(|&count| count as f64).collect();
        let [weight, bias] = [&self.weight, &self.bias].map(|values| values.to_dtype(DType::F32)?.to_vec1::<f32>());
        let (weight, bias) = (weight?, bias?);
        let mut scales = vec![0.0_f32; 3 * channels];
        for (group, parts) in values.chunks_exact(2 * counts.len()).enumerate() {
            let (mean, variance) = merged(parts, &counts);
            let inverse = 1.0 / (variance + self.epsilon).sqrt();
            let group_channels = channels / self.groups;
            for channel in group * group_channels..(group + 1) * group_channels {
                let factor = inverse * f64::from(weight[channel]);
                scales[channel] = factor as f32;
                scales[channels + channel] = (f64::from(bias[channel]) - mean * factor) as f32;
                scales[2 * channels + channel] = mean as f32;
            }
        }
        Ok(Scales(Tensor::from_vec(scales, (3, channels), self.weight.device())?))
    }

    /// SiLU of some rows `[1, channels, rows, width]`, normalized.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub(crate) fn forward_silu_by(&self, rows: &Tensor, scales: &Scales) -> Result<Tensor> {
        self.normalized(rows, scales, true)
    }

    pub(super) fn normalized(&self, rows: &Tensor, scales: &Scales, is_activated: bool) -> Result<Tensor> {
        let channels = self.channels(rows)?;
        let op = NormalizeOp { is_activated };
        if self.has_kernels(rows) {
            return channels_first(&channels_last(rows)?.apply_op3_no_bwd(&scales.0, &self.bias, &op)?);
        }
        if rows.is_contiguous() && is_on_cpu(rows) {
            return rows.apply_op3_no_bwd(&scales.0, &self.bias, &op);
        }
        let of_channels = |row: usize| scales.0.narrow(0, row, 1)?.reshape((1, channels, 1, 1));
        let normed = rows.to_dtype(DType::F32)?.broadcast_mul(&of_channels(0)?)?.broadcast_add(&of_channels(1)?)?;
        let normed = normed.to_dtype(rows.dtype())?;
        if is_activated { silu(&normed) } else { Ok(normed) }
    }
}

/// Mean and variance of a group, from mean and squared differences of each of its parts.
fn merged(parts: &[f32], counts: &[f64]) -> (f64, f64) {
    let each = || parts.chunks_exact(2).zip(counts);
    let total: f64 = counts.iter().sum();
    let mean = each().map(|(part, count)| f64::from(part[0]) * count).sum::<f64>() / total;
    let squares = each().map(|(part, count)| f64::from(part[1]) + count * (f64::from(part[0]) - mean).powi(2));
    (mean, squares.sum::<f64>() / total)
}

/// Statistics of an image: channels first on the CPU, a part for each row of each channel; channels last on CUDA.
struct MomentsOp {
    groups: usize,
}

impl CustomOp1 for MomentsOp {
    fn name(&self) -> &'static str {
        "group-moments"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = contiguous(storage, layout)?;
        let (_, channels, height, width) = layout.shape().dims4()?;
        let group_channels = channels / self.groups;
        let parts = group_channels * height;
        let mut out = vec![0.0_f32; 2 * channels * height];
        let groups = values.par_chunks((parts * width).max(1));
        out.par_chunks_mut((2 * parts).max(1)).zip(groups).for_each(|(out, group)| {
            // Row by row, so that the parts of a strip follow those of the strip above.
            let parts = (0..height).flat_map(|row| (0..group_channels).map(move |channel| channel * height + row));
            for (part, out) in parts.zip(out.chunks_exact_mut(2)) {
                let (mean, squares) = moments_of_row(&group[part * width..][..width]);
                out.copy_from_slice(&[mean, squares]);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((self.groups, parts, 2))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::group_norm::moments((storage, layout), self.groups)
    }
}

vectorized! {
    fn moments_of_row<'a>(row: &'a [f32]) -> (f32, f32) {
        moments(row)
    }

    /// The numbers of a channel by its factor, its mean and its bias.
    fn normalize<'a>(values: &'a [f32], by: [f32; 3], is_activated: bool, out: &'a mut [f32]) {
        let [factor, mean, bias] = by;
        for (out, &value) in out.iter_mut().zip(values) {
            let normed = (value - mean) * factor + bias;
            *out = if is_activated { silu_of(normed) } else { normed };
        }
    }
}

/// Normalizes an image by [`Scales`], with the norm's bias: channels first on the CPU, channels last on CUDA.
struct NormalizeOp {
    is_activated: bool,
}

impl CustomOp3 for NormalizeOp {
    fn name(&self) -> &'static str {
        "group-normalize"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        scales: &CpuStorage,
        scales_l: &Layout,
        bias: &CpuStorage,
        bias_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (values, scales, bias) = (contiguous(x, xl)?, contiguous(scales, scales_l)?, contiguous(bias, bias_l)?);
        let (_, channels, height, width) = xl.shape().dims4()?;
        if bias.len() != channels || scales.len() != 3 * channels {
            bail!("group norm: {} biases and {} scales for {channels} channels", bias.len(), scales.len());
        }
        let positions = (height * width).max(1);
        let mut out = vec![0.0_f32; values.len()];
        out.par_chunks_mut(positions).zip(values.par_chunks(positions)).enumerate().for_each(
            |(channel, (out, values))| {
                // Around the mean: with a mean far from zero, the summand would lose what differs from it.
                let by = [scales[channel], scales[2 * channels + channel], bias[channel]];
                normalize(values, by, self.is_activated, out);
            },
        );
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        scales: &CudaStorage,
        scales_l: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::group_norm::normalize((x, xl), (scales, scales_l), self.is_activated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(mean: f32, shape: &[usize]) -> Tensor {
        Tensor::randn(mean, 2.0, shape, &Device::Cpu).expect("randn")
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().and_then(|tensor| tensor.to_vec1()).expect("values")
    }

    /// For strips of one row, some and a rest, and all rows.
    #[test]
    fn strips_are_normalized_to_the_bits_of_the_whole_image() {
        for (groups, channels, height, width) in [(4, 12, 11, 40), (2, 4, 64, 96), (1, 3, 5, 7)] {
            let norm = GroupNorm::new(groups, 1e-6, random(1.0, &[channels]), random(0.0, &[channels]));
            let x = random(3.0, &[1, channels, height, width]);
            let expected = values(&norm.forward_silu(&x).expect("whole"));
            for rows in [1, 2, 5, height] {
                let strips: Vec<Tensor> = (0..height)
                    .step_by(rows)
                    .map(|top| x.narrow(2, top, rows.min(height - top)).and_then(|strip| strip.contiguous()))
                    .collect::<Result<_>>()
                    .expect("strips");
                let moments = strips.iter().map(|strip| norm.moments(strip)).collect::<Result<Vec<_>>>();
                let scales = norm.scales(&moments.expect("moments")).expect("scales");
                let normed =
                    strips.iter().map(|strip| norm.forward_silu_by(strip, &scales)).collect::<Result<Vec<_>>>();
                let found = Tensor::cat(&normed.expect("normalizes"), 2).expect("an image");
                assert!(
                    values(&found) == expected,
                    "{channels} channels in {groups}, strips of {rows} of {height} rows"
                );
            }
        }
    }

    /// In a dtype that has no op of ours, by candle's operations.
    #[test]
    fn other_dtypes_are_normalized_as_well() {
        let norm = GroupNorm::new(2, 1e-6, random(1.0, &[4]), random(0.0, &[4]));
        let x = random(1.0, &[1, 4, 9, 10]);
        let expected = norm.forward_silu(&x).expect("f32");
        let bf16 = |tensor: &Tensor| tensor.to_dtype(DType::BF16).expect("bf16");
        let rounded = GroupNorm::new(2, 1e-6, bf16(&norm.weight), bf16(&norm.bias));
        let strips = [x.narrow(2, 0, 4), x.narrow(2, 4, 5)].map(|strip| bf16(&strip.expect("a strip")));
        let moments =
            [rounded.moments(&strips[0]), rounded.moments(&strips[1])].map(|moments| moments.expect("moments"));
        let scales = rounded.scales(&moments).expect("scales");
        let normed = strips.map(|strip| rounded.forward_silu_by(&strip, &scales).expect("normalizes"));
        let found = Tensor::cat(&normed, 2).and_then(|found| found.to_dtype(DType::F32)).expect("an image");
        let largest: f32 = (found - expected).and_then(|d| d.abs()?.max_all()?.to_scalar()).expect("same shapes");
        assert!(largest < 0.5, "{largest}");
    }
}
