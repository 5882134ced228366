//! Launches of the kernels in `kernels/expand.cu`, which expand weights to bf16.

#![expect(unsafe_code, reason = "kernels are launched through the driver")]

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaViewMut, LaunchConfig, PushKernelArg};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Device, Result, Storage, Tensor, bail};
use half::bf16;

use super::modules::Kernels;
use super::{CHUNK, THREADS, grid, number, with_values};
use crate::engine::blocks::BlockType;
use crate::engine::ops::expand::packed::{DeviceCoding, PackedRows};

const KERNELS: Kernels = Kernels::new("expand", include_bytes!(concat!(env!("OUT_DIR"), "/expand.fatbin")));

/// All rows of `parts`, `[rows, columns]`. The sizes have been compared.
pub(in crate::engine::ops) fn expanded(parts: &[PackedRows], rows: usize, columns: usize) -> Result<Tensor> {
    let Some(Device::Cuda(device)) = parts.first().map(|part| part.codes.device()) else {
        bail!("expected rows on a CUDA device");
    };
    // SAFETY: the kernels write every number.
    let mut out = unsafe { device.alloc::<bf16>(rows * columns)? };
    let mut start = 0;
    for part in parts {
        let end = start + part.rows * columns;
        launch(part, &mut out.slice_mut(start..end), device)?;
        start = end;
    }
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(out, device.clone()));
    Ok(Tensor::from_storage(storage, (rows, columns), BackpropOp::none(), false))
}

fn launch(part: &PackedRows, out: &mut CudaViewMut<bf16>, device: &CudaDevice) -> Result<()> {
    let (count, columns) = (part.rows * part.columns, number(part.columns)?);
    let chunks = i64::try_from(count / CHUNK).map_err(candle_core::Error::wrap)?;
    let config: LaunchConfig = grid((count / CHUNK).div_ceil(THREADS as usize), 1, 0);
    with_values::<u8, _>(&part.codes, |codes| {
        match &part.coding {
            DeviceCoding::Blocks(kind, scale) => {
                let kernel = KERNELS.get(device, name_of(*kind))?;
                let mut launch = kernel.builder();
                launch.arg(&codes).arg(out).arg(&chunks).arg(scale);
                // SAFETY: the arguments are those of expand.cu; there are so many blocks of codes, and places for their numbers.
                unsafe { launch.launch(config) }.w()?;
            }
            DeviceCoding::FourBits { levels, block, scales } => {
                let (kernel, block) = (KERNELS.get(device, "expand_four_bits")?, number(*block)?);
                with_values::<f32, _>(levels, |levels| {
                    with_values::<f32, _>(scales, |scales| {
                        let mut launch = kernel.builder();
                        launch.arg(&codes).arg(&levels).arg(&scales).arg(out).arg(&chunks).arg(&block);
                        // SAFETY: as above; there is a scale for each block.
                        unsafe { launch.launch(config) }.w()?;
                        Ok(())
                    })
                })?;
            }
            DeviceCoding::Int8 { scales } => {
                let kernel = KERNELS.get(device, "expand_int8")?;
                with_values::<f32, _>(scales, |scales| {
                    let mut launch = kernel.builder();
                    launch.arg(&codes).arg(&scales).arg(out).arg(&chunks).arg(&columns);
                    // SAFETY: as above; there is a scale for each row.
                    unsafe { launch.launch(config) }.w()?;
                    Ok(())
                })?;
            }
        }
        Ok(())
    })
}

/// The kernel for blocks of a type.
fn name_of(kind: BlockType) -> &'static str {
    match kind {
        BlockType::F32 => "expand_f32",
        BlockType::F16 => "expand_f16",
        BlockType::Bf16 => "expand_bf16",
        BlockType::F8E4M3 => "expand_e4m3",
        BlockType::F8E5M2 => "expand_e5m2",
        BlockType::Q4_0 => "expand_q4_0",
        BlockType::Q4_1 => "expand_q4_1",
        BlockType::Q5_0 => "expand_q5_0",
        BlockType::Q5_1 => "expand_q5_1",
        BlockType::Q8_0 => "expand_q8_0",
        BlockType::Q2K => "expand_q2_k",
        BlockType::Q3K => "expand_q3_k",
        BlockType::Q4K => "expand_q4_k",
        BlockType::Q5K => "expand_q5_k",
        BlockType::Q6K => "expand_q6_k",
        BlockType::Iq4Nl => "expand_iq4_nl",
        BlockType::Iq4Xs => "expand_iq4_xs",
    }
}
