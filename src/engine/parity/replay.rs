//! Steps that are recorded once and repeated give the bits of steps that are not.

use std::cell::Cell;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::family::Checkpoint;
use super::support::{card, diffusers_folders, engine};
use crate::domain::conditioning::{Conditioning, GivenImage, ImageRole};
use crate::domain::engine::StepEngine as _;
use crate::domain::image::RgbImage;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::engine::FluxEngine;
use crate::engine::adapted::AdapterSet;
use crate::engine::models::flux1::transformer::replay::{Recorder, Replay};
use crate::engine::models::flux1::transformer::{Residuals, Sequence};
use crate::engine::ops::rope::Rotary;

/// What a recording of the CPU is: the work, which runs again.
type Work<'a> = Box<dyn Fn() -> Result<()> + 'a>;

/// Records so many times, and counts what it does.
#[derive(Default)]
struct Again {
    recorded: Cell<usize>,
    repeated: Cell<usize>,
    refuses: bool,
}

impl<'a> Recorder<'a> for Again {
    type Recording = Work<'a>;

    fn record(&self, work: Work<'a>) -> Result<Work<'a>> {
        self.recorded.set(self.recorded.get() + 1);
        if self.refuses {
            bail!("no graph here");
        }
        Ok(work)
    }

    fn repeat(&self, recording: &Work<'a>) -> Result<()> {
        self.repeated.set(self.repeated.get() + 1);
        recording()
    }
}

/// What a sequence of a step is made of.
struct Owned {
    latents: Tensor,
    joined: Option<Tensor>,
    references: Option<Tensor>,
    text: Tensor,
    condition: Tensor,
    modulation: Option<Tensor>,
    rotary: Rotary,
    sigma: f32,
    adapters: AdapterSet,
    residuals: Option<Residuals>,
}

impl Owned {
    fn of(sequence: &Sequence) -> Self {
        Self {
            latents: sequence.latents.clone(),
            joined: sequence.joined.cloned(),
            references: sequence.references.cloned(),
            text: sequence.text.clone(),
            condition: sequence.condition.clone(),
            modulation: sequence.modulation.cloned(),
            rotary: sequence.rotary.clone(),
            sigma: sequence.sigma,
            adapters: sequence.adapters.clone(),
            residuals: None,
        }
    }

    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            latents: &self.latents,
            joined: self.joined.as_ref(),
            references: self.references.as_ref(),
            text: &self.text,
            condition: &self.condition,
            modulation: self.modulation.as_ref(),
            rotary: &self.rotary,
            sigma: self.sigma,
            adapters: &self.adapters,
            cache: None,
            residuals: self.residuals.as_ref(),
        }
    }
}

fn spec(prompt: &str, (width, height): (u32, u32), seed: u64) -> GenerateSpec {
    let params = GenerateParams {
        prompt: prompt.to_owned(),
        width: Some(width),
        height: Some(height),
        steps: Some(4),
        seed,
        sequence_length: Some(256),
        ..GenerateParams::default()
    };
    GenerateSpec::new(params, &card()).expect("a valid request")
}

/// The sequences of each step of an image.
fn steps(engine: &mut FluxEngine, spec: &GenerateSpec) -> Vec<Vec<Owned>> {
    let slot = engine.admit(spec).expect("admits");
    engine.encode_rest(&[slot]).expect("encodes");
    let mut steps = Vec::new();
    for _ in 0..spec.steps() {
        let mut images: Vec<_> = engine.images.values_mut().collect();
        engine.model.modulate_ahead(&mut images).expect("modulates");
        steps.push(engine.images[&slot].sequences().map(|sequence| Owned::of(&sequence)).collect());
        engine.step(&[slot]).expect("steps");
    }
    engine.release(slot);
    steps
}

fn numbers(velocities: Vec<Tensor>) -> Vec<Vec<u32>> {
    let bits = |velocity: Tensor| -> Result<Vec<u32>> {
        Ok(velocity.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    };
    velocities.into_iter().map(|velocity| bits(velocity).expect("numbers")).collect()
}

/// Compares steps with a replay and without; returns how often was recorded and repeated.
fn check(engine: &FluxEngine, recorder: &Again, steps: &[Vec<Owned>]) -> (usize, usize) {
    let (transformer, mut replay) = (&engine.model.transformer, Replay::default());
    for (number, step) in steps.iter().enumerate() {
        let sequences: Vec<Sequence> = step.iter().map(Owned::sequence).collect();
        let expected = numbers(transformer.velocities(&sequences).expect("predicts"));
        let found = replay.velocities(recorder, transformer, &sequences).expect("predicts");
        assert!(numbers(found) == expected, "step {number}");
    }
    (recorder.recorded.get(), recorder.repeated.get())
}

#[test]
fn repeated_steps_have_the_bits_of_steps_that_are_computed() {
    let mut engine = engine(&diffusers_folders());
    let (small, wide) = ((64, 64), (96, 64));
    let one = steps(&mut engine, &spec("a red circle", small, 1));
    let other = steps(&mut engine, &spec("a blue square, and much else", small, 2));
    let wider = steps(&mut engine, &spec("a red circle", wide, 1));
    // Noise levels, prompts and latents change, the composition does not: recorded at the third step.
    let alike: Vec<Vec<Owned>> = one.into_iter().chain(other).collect();
    assert_eq!(check(&engine, &Again::default(), &alike), (1, 6));
    // Another size is another composition.
    let mixed: Vec<Vec<Owned>> = alike.into_iter().chain(wider).collect();
    assert_eq!(check(&engine, &Again::default(), &mixed), (2, 8));
    // Two images at once.
    let pairs: Vec<Vec<Owned>> = {
        let mut left = mixed.into_iter();
        std::iter::from_fn(|| Some(left.next()?.into_iter().chain(left.next()?).collect())).collect()
    };
    assert_eq!(check(&engine, &Again::default(), &pairs), (1, 2));
}

/// What images bring is copied before every step, as latents are.
#[test]
fn repeated_steps_read_the_images_of_their_own_request() {
    for checkpoint in [Checkpoint::kontext(), Checkpoint::fill()] {
        let mut engine = engine(&checkpoint.files());
        let mut of = |seed: u64, count: usize| {
            let images = match checkpoint.conditioning {
                Conditioning::Fill => vec![stripes(ImageRole::Input, seed), stripes(ImageRole::Mask, seed + 1)],
                _ => (0..count).map(|index| stripes(ImageRole::Reference, seed + index as u64)).collect(),
            };
            let params = GenerateParams {
                prompt: "a red circle".to_owned(),
                width: Some(64),
                height: Some(64),
                steps: Some(4),
                seed,
                sequence_length: Some(16),
                images,
                ..GenerateParams::default()
            };
            let spec = GenerateSpec::new(params, &checkpoint.card()).expect("a valid request");
            steps(&mut engine, &spec)
        };
        let alike: Vec<Vec<Owned>> = of(1, 1).into_iter().chain(of(7, 1)).collect();
        let more = if checkpoint.conditioning == Conditioning::References { of(1, 2) } else { Vec::new() };
        assert_eq!(check(&engine, &Again::default(), &alike), (1, 6));
        // With one reference more it is another composition.
        let mixed: Vec<Vec<Owned>> = alike.into_iter().chain(more).collect();
        let (recorded, _) = check(&engine, &Again::default(), &mixed);
        assert_eq!(recorded, if checkpoint.conditioning == Conditioning::References { 2 } else { 1 });
    }
}

/// An image that differs by its seed.
fn stripes(role: ImageRole, seed: u64) -> GivenImage {
    let pixels = (0..64 * 64 * 3_u64).map(|at| (at * (seed + 3) % 251) as u8).collect();
    let image = RgbImage::new(64, 64, pixels).expect("three bytes a pixel");
    GivenImage::new("images[0]", role, Arc::new(image))
}

#[test]
fn what_cannot_be_recorded_is_computed() {
    let mut engine = engine(&diffusers_folders());
    let mut steps = steps(&mut engine, &spec("a red circle", (64, 64), 3));
    let refusing = Again { refuses: true, ..Again::default() };
    assert_eq!(check(&engine, &refusing, &steps), (1, 0), "it is tried once");
    // Where ControlNets act, the next step of these lengths may have none.
    for sequence in steps.iter_mut().flatten() {
        sequence.residuals = Some(Residuals::default());
    }
    assert_eq!(check(&engine, &Again::default(), &steps), (0, 0));
    // Without a modulation, numbers of the host go into the step.
    for sequence in steps.iter_mut().flatten() {
        (sequence.residuals, sequence.modulation) = (None, None);
    }
    assert_eq!(check(&engine, &Again::default(), &steps), (0, 0));
}
