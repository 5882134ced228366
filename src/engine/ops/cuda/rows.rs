//! Launches of the kernels in `kernels/rows.cu`: operations on each token by itself.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaView, PushKernelArg};
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::modules::Kernels;
use super::{
    Bounds, CHUNK, Matrix, MatrixMut, THREADS, grid, is_aligned, number, push_or_null, with_bias, with_values,
};
use crate::engine::ops::segments::{Places, Segments};

const KERNELS: Kernels = Kernels::new("rows", include_bytes!(concat!(env!("OUT_DIR"), "/rows.fatbin")));

/// [`crate::engine::ops::modulation::modulated_layer_norm`], for a contiguous `x`.
pub(in crate::engine::ops) fn modulated_layer_norm(
    [x, shift, scale]: [(&CudaStorage, &Layout); 3],
    segments: &Segments,
    epsilon: f32,
) -> Result<(CudaStorage, Shape)> {
    let device = x.0.device();
    let [x, shift, scale] = [Matrix::new(x.0, x.1)?, Matrix::new(shift.0, shift.1)?, Matrix::new(scale.0, scale.1)?];
    check_modulation(&x, &[&shift, &scale], segments)?;
    let bounds = Bounds::of(segments)?;
    let kernel = KERNELS.get(device, "modulated_layer_norm")?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(x.rows * x.width) }?;
    let [width, shift_stride, scale_stride] = [number(x.width)?, number(shift.stride)?, number(scale.stride)?];
    let mut launch = kernel.builder();
    launch.arg(&x.values).arg(&shift.values).arg(&scale.values).arg(&mut out).arg(&bounds);
    launch.arg(&width).arg(&shift_stride).arg(&scale_stride).arg(&epsilon);
    // SAFETY: the arguments are those of rows.cu, and the sizes have been compared above. Each warp shares a sum.
    unsafe { launch.launch(grid(x.rows, 1, THREADS / 32 * 4)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((x.rows, x.width))))
}

/// [`crate::engine::ops::modulation::gated_residual`], for contiguous `x` and `y`.
pub(in crate::engine::ops) fn gated_residual(
    [x, y, gate]: [(&CudaStorage, &Layout); 3],
    bias: Option<&Tensor>,
    segments: &Segments,
) -> Result<(CudaStorage, Shape)> {
    let device = x.0.device();
    let [x, y, gate] = [Matrix::new(x.0, x.1)?, Matrix::new(y.0, y.1)?, Matrix::new(gate.0, gate.1)?];
    check_modulation(&x, &[&gate], segments)?;
    if (y.rows, y.width, y.stride) != (x.rows, x.width, x.width) {
        bail!("gated residual: {}x{} on {}x{}", y.rows, y.width, x.rows, x.width);
    }
    let bounds = Bounds::of(segments)?;
    let kernel = KERNELS.get(device, "gated_residual")?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(x.rows * x.width) }?;
    let [width, gate_stride] = [number(x.width)?, number(gate.stride)?];
    with_bias(bias, y.width, |bias| {
        let mut launch = kernel.builder();
        launch.arg(&x.values).arg(&y.values);
        push_or_null(&mut launch, bias.as_ref());
        launch.arg(&gate.values).arg(&mut out).arg(&bounds).arg(&width).arg(&gate_stride);
        // SAFETY: the arguments are those of rows.cu, and the sizes have been compared above.
        unsafe { launch.launch(grid(x.rows, 1, 0)) }.w()?;
        Ok(())
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((x.rows, x.width))))
}

/// Checks that shifts, scales or gates fit a stream: a row for each sequence.
pub(super) fn check_modulation(x: &Matrix, per_sequence: &[&Matrix], segments: &Segments) -> Result<()> {
    let fits = |other: &&Matrix| other.width == x.width && other.rows == segments.count();
    if x.stride != x.width || x.rows != segments.rows() || !per_sequence.iter().all(fits) {
        bail!("modulation: {} rows of {} do not fit {segments:?}", x.rows, x.width);
    }
    Ok(())
}

/// The operands of [`normalize_and_rotate`] besides the stream.
pub(in crate::engine::ops) struct HeadOperands<'a> {
    /// `[3 × heads × head width]`, bf16.
    pub(in crate::engine::ops) bias: Option<&'a Tensor>,
    /// `[head width]` of the queries' and of the keys' norm, bf16.
    pub(in crate::engine::ops) scales: [&'a Tensor; 2],
    /// Cosines and sines, `[rows, head width / 2]`, f32.
    pub(in crate::engine::ops) tables: Option<[&'a Tensor; 2]>,
}

/// Whether the kernel can distribute a head of this width over lanes.
pub(in crate::engine::ops) fn is_shareable(head_width: usize) -> bool {
    head_width.is_multiple_of(CHUNK) && (head_width / CHUNK).is_power_of_two() && head_width / CHUNK <= 32
}

/// [`crate::engine::ops::rope::normalize_and_rotate`], for heads that are [`is_shareable`].
pub(in crate::engine::ops) fn normalize_and_rotate(
    storage: &CudaStorage,
    layout: &Layout,
    operands: &HeadOperands,
    epsilon: f32,
) -> Result<(CudaStorage, Shape)> {
    let shape = layout.shape().clone();
    let device = storage.device();
    // SAFETY: the kernel writes every row.
    let out = unsafe { device.alloc::<bf16>(shape.elem_count()) }?;
    let mut out = CudaStorage::wrap_cuda_slice(out, device.clone());
    let in_order = Places::new(&Segments::from_lengths([shape.dims2()?.0]), [0]);
    let target = (&mut out, &Layout::contiguous(&shape));
    normalize_and_rotate_into(target, &in_order, (storage, layout), operands, epsilon)?;
    Ok((out, shape))
}

/// The same into rows of a contiguous matrix.
pub(in crate::engine::ops) fn normalize_and_rotate_into(
    (out, out_layout): (&mut CudaStorage, &Layout),
    places: &Places,
    (storage, layout): (&CudaStorage, &Layout),
    operands: &HeadOperands,
    epsilon: f32,
) -> Result<()> {
    let (qkv, mut out) = (Matrix::new(storage, layout)?, MatrixMut::new(out, out_layout)?);
    let head_width = operands.scales[0].dim(0)?;
    let heads = qkv.width / 3 / head_width;
    let has_right_tables = |tables: [&Tensor; 2]| {
        tables
            .into_iter()
            .all(|table| table.dims() == [qkv.rows, head_width / 2] && table.layout().start_offset() % 4 == 0)
    };
    let fits = is_shareable(head_width)
        && 3 * heads * head_width == qkv.width
        && operands.scales.into_iter().all(|scale| scale.dims() == [head_width] && is_aligned(scale))
        && operands.tables.is_none_or(has_right_tables);
    if !fits {
        bail!("{} columns, scales and tables do not fit heads of {head_width}", qkv.width);
    }
    let fits_places = places.pairs().all(|(rows, start)| start + rows.len() <= out.rows)
        && [out.width, out.stride] == [qkv.width; 2]
        && places.sources.rows() == qkv.rows;
    if !fits_places {
        bail!("{}x{} does not hold {}x{} at {places:?}", out.rows, out.width, qkv.rows, qkv.width);
    }
    let (sources, targets) = (Bounds::of(&places.sources)?, Bounds::at(&places.starts)?);
    let kernel = KERNELS.get(storage.device(), "normalize_and_rotate")?;
    let numbers = [number(heads)?, number(head_width)?, number(qkv.stride)?];
    with_values::<bf16, _>(operands.scales[0], |query_scale| {
        with_values::<bf16, _>(operands.scales[1], |key_scale| {
            with_bias(operands.bias, qkv.width, |bias| {
                let mut run = |tables: [Option<CudaView<f32>>; 2]| -> Result<()> {
                    let mut launch = kernel.builder();
                    launch.arg(&qkv.values);
                    push_or_null(&mut launch, bias.as_ref());
                    launch.arg(&query_scale).arg(&key_scale);
                    let [cos, sin] = &tables;
                    push_or_null(&mut launch, cos.as_ref());
                    push_or_null(&mut launch, sin.as_ref());
                    launch.arg(&mut out.values).arg(&sources).arg(&targets);
                    launch.arg(&numbers[0]).arg(&numbers[1]).arg(&numbers[2]).arg(&epsilon);
                    // SAFETY: the arguments are those of rows.cu, and the sizes have been compared above.
                    unsafe { launch.launch(grid(qkv.rows, 1, 0)) }.w()?;
                    Ok(())
                };
                match operands.tables {
                    None => run([None, None]),
                    Some([cos, sin]) => {
                        with_values::<f32, _>(cos, |cos| with_values::<f32, _>(sin, |sin| run([Some(cos), Some(sin)])))
                    }
                }
            })
        })
    })
}

/// [`crate::engine::ops::activation::gelu_tanh`].
pub(in crate::engine::ops) fn gelu_tanh(
    storage: &CudaStorage,
    layout: &Layout,
    bias: Option<&Tensor>,
) -> Result<(CudaStorage, Shape)> {
    let device = storage.device();
    let x = Matrix::new(storage, layout)?;
    let kernel = KERNELS.get(device, "gelu_tanh")?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(x.rows * x.width) }?;
    let [width, stride] = [number(x.width)?, number(x.stride)?];
    with_bias(bias, x.width, |bias| {
        let mut launch = kernel.builder();
        launch.arg(&x.values);
        push_or_null(&mut launch, bias.as_ref());
        launch.arg(&mut out).arg(&width).arg(&stride);
        // SAFETY: the arguments are those of rows.cu, and the sizes have been compared above.
        unsafe { launch.launch(grid(x.rows, 1, 0)) }.w()?;
        Ok(())
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((x.rows, x.width))))
}
