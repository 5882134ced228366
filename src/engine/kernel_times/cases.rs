//! The kernels that are timed, and their shapes.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::domain::device::Kernels;
use crate::domain::precision::Precision;
use crate::engine::device;
use crate::engine::ops::attention::{self, attention_by};
use crate::engine::ops::convolution::{self, Convolution};
use crate::engine::ops::group_norm::GroupNorm;
use crate::engine::ops::kernel::{Choice, Kernel, NO_WARPGROUPS};
use crate::engine::ops::linear::{gelu_linear, gelu_linear_into, linear};
use crate::engine::ops::modulation::{gated_residual, modulated_layer_norm};
use crate::engine::ops::quantize::{self, Quantized};
use crate::engine::ops::rope::{Rotary, normalize_and_rotate};
use crate::engine::ops::{Segments, channels_first, unwritten};
use crate::engine::storage::check_device;

/// Starts a kernel once.
pub(super) type Launch = Box<dyn Fn() -> Result<()>>;

/// A kernel with its operands.
pub(super) struct Case {
    pub(super) kernel: String,
    pub(super) shape: String,
    /// Multiplications and additions, if these limit it.
    pub(super) flops: Option<f64>,
    /// Bytes read and written, if these limit it.
    pub(super) bytes: Option<f64>,
    /// Why it is not timed, if it is not.
    pub(super) skipped: Option<String>,
    /// Makes random operands on the device.
    pub(super) prepare: Box<dyn Fn() -> Result<Launch>>,
}

/// The sizes of everything.
pub(super) struct Scale {
    /// Its name in reports.
    pub(super) name: &'static str,
    heads: usize,
    head_width: usize,
    /// How a head's width is given to time, row and column.
    axes: [usize; 3],
    /// How many sequences of how many tokens.
    sequences: [(usize, usize); 2],
    /// The side of the decoded image, and its channels in the last levels.
    side: usize,
    channels: [usize; 2],
    groups: usize,
}

impl Scale {
    /// Of FLUX.1-dev, an image of this side in pixels, a multiple of 32, with 512 tokens of text, and eight of half the side.
    pub(super) fn flux(side: usize) -> Self {
        let tokens = |side: usize| 512 + (side / 16).pow(2);
        Self {
            name: "flux",
            heads: 24,
            head_width: 128,
            axes: [16, 56, 56],
            sequences: [(1, tokens(side)), (8, tokens(side / 2))],
            side,
            channels: [128, 256],
            groups: 32,
        }
    }

    /// Small enough for a CPU.
    pub(super) const SMALL: Self = Self {
        name: "small",
        heads: 2,
        head_width: 32,
        axes: [8, 12, 12],
        sequences: [(1, 72), (4, 24)],
        side: 32,
        channels: [16, 32],
        groups: 8,
    };

    fn hidden(&self) -> usize {
        self.heads * self.head_width
    }

    /// Tokens of the largest image.
    fn rows(&self) -> usize {
        self.sequences[0].1
    }
}

/// All cases, in the order in which they are timed.
pub(super) fn cases(device: &Device, kernels: Kernels, scale: &Scale) -> Vec<Case> {
    // Last the kernel that nothing uses yet: a fault of it costs no other time.
    let all = All { device: device.clone(), dtype: device::dtype(device), kernels };
    [
        all.attentions(scale, &[Kernel::Warp, Kernel::Warpgroup]),
        all.linears(scale),
        all.e4m3(scale),
        all.rows(scale),
        all.convolutions(scale),
        all.norms(scale),
        all.attentions(scale, &[Kernel::OrderedWarpgroup]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Makes the cases of one device.
#[derive(Clone)]
struct All {
    device: Device,
    dtype: DType,
    kernels: Kernels,
}

impl All {
    /// Random numbers on the device.
    fn random(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::randn(0.0_f32, 1.0, shape, &self.device)?.to_dtype(self.dtype)
    }

    /// A random weight, so that outputs have about the deviation of the inputs.
    fn weight(&self, shape: &[usize]) -> Result<Tensor> {
        let inputs: usize = shape.iter().skip(1).product();
        let weight = (Tensor::randn(0.0_f32, 1.0, shape, &self.device)? / (inputs as f64).sqrt())?;
        weight.to_dtype(self.dtype)
    }

    /// A random image `[1, channels, side, side]` in the device's memory order.
    fn image(&self, channels: usize, side: usize) -> Result<Tensor> {
        let image = self.random(&[1, side, side, channels])?;
        if self.device.is_cpu() { channels_first(&image)?.contiguous() } else { channels_first(&image) }
    }

    fn bytes(&self, values: usize) -> f64 {
        (values * self.dtype.size_in_bytes()) as f64
    }

    /// Each of the kernels of an operation, and why it is not timed, if it is not.
    fn by_kernel(&self, choice: &Choice, kernels: &[Kernel]) -> Vec<(Kernel, Option<String>)> {
        let has_both = choice.kernels(&self.device).contains(&Kernel::Warpgroup);
        let skipped = match self.kernels {
            Kernels::Portable => Some("only the portable kernels were asked for".to_owned()),
            Kernels::Auto => (!has_both).then(|| NO_WARPGROUPS.to_owned()),
        };
        kernels.iter().map(|&kernel| (kernel, skipped.clone().filter(|_| kernel != Kernel::Warp))).collect()
    }

    /// A case limited by arithmetic.
    fn computing<F: Fn() -> Result<Tensor> + 'static>(
        &self,
        [kernel, shape]: [String; 2],
        flops: f64,
        prepare: impl Fn(&Self) -> Result<F> + 'static,
    ) -> Case {
        let all = self.clone();
        let prepare = move || -> Result<Launch> {
            let launch = prepare(&all)?;
            Ok(Box::new(move || launch().map(drop)))
        };
        Case { kernel, shape, flops: Some(flops), bytes: None, skipped: None, prepare: Box::new(prepare) }
    }

    /// A case limited by memory.
    fn moving<F: Fn() -> Result<Tensor> + 'static>(
        &self,
        names: [String; 2],
        bytes: f64,
        prepare: impl Fn(&Self) -> Result<F> + 'static,
    ) -> Case {
        Case { flops: None, bytes: Some(bytes), ..self.computing(names, 0.0, prepare) }
    }

    fn attentions(&self, scale: &Scale, kernels: &[Kernel]) -> Vec<Case> {
        let (heads, hidden) = (scale.heads, scale.hidden());
        let mut cases = Vec::new();
        for (count, tokens) in scale.sequences {
            for (kernel, skipped) in self.by_kernel(&attention::KERNELS, kernels) {
                let name = format!("attention, {}", kernel.name());
                let shape = format!("{count} × {tokens} tokens, {heads} heads of {}", scale.head_width);
                let flops = 4.0 * (count * tokens * tokens * hidden) as f64;
                let case = self.computing([name, shape], flops, move |all| {
                    let qkv = all.random(&[count * tokens, 3 * hidden])?;
                    let segments = Segments::from_lengths(vec![tokens; count]);
                    if kernel == Kernel::OrderedWarpgroup {
                        let by = |kernel| attention_by(kernel, &qkv, heads, &segments);
                        check_agreement(&by(Kernel::Warpgroup)?, &by(kernel)?)?;
                    }
                    Ok(move || attention_by(kernel, &qkv, heads, &segments))
                });
                cases.push(Case { skipped, ..case });
            }
        }
        cases
    }

    fn linears(&self, scale: &Scale) -> Vec<Case> {
        let (rows, hidden) = (scale.rows(), scale.hidden());
        let plain =
            [[hidden, 3 * hidden], [hidden, hidden], [4 * hidden, hidden], [hidden, 7 * hidden], [5 * hidden, hidden]];
        let mut cases = Vec::new();
        for [inputs, outputs] in plain {
            let names = ["linear".to_owned(), of_layer(rows, inputs, outputs)];
            cases.push(self.computing(names, flops_of(rows, inputs, outputs), move |all| {
                let [x, weight, bias] = all.layer(rows, inputs, outputs)?;
                Ok(move || linear(&x, &weight, Some(&bias)))
            }));
        }
        let (inputs, outputs) = (hidden, 4 * hidden);
        let names = |name: &str| [name.to_owned(), of_layer(rows, inputs, outputs)];
        let flops = flops_of(rows, inputs, outputs);
        cases.push(self.computing(names("linear, GELU"), flops, move |all| {
            let [x, weight, bias] = all.layer(rows, inputs, outputs)?;
            Ok(move || gelu_linear(&x, &weight, Some(&bias)))
        }));
        // As a single block does.
        cases.push(self.computing(names("linear, GELU, into a wider matrix"), flops, move |all| {
            let [x, weight, bias] = all.layer(rows, inputs, outputs)?;
            let wide = unwritten(rows, inputs + outputs, &x)?;
            Ok(move || gelu_linear_into(&wide, inputs, &x, &weight, Some(&bias)).map(|()| wide.clone()))
        }));
        cases
    }

    /// Rows, weight and bias of a layer.
    fn layer(&self, rows: usize, inputs: usize, outputs: usize) -> Result<[Tensor; 3]> {
        Ok([self.random(&[rows, inputs])?, self.weight(&[outputs, inputs])?, self.random(&[outputs])?])
    }

    fn e4m3(&self, scale: &Scale) -> Vec<Case> {
        let (rows, hidden) = (scale.rows(), scale.hidden());
        let skipped = check_device(&self.device, Precision::Fp8).err().map(|error| error.to_string());
        let shapes = [[1, 3], [1, 4], [4, 1], [1, 7], [5, 1]].map(|shape| shape.map(|factor| factor * hidden));
        let products = shapes.map(|[inputs, outputs]| {
            let names = ["linear, e4m3".to_owned(), of_layer(rows, inputs, outputs)];
            self.computing(names, flops_of(rows, inputs, outputs), move |all| {
                let [x, weight, _] = all.layer(rows, inputs, outputs)?;
                let (x, weight) = (Quantized::of(&x)?, Quantized::of(&weight)?);
                // The next operation adds the bias.
                Ok(move || quantize::product(&x, &weight, None)?.biased())
            })
        });
        let names = ["quantize to e4m3".to_owned(), format!("{rows} rows of {hidden}")];
        let bytes = self.bytes(rows * hidden) + Quantized::bytes(rows, hidden) as f64;
        let quantize = self.moving(names, bytes, move |all| {
            let x = all.random(&[rows, hidden])?;
            Ok(move || Quantized::of(&x).map(|_| x.clone()))
        });
        products.into_iter().chain([quantize]).map(|case| Case { skipped: skipped.clone(), ..case }).collect()
    }

    /// What is between the matrix products of a block.
    fn rows(&self, scale: &Scale) -> Vec<Case> {
        let (rows, hidden, head_width, axes) = (scale.rows(), scale.hidden(), scale.head_width, scale.axes);
        let shape = format!("{rows} rows of {hidden}");
        let norm = self.moving(
            ["modulated layer norm".to_owned(), shape.clone()],
            self.bytes(2 * rows * hidden),
            move |all| {
                let (x, shift, scale) =
                    (all.random(&[rows, hidden])?, all.random(&[1, hidden])?, all.random(&[1, hidden])?);
                let segments = Segments::from_lengths([rows]);
                Ok(move || modulated_layer_norm(&x, &shift, &scale, &segments))
            },
        );
        let residual = self.moving(["gated residual".to_owned(), shape], self.bytes(3 * rows * hidden), move |all| {
            let (x, y, gate) = (all.random(&[rows, hidden])?, all.random(&[rows, hidden])?, all.random(&[1, hidden])?);
            let segments = Segments::from_lengths([rows]);
            Ok(move || gated_residual(&x, &y.clone().into(), &gate, &segments))
        });
        let shape = format!("{rows} rows of {}", 3 * hidden);
        let bytes = self.bytes(6 * rows * hidden);
        let rotate = self.moving(["normalize and rotate".to_owned(), shape], bytes, move |all| {
            let (qkv, query, key) =
                (all.random(&[rows, 3 * hidden])?, all.random(&[head_width])?, all.random(&[head_width])?);
            let rotary = Rotary::at((0..rows).map(|row| [0, row / 64, row % 64]), axes, 10_000.0, &all.device)?;
            Ok(move || normalize_and_rotate(&qkv.clone().into(), &query, &key, Some(&rotary)))
        });
        vec![norm, residual, rotate]
    }

    /// The decoder's largest layers.
    fn convolutions(&self, scale: &Scale) -> Vec<Case> {
        let [narrow, wide] = scale.channels;
        let side = scale.side;
        let mut cases = Vec::new();
        for (kernel, skipped) in self.by_kernel(&convolution::KERNELS, &[Kernel::Warp, Kernel::Warpgroup]) {
            for inputs in [wide, narrow] {
                let name = format!("convolution 3x3, {}", kernel.name());
                let flops = 2.0 * (9 * inputs * narrow * side * side) as f64;
                let case = self.computing([name, of_image(side, inputs, narrow)], flops, move |all| {
                    let (image, residual) = (all.image(inputs, side)?, all.image(narrow, side)?);
                    let convolution = all.convolution(kernel, [inputs, narrow], false)?;
                    Ok(move || convolution.forward_onto(&image, &residual))
                });
                cases.push(Case { skipped: skipped.clone(), ..case });
            }
            // Of the nine taps of a doubled image four are left, since pixels repeat.
            let flops = 2.0 * (4 * wide * wide * side * side) as f64;
            let names = [format!("convolution, doubled, {}", kernel.name()), of_image(side / 2, wide, wide)];
            let case = self.computing(names, flops, move |all| {
                let image = all.image(wide, side / 2)?;
                let convolution = all.convolution(kernel, [wide, wide], true)?;
                Ok(move || convolution.forward(&image))
            });
            cases.push(Case { skipped, ..case });
        }
        let flops = 2.0 * (9 * narrow * 3 * side * side) as f64;
        let names = ["convolution to colors, portable".to_owned(), of_image(side, narrow, 3)];
        cases.push(self.computing(names, flops, move |all| {
            let image = all.image(narrow, side)?;
            let convolution = all.convolution(Kernel::Warp, [narrow, 3], false)?;
            Ok(move || convolution.forward(&image))
        }));
        cases
    }

    fn convolution(&self, kernel: Kernel, [inputs, outputs]: [usize; 2], is_doubled: bool) -> Result<Convolution> {
        Convolution::by(kernel, &self.weight(&[outputs, inputs, 3, 3])?, &self.random(&[outputs])?, is_doubled)
    }

    fn norms(&self, scale: &Scale) -> Vec<Case> {
        let (side, groups) = (scale.side, scale.groups);
        let of = |channels: usize| {
            let shape = format!("{side}x{side} pixels, {channels} channels in {groups} groups");
            // Read for the statistics, read again, written.
            let bytes = self.bytes(3 * channels * side * side);
            self.moving(["group norm, SiLU".to_owned(), shape], bytes, move |all| {
                let image = all.image(channels, side)?;
                let norm = GroupNorm::new(groups, 1e-6, all.random(&[channels])?, all.random(&[channels])?);
                Ok(move || norm.forward_silu(&image))
            })
        };
        scale.channels.into_iter().map(of).collect()
    }
}

/// The largest relative difference of two kernels, by Euclidean norms: both round to bf16.
const DIFFERENCE_MAX: f32 = 0.01;

/// Refuses a kernel that nothing else tests, if it does not agree with the one in use.
fn check_agreement(one: &Tensor, other: &Tensor) -> Result<()> {
    let norm = |x: &Tensor| x.to_dtype(DType::F32)?.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    let difference = norm(&(one.to_dtype(DType::F32)? - other.to_dtype(DType::F32)?)?)? / norm(one)?;
    if difference.is_nan() || difference > DIFFERENCE_MAX {
        bail!("its results are {:.2} % off those of the kernel in use", 100.0 * difference);
    }
    Ok(())
}

fn of_layer(rows: usize, inputs: usize, outputs: usize) -> String {
    format!("{rows} rows, {inputs} to {outputs}")
}

fn flops_of(rows: usize, inputs: usize, outputs: usize) -> f64 {
    2.0 * (rows * inputs * outputs) as f64
}

fn of_image(side: usize, inputs: usize, outputs: usize) -> String {
    format!("{side}x{side} pixels, {inputs} to {outputs} channels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_gives_other_results_is_not_timed() {
        let x = Tensor::randn(0.0_f32, 1.0, (64, 64), &Device::Cpu).expect("random");
        let times = |factor: f64| (&x * factor).expect("computes");
        check_agreement(&x, &times(1.005)).expect("rounding");
        let error = check_agreement(&x, &times(1.02)).expect_err("too far").to_string();
        assert!(error.starts_with("its results are 2.00 % off"), "{error}");
        assert!(check_agreement(&x, &times(f64::NAN)).is_err());
    }
}
