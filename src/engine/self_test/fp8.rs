//! Operations in fp8 (e4m3), where the device supports it. The CPU quantizes to the same codes, so that only rounding to bf16 and
//! the order of sums differ.

use candle_core::{Result, Tensor};

use super::{HEAD_WIDTH, HEADS, LENGTHS, Op, OpReport, Operands};
use crate::domain::precision::Precision;
use crate::engine::ops::Segments;
use crate::engine::ops::quantize::{self, Quantized};
use crate::engine::storage::check_device;

impl Operands {
    pub(super) fn run_fp8(&self) -> Result<Vec<OpReport>> {
        if check_device(&self.device, Precision::Fp8).is_err() {
            return Ok(Vec::new());
        }
        let segments = Segments::from_lengths(LENGTHS);
        let (rows, width) = (segments.rows(), HEADS * HEAD_WIDTH);
        let x = || self.random(50, &[rows, width]);
        let weight = || self.random(51, &[2 * width, width])? / (width as f64).sqrt();
        let bias = || self.random(52, &[2 * width]);
        let per_sequence = |seed| self.random(seed, &[LENGTHS.len(), width]);
        let wide = self.random(53, &[width, 2 * width])? / (width as f64).sqrt();
        let linear: Op = &|x| multiply(&Quantized::of(&x[0])?, &x[1], &x[2]);
        let normed: Op = &|x| multiply(&Quantized::of_layer_norm(&x[0], &x[3], &x[4], &segments)?, &x[1], &x[2]);
        let fed: Op = &|x| {
            let weight = Quantized::of(&x[1])?;
            let right = quantize::product(&Quantized::of(&x[0])?, &weight, Some(&x[2]))?.narrow(width, width)?;
            multiply(&Quantized::of_gelu_tanh(Some(&x[0]), &right)?, &x[3], &x[4])
        };
        Ok(vec![
            self.compare("linear in fp8", &[x()?, weight()?, bias()?], linear)?,
            self.compare(
                "layer norm in fp8",
                &[x()?, weight()?, bias()?, per_sequence(54)?, per_sequence(55)?],
                normed,
            )?,
            self.compare(
                "GELU beside attention in fp8",
                &[x()?, weight()?, bias()?, wide?, self.random(56, &[width])?],
                fed,
            )?,
        ])
    }
}

fn multiply(x: &Quantized, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    quantize::product(x, &Quantized::of(weight)?, Some(bias))?.biased()
}
