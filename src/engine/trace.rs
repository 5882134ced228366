//! The course of an image as plain numbers, for comparing two ways to generate the same one.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use super::FluxEngine;
use super::device::device_error;
use crate::domain::engine::{EngineError, Slot, StepEngine};
use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;

/// Where two images are compared. Latents are packed, `[image tokens, channels]`, row by row.
pub struct Trace {
    /// The velocity of the first step.
    pub velocity_first: Vec<f32>,
    /// The latents after the last step.
    pub latents_final: Vec<f32>,
    /// The image. `None` where a pixel is not finite, as random weights may have it.
    pub image: Option<RgbImage>,
    /// How often a cache left out blocks, over all steps and passes.
    pub steps_skipped: u32,
    /// The time of all steps together, without encoding and decoding.
    pub steps_seconds: f64,
}

impl FluxEngine {
    /// Generates an image and keeps what two ways to generate it are compared by.
    ///
    /// # Errors
    /// As the verbs of [`StepEngine`], except that an image that is not finite is no error.
    pub fn trace(&mut self, spec: &GenerateSpec) -> Result<Trace, EngineError> {
        let slot = self.admit(spec)?;
        let outcome = self.trace_of(slot, spec.steps());
        self.release(slot);
        outcome
    }

    fn trace_of(&mut self, slot: Slot, steps: u32) -> Result<Trace, EngineError> {
        // A step waits for the device.
        let started = Instant::now();
        self.step(&[slot])?;
        let mut steps_time = started.elapsed();
        let velocity = self.held(slot)?.velocity.as_ref().map(numbers);
        let started = Instant::now();
        for _ in 1..steps {
            self.step(&[slot])?;
        }
        steps_time += started.elapsed();
        let latents_final = numbers(&self.held(slot)?.latents).map_err(device_error)?;
        let steps_skipped = self.held(slot)?.steps_skipped();
        let image = match self.finish(slot) {
            Ok(image) => Some(image),
            Err(EngineError::NotFinite) => None,
            Err(error) => return Err(error),
        };
        let velocity_first = velocity.transpose().map_err(device_error)?.unwrap_or_default();
        let steps_seconds = steps_time.as_secs_f64();
        Ok(Trace { velocity_first, latents_final, image, steps_skipped, steps_seconds })
    }
}

fn numbers(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
