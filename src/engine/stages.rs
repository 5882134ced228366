//! The intermediate tensors of an image, for comparing with another implementation, and its parts one by one, for timing.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};

use super::FluxEngine;
use super::adapted::AdapterSet;
use super::device::{self, device_error};
use super::models::flux1::unreadable_prompt;
use crate::domain::engine::{EngineError, Slot, StepEngine};
use crate::domain::spec::GenerateSpec;

type Outcome<T, E = EngineError> = std::result::Result<T, E>;

/// The tensors between the stages of one image. All are f32 but the token ids, which are i64; shapes have no batch dimension.
///
/// `clip_ids` and `t5_ids`; `clip_pooled` `[1, width]` and `t5_embeds` `[tokens, width]`; `sigmas` `[steps + 1]`;
/// `latents_init`, `velocity_first`, `latents_first` (after one step) and `latents_final` (of a complete image only), all
/// packed, `[image tokens, channels]`; `decoded_latents`, the last of the latents above, `[channels, height / 8, width / 8]`
/// before scale and shift; `pixels` `[3, height, width]`, what these are decoded to, about -1 to 1, not clamped.
pub struct Stages {
    tensors: HashMap<&'static str, Tensor>,
    metadata: HashMap<String, String>,
}

/// A file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WriteError(String);

impl Stages {
    /// Writes the tensors as safetensors, with the request as the file's metadata.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Outcome<(), WriteError> {
        safetensors::serialize_to_file(&self.tensors, Some(self.metadata.clone()), file)
            .map_err(|error| WriteError(error.to_string()))
    }
}

impl FluxEngine {
    /// The device, in words.
    pub fn device_name(&self) -> String {
        device::describe(&self.device)
    }

    /// Waits until the device has done all its work. Only then is a duration known, or an error.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(&self) -> Outcome<()> {
        self.device.synchronize().map_err(device_error)
    }

    /// The part of [`StepEngine::admit`] that encodes a prompt: both text encoders, T5 over `length` tokens.
    ///
    /// # Errors
    /// As [`StepEngine::admit`].
    pub fn encode_text(&mut self, prompt: &str, length: usize) -> Outcome<()> {
        self.model.embed(prompt, prompt, length, &AdapterSet::default()).map(drop)
    }

    /// The part of [`StepEngine::finish`] that decodes. The image may be at any step, and stays.
    ///
    /// # Errors
    /// As [`StepEngine::finish`].
    pub fn decode(&self, slot: Slot) -> Outcome<()> {
        let image = self.held(slot)?;
        let run = || self.model.decoder.decode(&image.grid.unpack(&image.latents)?);
        run().map(drop).map_err(device_error)
    }

    /// Generates an image, or runs only its first step, and keeps the tensors between its stages.
    ///
    /// # Errors
    /// As the verbs of [`StepEngine`].
    pub fn stages(&mut self, spec: &GenerateSpec, complete: bool) -> Outcome<Stages> {
        let slot = self.admit(spec)?;
        let outcome = self.stages_of(slot, spec, complete);
        self.release(slot);
        outcome
    }

    fn stages_of(&mut self, slot: Slot, spec: &GenerateSpec, complete: bool) -> Outcome<Stages> {
        self.encode_rest(&[slot])?;
        let clip_ids = self.model.tokenizers.clip(spec.prompt()).map_err(unreadable_prompt)?;
        let t5_ids = self.model.tokenizers.t5(spec.t5_prompt(), spec.sequence_length()).map_err(unreadable_prompt)?;
        let adapters = self.held(slot)?.adapters.clone();
        let embedding = self.model.embed(spec.prompt(), spec.t5_prompt(), spec.sequence_length(), &adapters)?;
        let mut tensors = vec![
            ("clip_ids", id_list(&clip_ids)),
            ("t5_ids", id_list(&t5_ids)),
            ("clip_pooled", numbers(&embedding.pooled)),
            ("t5_embeds", numbers(&embedding.sequence)),
            ("sigmas", Tensor::new(self.held(slot)?.sigmas.as_slice(), &Device::Cpu)),
            ("latents_init", numbers(&self.held(slot)?.latents)),
        ];
        self.step(&[slot])?;
        let image = self.held(slot)?;
        tensors.extend(image.velocity.as_ref().map(|velocity| ("velocity_first", numbers(velocity))));
        tensors.push(("latents_first", numbers(&image.latents)));
        if complete {
            while !self.held(slot)?.is_done() {
                self.step(&[slot])?;
            }
            tensors.push(("latents_final", numbers(&self.held(slot)?.latents)));
        }
        let image = self.held(slot)?;
        let latents = image.grid.unpack(&image.latents).map_err(device_error)?;
        let pixels = self.model.decoder.decode(&latents).map_err(device_error)?;
        tensors.push(("decoded_latents", latents.squeeze(0).and_then(|latents| numbers(&latents))));
        tensors.push(("pixels", pixels.squeeze(0).and_then(|pixels| numbers(&pixels))));
        let tensors = tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.map_err(device_error)?)));
        let tensors = tensors.collect::<Outcome<_>>()?;
        let kernels = serde_json::to_string(&self.kernels()).unwrap_or_default();
        Ok(Stages { tensors, metadata: metadata(spec, self.device_name(), kernels) })
    }
}

fn metadata(spec: &GenerateSpec, device: String, kernels: String) -> HashMap<String, String> {
    let entries = [
        ("prompt", spec.prompt().to_owned()),
        ("prompt_2", spec.t5_prompt().to_owned()),
        ("width", spec.width().to_string()),
        ("height", spec.height().to_string()),
        ("steps", spec.steps().to_string()),
        ("guidance", spec.guidance().to_string()),
        ("seed", spec.seed().to_string()),
        ("device", device),
        ("kernels", kernels),
    ];
    entries.map(|(name, value)| (name.to_owned(), value)).into()
}

/// As f32 on the CPU, contiguous.
fn numbers(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()
}

fn id_list(ids: &[u32]) -> Result<Tensor> {
    Tensor::from_iter(ids.iter().map(|&id| i64::from(id)), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::catalog::card_or_flux_dev;
    use crate::domain::device::DeviceChoice;
    use crate::domain::ids::ModelId;
    use crate::domain::model::ModelFiles;
    use crate::domain::spec::GenerateParams;

    /// Largest absolute difference, as in the other comparisons with the reference.
    const TOLERANCE: f32 = 5e-5;

    fn reference(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
    }

    fn spec() -> GenerateSpec {
        let params = GenerateParams {
            prompt: "a red circle on a blue background".into(),
            width: Some(64),
            height: Some(64),
            steps: Some(4),
            seed: 42,
            ..GenerateParams::default()
        };
        GenerateSpec::new(params, &card_or_flux_dev(&ModelId::new("reference"))).expect("a valid request")
    }

    /// The file has the tensors that diffusers has at the same places.
    #[test]
    fn the_stages_of_a_complete_image_equal_diffusers() {
        let files = ModelFiles::Directory(reference("FLUX.1-dev"));
        let mut engine = FluxEngine::load(&files, DeviceChoice::Cpu).expect("the checkpoint loads");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("stages.safetensors");
        engine.stages(&spec(), true).expect("generated").write(&file).expect("written");
        assert!(engine.images.is_empty());
        let ours = candle_core::safetensors::load(&file, &Device::Cpu).expect("readable");
        let theirs =
            candle_core::safetensors::load(reference("cases/a_64x64.safetensors"), &Device::Cpu).expect("readable");
        let list = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        for (name, reference_name) in [
            ("clip_pooled", "clip_pooled"),
            ("t5_embeds", "t5_embeds"),
            ("sigmas", "sigmas"),
            ("latents_init", "latents_packed_init"),
            ("velocity_first", "noise_pred"),
            ("latents_first", "latents_steps"),
            ("latents_final", "latents_final_packed"),
            ("decoded_latents", "latents_final"),
            ("pixels", "vae_output"),
        ] {
            let (ours, theirs) = (list(&ours[name]), list(&theirs[reference_name]));
            // Recorded of all steps, of which the first is compared.
            let theirs = &theirs[..ours.len()];
            let furthest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest <= TOLERANCE, "{name}: {furthest}");
        }
        let text = std::fs::read(&file).expect("readable");
        let header = String::from_utf8_lossy(&text[8..4096]).into_owned();
        assert!(header.contains(r#""prompt":"a red circle on a blue background""#), "{header}");
        assert!(header.contains(r#""kernels":"{\"attention\":{\"kernel\":\"cpu\""#), "{header}");
    }

    #[test]
    fn the_stages_of_the_first_step_alone() {
        let files = ModelFiles::Directory(reference("FLUX.1-dev"));
        let mut engine = FluxEngine::load(&files, DeviceChoice::Cpu).expect("the checkpoint loads");
        let stages = engine.stages(&spec(), false).expect("generated");
        assert!(!stages.tensors.contains_key("latents_final"));
        let packed = stages.tensors["latents_first"].dims2().expect("packed");
        assert_eq!((packed, stages.tensors["decoded_latents"].dims()), ((16, 64), &[16, 8, 8][..]));
        let error = stages.write(Path::new("/nowhere/stages.safetensors")).expect_err("no such folder");
        assert!(!error.to_string().is_empty());
    }
}
