//! The autoencoder: its layers in their own widths, and a small image decoded with random weights.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::operation::{Numbers, Operation, numbers};
use super::shapes::{wide_convolution, wide_doubled};
use crate::domain::operation_group::OperationGroup::Autoencoder;
use crate::engine::models::flux1::Decoder;
use crate::engine::models::flux1::config::VaeConfig;
use crate::engine::ops::Segments;
use crate::engine::ops::attention::attention;
use crate::engine::ops::convolution::Convolution;
use crate::engine::ops::group_norm::GroupNorm;
use crate::engine::ops::kernel::Kernel;

/// Channels of the small autoencoder's latents.
const LATENT_CHANNELS: usize = 16;

/// Positions of a small image, for the attention in the middle of the decoder.
const POSITIONS: usize = 300;

/// The operations.
pub(super) const OPERATIONS: &[Operation] = &[
    of("convolution, 256 to 128 channels", wide_convolution, |x| {
        Convolution::by(Kernel::Warp, &x[1], &x[2], false)?.forward_onto(&x[0], &x[3])
    }),
    of("convolution, doubled, 256 channels", wide_doubled, |x| {
        Convolution::by(Kernel::Warp, &x[1], &x[2], true)?.forward(&x[0])
    }),
    of("convolution 1x1, 256 to 128 channels", |numbers| convolution(numbers, [256, 128], 1), by_warps),
    of("convolution, latents to 512 channels", |numbers| convolution(numbers, [LATENT_CHANNELS, 512], 3), by_warps),
    of("convolution, 128 channels to colors", |numbers| convolution(numbers, [128, 3], 3), by_warps),
    of("group norm, SiLU, 128 channels", |numbers| norm(numbers, 128), norm_silu),
    of("group norm, SiLU, 512 channels", |numbers| norm(numbers, 512), norm_silu),
    Operation {
        // Scores and weights are rounded as well.
        roundings: 2.0,
        ..of(
            "attention of one head of 512",
            |numbers| Ok(vec![numbers.random(86, &[POSITIONS, 3 * 512])?]),
            |x| attention(&x[0], 1, &Segments::from_lengths([POSITIONS])),
        )
    },
    Operation {
        // A dozen layers, which all round.
        roundings: 4.0,
        ..of(
            "decoder",
            |numbers| Ok(vec![numbers.random(57, &[1, LATENT_CHANNELS, 10, 12])?]),
            |x| random_decoder(x[0].dtype(), x[0].device())?.decode(&x[0].to_dtype(DType::F32)?),
        )
    },
    Operation {
        roundings: 4.0,
        ..of(
            "decoder, in two strips",
            |numbers| Ok(vec![numbers.random(58, &[1, LATENT_CHANNELS, 20, 12])?]),
            |x| {
                let decoder = random_decoder(x[0].dtype(), x[0].device())?.with_whole_pixels_max(0);
                decoder.decode(&x[0].to_dtype(DType::F32)?)
            },
        )
    },
];

const fn of(
    name: &'static str,
    operands: fn(&Numbers) -> Result<Vec<Tensor>>,
    op: fn(&[Tensor]) -> Result<Tensor>,
) -> Operation {
    Operation { group: Autoencoder, name, operands, op, roundings: 1.0 }
}

fn convolution(numbers: &Numbers, [inputs, outputs]: [usize; 2], side: usize) -> Result<Vec<Tensor>> {
    let image = numbers.random(80, &[1, inputs, 24, 40])?;
    Ok(vec![image, numbers.weight(81, &[outputs, inputs, side, side])?, numbers.random(82, &[outputs])?])
}

fn by_warps(x: &[Tensor]) -> Result<Tensor> {
    Convolution::by(Kernel::Warp, &x[1], &x[2], false)?.forward(&x[0])
}

fn norm(numbers: &Numbers, channels: usize) -> Result<Vec<Tensor>> {
    let image = numbers.random(83, &[1, channels, 50, 70])?;
    Ok(vec![image, numbers.random(84, &[channels])?, numbers.random(85, &[channels])?])
}

fn norm_silu(x: &[Tensor]) -> Result<Tensor> {
    GroupNorm::new(32, 1e-6, x[1].clone(), x[2].clone()).forward_silu(&x[0])
}

/// A decoder on a device: two levels, whose groups are five and six channels wide, and an attention of a head width for which
/// there is no kernel.
fn random_decoder(dtype: DType, device: &Device) -> Result<Decoder> {
    let config = VaeConfig {
        in_channels: 3,
        out_channels: 3,
        latent_channels: LATENT_CHANNELS,
        block_out_channels: vec![40, 48],
        layers_per_block: 1,
        norm_num_groups: 8,
        scaling_factor: 0.3611,
        shift_factor: 0.1159,
        mid_block_add_attention: true,
        use_quant_conv: false,
        use_post_quant_conv: false,
    };
    Decoder::load(&config, &VarBuilder::from_backend(Box::new(RandomWeights), dtype, device.clone()))
}

/// Numbers that depend on a tensor's name alone and are exact in bf16. Each layer's output has about the deviation of its input.
struct RandomWeights;

impl SimpleBackend for RandomWeights {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let seed = name.bytes().fold(0_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let numbers = Tensor::from_vec(numbers(seed, shape.elem_count()), &shape, &Device::Cpu)?;
        let inputs: usize = shape.dims().iter().skip(1).product();
        let is_norm = shape.rank() == 1 && name.ends_with("weight");
        let (factor, mean) = if is_norm { (0.2, 1.0) } else { (1.0 / (inputs as f64).sqrt(), 0.0) };
        numbers.affine(factor, mean)?.to_dtype(DType::BF16)?.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("`{name}` has no shape of its own")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
