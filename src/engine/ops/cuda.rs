//! Launches of the kernels in `engine/kernels`: from candle's storage to candle's storage, one function for each kernel.
//!
//! All take and give bf16 and move 16 bytes at a time, so widths, strides and starts are multiples of eight values:
//! [`is_aligned`] says whether a tensor's are. Outputs are contiguous.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::{CudaStorage, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use super::Segments;

const ATTENTION: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));
const GROUP_NORM: &str = include_str!(concat!(env!("OUT_DIR"), "/group_norm.ptx"));
const ROWS: &str = include_str!(concat!(env!("OUT_DIR"), "/rows.ptx"));

/// Names under which a device keeps them once they are loaded.
const ATTENTION_MODULE: &str = "fluxserve-attention";
const GROUP_NORM_MODULE: &str = "fluxserve-group-norm";
const ROWS_MODULE: &str = "fluxserve-rows";

/// A pointer to nothing, as an argument.
const NULL: u64 = 0;

/// Values in 16 bytes.
const CHUNK: usize = 8;

/// Most sequences in one launch; `SEQUENCES_MAX` in device.cuh.
pub(super) const SEQUENCES_MAX: usize = 64;

/// Queries that a block of the attention kernel answers, and its threads.
const ATTENTION_QUERIES: usize = 128;

/// Threads of every block.
const THREADS: u32 = 256;

/// Widths of a head that the attention kernel is compiled for.
pub(super) const HEAD_WIDTHS: [usize; 4] = [16, 32, 64, 128];

/// `Bounds` in device.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
struct Bounds {
    count: i32,
    at: [i32; SEQUENCES_MAX + 1],
}

// SAFETY: plain numbers, laid out as the kernels' own struct.
unsafe impl DeviceRepr for Bounds {}

impl Bounds {
    fn of(segments: &Segments) -> Result<Self> {
        if segments.count() > SEQUENCES_MAX {
            bail!("{} sequences in one launch, of at most {SEQUENCES_MAX}", segments.count());
        }
        let mut bounds = Self { count: segments.count() as i32, at: [0; SEQUENCES_MAX + 1] };
        for (at, range) in bounds.at[1..].iter_mut().zip(segments.ranges()) {
            *at = number(range.end)?;
        }
        Ok(bounds)
    }
}

/// Whether the kernels can read a tensor in place: rows of whole chunks that begin on chunks.
pub(super) fn is_aligned(tensor: &Tensor) -> bool {
    let layout = tensor.layout();
    let [.., stride, 1] = *layout.stride() else {
        return layout.stride() == [1] && layout.start_offset().is_multiple_of(CHUNK);
    };
    let width = layout.dims()[layout.dims().len() - 1];
    [width, stride, layout.start_offset()].into_iter().all(|count| count.is_multiple_of(CHUNK))
}

/// A matrix on the device whose rows need not touch.
struct Matrix<'a> {
    values: CudaView<'a, bf16>,
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> Matrix<'a> {
    fn new(storage: &'a CudaStorage, layout: &Layout) -> Result<Self> {
        let (rows, width) = layout.shape().dims2()?;
        let [stride, 1] = *layout.stride() else { bail!("expected contiguous rows, found {:?}", layout.stride()) };
        let start = layout.start_offset();
        if [start, width, stride].into_iter().any(|count| !count.is_multiple_of(CHUNK)) {
            bail!("rows of {width} values, {stride} apart from {start} on, are not in chunks of {CHUNK}");
        }
        Ok(Self { values: storage.as_cuda_slice::<bf16>()?.slice(start..), rows, width, stride })
    }
}

/// Calls `body` with a contiguous tensor's values on the device.
fn with_values<T: candle_core::cuda_backend::CudaDType, R>(
    tensor: &Tensor,
    body: impl FnOnce(CudaView<T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("expected a contiguous tensor on a CUDA device");
    };
    body(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// Calls `body` with the bias of `width` columns, if there is one.
fn with_bias<R>(
    bias: Option<&Tensor>,
    width: usize,
    body: impl FnOnce(Option<CudaView<bf16>>) -> Result<R>,
) -> Result<R> {
    match bias {
        None => body(None),
        Some(bias) if bias.dims() != [width] => bail!("a bias of {:?} for {width} columns", bias.dims()),
        Some(bias) => with_values(bias, |bias| body(Some(bias))),
    }
}

fn number(count: usize) -> Result<i32> {
    i32::try_from(count).map_err(candle_core::Error::wrap)
}

fn grid(blocks: usize, heads: usize, shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks as u32, heads as u32, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes }
}

/// [`super::attention::attention`], for a `qkv` whose rows touch and a head width of [`HEAD_WIDTHS`].
pub(super) fn attention(
    storage: &CudaStorage,
    layout: &Layout,
    heads: usize,
    segments: &Segments,
) -> Result<(CudaStorage, Shape)> {
    let qkv = Matrix::new(storage, layout)?;
    let part = qkv.width / 3;
    let head_width = part / heads;
    let fits = qkv.stride == qkv.width && 3 * heads * head_width == qkv.width && qkv.rows == segments.rows();
    if !fits || !HEAD_WIDTHS.contains(&head_width) {
        bail!("attention: {}x{} is not {segments:?} of three parts of {heads} heads", qkv.rows, qkv.width);
    }
    let bounds = Bounds::of(segments)?;
    let blocks = segments.ranges().map(|range| range.len().div_ceil(ATTENTION_QUERIES)).sum();
    let device = storage.device();
    let kernel = device.get_or_load_custom_func(&format!("attention_{head_width}"), ATTENTION_MODULE, ATTENTION)?;
    // Two stages of 64 keys and 64 values; more than a kernel may have unasked.
    let shared = 2 * 2 * 64 * head_width * size_of::<bf16>();
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, number(shared)?).w()?;
    // SAFETY: the kernel writes every row of every sequence, which are all rows.
    let mut out = unsafe { device.alloc::<bf16>(qkv.rows * part) }?;
    let (heads_argument, scale) = (number(heads)?, 1.0 / (head_width as f32).sqrt());
    let mut launch = kernel.builder();
    launch.arg(&qkv.values).arg(&mut out).arg(&bounds).arg(&heads_argument).arg(&scale);
    // SAFETY: the arguments are those of attention.cu, and the sizes have been compared above.
    unsafe { launch.launch(grid(blocks, heads, shared as u32)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((qkv.rows, part))))
}

/// [`super::modulation::modulated_layer_norm`], for an `x` whose rows touch.
pub(super) fn modulated_layer_norm(
    [x, shift, scale]: [(&CudaStorage, &Layout); 3],
    segments: &Segments,
    epsilon: f32,
) -> Result<(CudaStorage, Shape)> {
    let device = x.0.device();
    let [x, shift, scale] = [Matrix::new(x.0, x.1)?, Matrix::new(shift.0, shift.1)?, Matrix::new(scale.0, scale.1)?];
    check_modulation(&x, &[&shift, &scale], segments)?;
    let bounds = Bounds::of(segments)?;
    let kernel = device.get_or_load_custom_func("modulated_layer_norm", ROWS_MODULE, ROWS)?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(x.rows * x.width) }?;
    let [width, shift_stride, scale_stride] = [number(x.width)?, number(shift.stride)?, number(scale.stride)?];
    let mut launch = kernel.builder();
    launch.arg(&x.values).arg(&shift.values).arg(&scale.values).arg(&mut out).arg(&bounds);
    launch.arg(&width).arg(&shift_stride).arg(&scale_stride).arg(&epsilon);
    // SAFETY: the arguments are those of rows.cu, and the sizes have been compared above. A sum for each warp is shared.
    unsafe { launch.launch(grid(x.rows, 1, THREADS / 32 * 4)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((x.rows, x.width))))
}

/// [`super::modulation::gated_residual`], for an `x` and a `y` whose rows touch.
pub(super) fn gated_residual(
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
    let kernel = device.get_or_load_custom_func("gated_residual", ROWS_MODULE, ROWS)?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(x.rows * x.width) }?;
    let [width, gate_stride] = [number(x.width)?, number(gate.stride)?];
    with_bias(bias, y.width, |bias| {
        let mut launch = kernel.builder();
        launch.arg(&x.values).arg(&y.values);
        match &bias {
            Some(bias) => launch.arg(bias),
            None => launch.arg(&NULL),
        };
        launch.arg(&gate.values).arg(&mut out).arg(&bounds).arg(&width).arg(&gate_stride);
        // SAFETY: the arguments are those of rows.cu, and the sizes have been compared above.
        unsafe { launch.launch(grid(x.rows, 1, 0)) }.w()?;
        Ok(())
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((x.rows, x.width))))
}

fn check_modulation(x: &Matrix, per_sequence: &[&Matrix], segments: &Segments) -> Result<()> {
    let fits = |other: &&Matrix| other.width == x.width && other.rows == segments.count();
    if x.stride != x.width || x.rows != segments.rows() || !per_sequence.iter().all(fits) {
        bail!("modulation: {} rows of {} do not fit {segments:?}", x.rows, x.width);
    }
    Ok(())
}

/// What [`normalize_and_rotate`] is given besides the stream.
pub(super) struct HeadOperands<'a> {
    /// `[3 × heads × head width]`, bf16.
    pub(super) bias: Option<&'a Tensor>,
    /// `[head width]` of the queries' and of the keys' norm, bf16.
    pub(super) scales: [&'a Tensor; 2],
    /// Cosines and sines, `[rows, head width / 2]`, f32.
    pub(super) tables: Option<[&'a Tensor; 2]>,
}

/// Whether the kernel can share a head of this width out among lanes.
pub(super) fn is_shareable(head_width: usize) -> bool {
    head_width.is_multiple_of(CHUNK) && (head_width / CHUNK).is_power_of_two() && head_width / CHUNK <= 32
}

/// [`super::rope::normalize_and_rotate`], for heads that are [`is_shareable`].
pub(super) fn normalize_and_rotate(
    storage: &CudaStorage,
    layout: &Layout,
    operands: &HeadOperands,
    epsilon: f32,
) -> Result<(CudaStorage, Shape)> {
    let qkv = Matrix::new(storage, layout)?;
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
    let device = storage.device();
    let kernel = device.get_or_load_custom_func("normalize_and_rotate", ROWS_MODULE, ROWS)?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(qkv.rows * qkv.width) }?;
    let numbers = [number(heads)?, number(head_width)?, number(qkv.stride)?];
    with_values::<bf16, _>(operands.scales[0], |query_scale| {
        with_values::<bf16, _>(operands.scales[1], |key_scale| {
            with_bias(operands.bias, qkv.width, |bias| {
                let mut run = |tables: Option<[CudaView<f32>; 2]>| -> Result<()> {
                    let mut launch = kernel.builder();
                    launch.arg(&qkv.values);
                    match &bias {
                        Some(bias) => launch.arg(bias),
                        None => launch.arg(&NULL),
                    };
                    launch.arg(&query_scale).arg(&key_scale);
                    match &tables {
                        Some([cos, sin]) => launch.arg(cos).arg(sin),
                        None => launch.arg(&NULL).arg(&NULL),
                    };
                    launch.arg(&mut out).arg(&numbers[0]).arg(&numbers[1]).arg(&numbers[2]).arg(&epsilon);
                    // SAFETY: the arguments are those of rows.cu, and the sizes have been compared above.
                    unsafe { launch.launch(grid(qkv.rows, 1, 0)) }.w()?;
                    Ok(())
                };
                match operands.tables {
                    None => run(None),
                    Some([cos, sin]) => {
                        with_values::<f32, _>(cos, |cos| with_values::<f32, _>(sin, |sin| run(Some([cos, sin]))))
                    }
                }
            })
        })
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((qkv.rows, qkv.width))))
}

/// [`super::activation::beside_gelu_tanh`]; without a left side, GELU alone.
pub(super) fn beside_gelu_tanh(
    left: Option<(&CudaStorage, &Layout)>,
    right: (&CudaStorage, &Layout),
    bias: Option<&Tensor>,
) -> Result<(CudaStorage, Shape)> {
    let device = right.0.device();
    let right = Matrix::new(right.0, right.1)?;
    let left = left.map(|(storage, layout)| Matrix::new(storage, layout)).transpose()?;
    if let Some(left) = &left
        && left.rows != right.rows
    {
        bail!("{} rows beside {}", left.rows, right.rows);
    }
    let (left_width, left_stride) = left.as_ref().map_or((0, 0), |left| (left.width, left.stride));
    let width = left_width + right.width;
    let kernel = device.get_or_load_custom_func("beside_gelu_tanh", ROWS_MODULE, ROWS)?;
    // SAFETY: the kernel writes every row.
    let mut out = unsafe { device.alloc::<bf16>(right.rows * width) }?;
    let numbers = [number(left_width)?, number(right.width)?, number(left_stride)?, number(right.stride)?];
    with_bias(bias, right.width, |bias| {
        let mut launch = kernel.builder();
        // Where there is no left side, nothing is read from it.
        launch.arg(left.as_ref().map_or(&right.values, |left| &left.values)).arg(&right.values);
        match &bias {
            Some(bias) => launch.arg(bias),
            None => launch.arg(&NULL),
        };
        launch.arg(&mut out).arg(&numbers[0]).arg(&numbers[1]).arg(&numbers[2]).arg(&numbers[3]);
        // SAFETY: the arguments are those of rows.cu, and the sizes have been compared above.
        unsafe { launch.launch(grid(right.rows, 1, 0)) }.w()?;
        Ok(())
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((right.rows, width))))
}

/// What the channels of a picture are shared out to.
#[derive(Clone, Copy)]
pub(super) struct GroupNormShape {
    pub(super) channels: usize,
    pub(super) groups: usize,
}

/// Blocks that take the moments of one group, and chunks that a block of the second kernel writes.
const GROUP_PARTS: usize = 64;
const GROUP_NORM_CHUNKS: usize = 4 * THREADS as usize;

/// [`super::group_norm::GroupNorm`] of one contiguous picture whose channels are whole chunks.
pub(super) fn group_norm(
    [x, weight, bias]: [(&CudaStorage, &Layout); 3],
    shape: GroupNormShape,
    epsilon: f32,
    is_activated: bool,
) -> Result<(CudaStorage, Shape)> {
    let GroupNormShape { channels, groups } = shape;
    let device = x.0.device();
    let values = |(storage, layout): (&'_ CudaStorage, &Layout)| match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => bail!("group norm: {:?} of {:?} is not contiguous", layout.stride(), storage.dtype()),
    };
    let [(start, end), (weight_start, weight_end), (bias_start, bias_end)] =
        [values(x)?, values(weight)?, values(bias)?];
    let count = end - start;
    let channel_chunks = count / channels / CHUNK;
    let is_whole = count == channels * channel_chunks * CHUNK && start.is_multiple_of(CHUNK);
    if !is_whole || [weight_end - weight_start, bias_end - bias_start] != [channels; 2] {
        bail!("group norm: {count} values, {channels} channels: not in chunks of {CHUNK}, or other weights");
    }
    let pixels = x.0.as_cuda_slice::<bf16>()?.slice(start..end);
    let weight = weight.0.as_cuda_slice::<bf16>()?.slice(weight_start..weight_end);
    let bias = bias.0.as_cuda_slice::<bf16>()?.slice(bias_start..bias_end);
    // SAFETY: the first kernel writes the moments of every part of every group, the second every value.
    let (mut moments, mut out) =
        unsafe { (device.alloc::<f32>(2 * groups * GROUP_PARTS)?, device.alloc::<bf16>(count)?) };
    let group_channels = channels / groups;
    let shared = THREADS / 32 * 4;

    let kernel = device.get_or_load_custom_func("group_moments", GROUP_NORM_MODULE, GROUP_NORM)?;
    let group_chunks = (channel_chunks * group_channels) as i64;
    let mut launch = kernel.builder();
    launch.arg(&pixels).arg(&mut moments).arg(&group_chunks);
    // SAFETY: the arguments are those of group_norm.cu, and the sizes have been compared above.
    unsafe { launch.launch(grid(GROUP_PARTS, groups, shared)) }.w()?;

    let kernel = device.get_or_load_custom_func("group_norm", GROUP_NORM_MODULE, GROUP_NORM)?;
    let (chunks, group_channels, is_activated) =
        (channel_chunks as i64, number(group_channels)?, i32::from(is_activated));
    let mut launch = kernel.builder();
    launch.arg(&pixels).arg(&moments).arg(&weight).arg(&bias).arg(&mut out);
    launch.arg(&chunks).arg(&group_channels).arg(&epsilon).arg(&is_activated);
    // SAFETY: as above.
    unsafe { launch.launch(grid(channel_chunks.div_ceil(GROUP_NORM_CHUNKS), channels, shared)) }.w()?;
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), x.1.shape().clone()))
}
