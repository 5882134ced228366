//! Launches of the kernels in `kernels/low_rank.cu`.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::CUdeviceptr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Storage, Tensor, bail};
use half::bf16;

use super::modules::Kernels;
use super::{Matrix, MatrixMut, grid, number, values_of};
use crate::engine::ops::low_rank::launches::{Arranged, Launch, Sizes, launches};
use crate::engine::ops::low_rank::part::{LowRankPart, PARTS_MAX};

const KERNELS: Kernels = Kernels::new("low_rank", include_bytes!(concat!(env!("OUT_DIR"), "/low_rank.fatbin")));

/// Threads of a block.
const THREADS: u32 = 128;

/// Bytes of shared memory: four stages of 64 rows and 32 ranks, 64 values of each; and three tiles of 64×64.
const SHRINK_BYTES: usize = 4 * (64 + 32) * 64 * size_of::<bf16>();
const EXPAND_BYTES: usize = 3 * 64 * 64 * size_of::<bf16>();

/// `LowRankPart` in low_rank.cu.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Part {
    down: u64,
    up: u64,
    first_row: i32,
    rows: i32,
    first_column: i32,
    columns: i32,
    rank: i32,
    at: i32,
    scale: f32,
    group: i32,
    first_tile: i32,
    tiles: i32,
}

/// `LowRankParts` in low_rank.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct Parts {
    count: i32,
    at: [Part; PARTS_MAX],
}

// SAFETY: plain numbers, laid out as the kernels' own struct.
unsafe impl DeviceRepr for Parts {}

/// [`crate::engine::ops::low_rank::low_rank_add`], whose parts have been checked.
pub(in crate::engine::ops) fn add(
    (out, out_layout): (&mut CudaStorage, &Layout),
    (x, x_layout): (&CudaStorage, &Layout),
    parts: &[LowRankPart],
) -> Result<()> {
    let device = x.device();
    let (x, mut out) = (Matrix::new(x, x_layout)?, MatrixMut::new(out, out_layout)?);
    let stream = device.cuda_stream();
    let held: Vec<_> = parts.iter().map(|part| [part.down, part.up].map(Tensor::storage_and_layout)).collect();
    let mut addresses = Vec::with_capacity(parts.len());
    for [(down, down_layout), (up, up_layout)] in &held {
        addresses.push([address(down, down_layout, &stream)?, address(up, up_layout, &stream)?]);
    }
    let sizes =
        |part: &LowRankPart| Sizes { rows: part.rows.clone(), columns: part.columns.clone(), rank: part.rank() };
    for launch in launches(&parts.iter().map(sizes).collect::<Vec<_>>()) {
        let arranged = |arranged: &Arranged| {
            let [(down, _), (up, _)] = &addresses[arranged.part];
            part_of(arranged, &parts[arranged.part], [*down, *up])
        };
        let arranged = launch.parts.iter().map(arranged).collect::<Result<Vec<_>>>()?;
        run(&launch, &arranged, (&x, &mut out), device)?;
    }
    Ok(())
}

/// Where a contiguous matrix is. The guard is dropped when all work on it is enqueued.
fn address<'a>(storage: &'a Storage, layout: &Layout, stream: &'a CudaStream) -> Result<(CUdeviceptr, SyncOnDrop<'a>)> {
    let Storage::Cuda(storage) = storage else { bail!("a change on another device than what it changes") };
    Ok(values_of((storage, layout))?.view_ptr(stream))
}

fn part_of(arranged: &Arranged, part: &LowRankPart, [down, up]: [CUdeviceptr; 2]) -> Result<Part> {
    Ok(Part {
        down,
        up,
        first_row: number(part.rows.start)?,
        rows: number(part.rows.len())?,
        first_column: number(part.columns.start)?,
        columns: number(part.columns.len())?,
        rank: number(part.rank())?,
        at: number(arranged.at)?,
        scale: part.scale,
        group: number(arranged.group)?,
        first_tile: number(arranged.first_tile)?,
        tiles: number(arranged.tiles)?,
    })
}

/// The two kernels for changes that are launched together.
fn run(launch: &Launch, arranged: &[Part], (x, out): (&Matrix, &mut MatrixMut), device: &CudaDevice) -> Result<()> {
    let mut parts = Parts { count: number(arranged.len())?, at: [Part::default(); PARTS_MAX] };
    parts.at[..arranged.len()].copy_from_slice(arranged);
    // SAFETY: the first kernel writes every row of every change.
    let mut inner: CudaSlice<bf16> = unsafe { device.alloc(launch.inner) }?;
    let config =
        |blocks: usize, bytes: usize| LaunchConfig { block_dim: (THREADS, 1, 1), ..grid(blocks, 1, bytes as u32) };
    let [shrink, expand] = [KERNELS.get(device, "low_rank_shrink")?, KERNELS.get(device, "low_rank_expand")?];
    let [inputs, x_stride, width, out_stride] =
        [number(x.width)?, number(x.stride)?, number(out.width)?, number(out.stride)?];
    {
        let mut first = shrink.builder();
        first.arg(&x.values).arg(&mut inner).arg(&parts).arg(&inputs).arg(&x_stride);
        // SAFETY: the arguments are those of low_rank.cu, and the sizes have been compared by the caller.
        unsafe { first.launch(config(launch.blocks[0], SHRINK_BYTES)) }.w()?;
    }
    if launch.blocks[1] == 0 {
        return Ok(());
    }
    let mut second = expand.builder();
    second.arg(&mut out.values).arg(&inner).arg(&parts).arg(&width).arg(&out_stride);
    // SAFETY: as above.
    unsafe { second.launch(config(launch.blocks[1], EXPAND_BYTES)) }.w()?;
    Ok(())
}
