//! What an image goes through, as plain numbers: for comparing two ways to draw the same one.

use candle_core::{DType, Device, Tensor};

use super::{FluxEngine, device_error};
use crate::domain::engine::{EngineError, Slot, StepEngine};
use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;

/// The same places of each image. Latents are packed, `[image tokens, channels]`, row by row.
pub struct Trace {
    /// Where the first step was headed: what the model makes of noise.
    pub velocity_first: Vec<f32>,
    /// What is left after the last step.
    pub latents_final: Vec<f32>,
    /// The image. `None`: the decoder's numbers were none, as random weights may have it.
    pub image: Option<RgbImage>,
}

impl FluxEngine {
    /// Draws an image and keeps what two ways to draw it are compared by.
    ///
    /// # Errors
    /// As the verbs of [`StepEngine`]; an image that is not finite is none.
    pub fn trace(&mut self, spec: &GenerateSpec) -> Result<Trace, EngineError> {
        let slot = self.admit(spec)?;
        let outcome = self.trace_of(slot, spec.steps());
        self.release(slot);
        outcome
    }

    fn trace_of(&mut self, slot: Slot, steps: u32) -> Result<Trace, EngineError> {
        self.step(&[slot])?;
        let velocity = self.held(slot)?.velocity.as_ref().map(numbers);
        for _ in 1..steps {
            self.step(&[slot])?;
        }
        let latents_final = numbers(&self.held(slot)?.latents).map_err(device_error)?;
        let image = match self.finish(slot) {
            Ok(image) => Some(image),
            Err(EngineError::NotFinite) => None,
            Err(error) => return Err(error),
        };
        let velocity_first = velocity.transpose().map_err(device_error)?.unwrap_or_default();
        Ok(Trace { velocity_first, latents_final, image })
    }
}

fn numbers(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
