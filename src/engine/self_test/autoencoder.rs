//! The autoencoder's operations, and a small image decoded with random weights.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use crate::engine::models::flux1::Decoder;
use crate::engine::models::flux1::config::VaeConfig;
use crate::engine::ops::convolution::{Convolution, KERNELS};
use crate::engine::ops::group_norm::GroupNorm;
use crate::engine::ops::kernel::Kernel;
use crate::engine::ops::softmax::softmax;

use super::{Op, OpReport, Operands, numbers};

/// Channels of the small autoencoder's latents.
const LATENT_CHANNELS: usize = 16;

impl Operands {
    /// Sizes are no multiples of a tile, and some channels no multiple of a chunk.
    pub(super) fn autoencoder(&self) -> Result<Vec<OpReport>> {
        let image = |seed, channels, height, width| self.random(seed, &[1, channels, height, width]);
        let channels = |seed, count| self.random(seed, &[count]);
        let kernel = |seed, outputs: usize, inputs: usize, side: usize| {
            // So that outputs have about the deviation of the inputs.
            let scaled = (self.random(seed, &[outputs, inputs, side, side])? / ((inputs * side * side) as f64).sqrt())?;
            scaled.to_dtype(self.dtype)?.to_dtype(DType::F32)
        };
        let onto = vec![image(40, 72, 19, 33)?, kernel(41, 136, 72, 3)?, channels(42, 136)?, image(43, 136, 19, 33)?];
        let doubled = vec![image(47, 48, 7, 18)?, kernel(48, 48, 48, 3)?, channels(49, 48)?];
        let onto_residual =
            |kernel, x: &[Tensor]| Convolution::by(kernel, &x[1], &x[2], false)?.forward_onto(&x[0], &x[3]);
        let of_doubled = |kernel, x: &[Tensor]| Convolution::by(kernel, &x[1], &x[2], true)?.forward(&x[0]);
        let ops: [(&'static str, Vec<Tensor>, Op); 7] = [
            ("convolution onto a residual", onto.clone(), &|x| onto_residual(Kernel::Warp, x)),
            ("convolution to colors", vec![image(44, 24, 9, 17)?, kernel(45, 3, 24, 3)?, channels(46, 3)?], &|x| {
                Convolution::new(&x[1], &x[2])?.forward(&x[0])
            }),
            ("convolution, doubled", doubled.clone(), &|x| of_doubled(Kernel::Warp, x)),
            ("convolution 1x1", vec![image(50, 48, 7, 18)?, kernel(51, 40, 48, 1)?, channels(52, 40)?], &|x| {
                Convolution::new(&x[1], &x[2])?.forward(&x[0])
            }),
            ("group norm of sixes", vec![image(53, 48, 13, 11)?, channels(54, 48)?, channels(55, 48)?], &|x| {
                GroupNorm::new(8, 1e-6, x[1].clone(), x[2].clone()).forward(&x[0])
            }),
            ("softmax", vec![self.random(56, &[3, 264])?], &|x| softmax(&x[0], 0.3)),
            ("decoder", vec![image(57, LATENT_CHANNELS, 10, 12)?], &|x| {
                random_decoder(x[0].dtype(), x[0].device())?.decode(&x[0].to_dtype(DType::F32)?)
            }),
        ];
        let mut reports = ops.map(|(name, operands, op)| self.compare(name, &operands, op));
        // A dozen layers, which all round.
        if let Some(Ok(decoder)) = reports.last_mut() {
            decoder.tolerance *= 4.0;
        }
        let mut reports = reports.into_iter().collect::<Result<Vec<_>>>()?;
        if KERNELS.kernels(&self.device).contains(&Kernel::Warpgroup) {
            let op: Op = &|x| onto_residual(Kernel::Warpgroup, x);
            reports.push(self.compare("convolution by warpgroups", &onto, op)?);
            let op: Op = &|x| of_doubled(Kernel::Warpgroup, x);
            reports.push(self.compare("doubled, by warpgroups", &doubled, op)?);
        }
        Ok(reports)
    }
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
