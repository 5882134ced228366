//! The stopwatch of `bench`: each part runs once untimed, then several times timed, and the device has finished all its
//! work whenever the clock is read.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{params_of, spec_of};
use crate::domain::engine::{EngineError, Slot, StepEngine};
use crate::domain::image_size::ImageSize;
use crate::domain::model::ModelCard;
use crate::domain::spec::GenerateSpec;

/// No further repetition of a part starts after this time.
const PART_MAX: Duration = Duration::from_secs(10);

/// Upper bound of a decoding's time in steps of the same image, for estimates.
const DECODINGS_PER_STEP_MAX: f64 = 4.0;

/// An engine that can wait for its device, and run parts of its calls.
pub(super) trait Timed: StepEngine {
    /// Waits until the device has finished all its work.
    fn wait(&self) -> Result<(), EngineError>;
    /// Runs both text encoders.
    fn encode_text(&mut self, prompt: &str, tokens: usize) -> Result<(), EngineError>;
    /// Runs the decoder; the image stays admitted.
    fn decode(&self, slot: Slot) -> Result<(), EngineError>;
}

/// Timing of a part, or why it was not timed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Measured times.
    Measured {
        /// The median.
        median_seconds: f64,
        /// The fastest.
        min_seconds: f64,
        /// The slowest.
        max_seconds: f64,
        /// Number of repetitions.
        repeats: usize,
    },
    /// It does not fit into the device's memory.
    DoesNotFit {
        /// What the device said.
        reason: String,
    },
    /// It failed.
    Failed {
        /// What the engine said.
        reason: String,
    },
    /// There was no time for it.
    NoTime,
}

/// A timed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Both text encoders, of one prompt.
    Text,
    /// Everything before the first step: text encoders, noise, tables.
    Admit,
    /// One batched denoising step.
    Step,
    /// From latents to pixels, on the device.
    Decoder,
    /// From latents to bytes in memory.
    Finish,
    /// A complete image: admit, all steps, finish.
    #[serde(rename = "picture")]
    Image,
}

/// A part to time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Todo {
    /// Both text encoders.
    Text,
    /// An admission.
    Admit(ImageSize),
    /// One batched step.
    Step(Vec<ImageSize>),
    /// The decoder.
    Decoder(ImageSize),
    /// A finish.
    Finish(ImageSize),
    /// A complete image of so many steps.
    Image(ImageSize, u32),
}

/// A part, and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timing {
    /// Which part.
    pub part: Part,
    /// Width and height of each image, in pixels.
    #[serde(rename = "pictures")]
    pub images: Vec<[u32; 2]>,
    /// Steps of a complete image.
    pub steps: Option<u32>,
    /// Tokens that go through the model: T5's for text, text and image tokens for the others.
    pub tokens: usize,
    /// The timing.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Timing {
    /// The part as text.
    #[must_use]
    pub fn name(&self) -> String {
        let sizes: Vec<String> = self.images.iter().map(|[width, height]| format!("{width}x{height}")).collect();
        let images = match sizes.split_first() {
            Some((first, others)) if !others.is_empty() && others.iter().all(|size| size == first) => {
                format!("{} × {first}", sizes.len())
            }
            _ => sizes.join(" + "),
        };
        match (self.part, self.steps) {
            (Part::Text, _) => "text encoders".to_owned(),
            (Part::Admit, _) => format!("admit {images}"),
            (Part::Step, _) => format!("step {images}"),
            (Part::Decoder, _) => format!("decoder {images}"),
            (Part::Finish, _) => format!("finish {images}"),
            (Part::Image, steps) => format!("image {images}, {} steps", steps.unwrap_or_default()),
        }
    }
}

/// Times an engine.
pub(super) struct Bench<'a> {
    engine: &'a mut dyn Timed,
    card: ModelCard,
    repeats: usize,
    deadline: Option<Instant>,
    /// Longest time per token of a step, once one was timed.
    seconds_per_token: f64,
    /// Makes every prompt different, so that none is cached.
    prompts: u32,
    /// Images in the engine.
    held: Vec<Slot>,
    /// What the device said when it answered no more.
    lost: Option<String>,
}

impl<'a> Bench<'a> {
    pub(super) fn new(engine: &'a mut dyn Timed, card: ModelCard, repeats: usize, deadline: Option<Instant>) -> Self {
        Self { engine, card, repeats, deadline, seconds_per_token: 0.0, prompts: 0, held: Vec::new(), lost: None }
    }

    /// Times a part.
    pub(super) fn run(&mut self, todo: &Todo) -> Timing {
        match todo {
            Todo::Text => self.text(),
            Todo::Admit(size) => self.admit(*size),
            Todo::Step(sizes) => self.step(sizes),
            Todo::Decoder(size) => self.decode(*size),
            Todo::Finish(size) => self.finish(*size),
            Todo::Image(size, steps) => self.image(*size, *steps),
        }
    }

    /// What the device said, once it answers no more: every other part would fail as well.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Times both text encoders.
    fn text(&mut self) -> Timing {
        let tokens = self.card.sequence_length;
        let outcome = self.repeated(0.0, |bench| {
            let prompt = bench.next_prompt();
            bench.timed(|bench| bench.engine.encode_text(&prompt, tokens))
        });
        Timing { part: Part::Text, images: Vec::new(), steps: None, tokens, outcome: outcome.into() }
    }

    /// Times an admission.
    fn admit(&mut self, size: ImageSize) -> Timing {
        let outcome = self.repeated(0.0, |bench| {
            let spec = bench.spec(size, 1)?;
            bench.timed(|bench| bench.hold(&spec).map(drop))
        });
        self.timing(Part::Admit, &[size], None, outcome)
    }

    /// Times one batched step.
    fn step(&mut self, sizes: &[ImageSize]) -> Timing {
        let expected = self.seconds_per_token * self.tokens(sizes) as f64;
        let outcome = self.repeated(2.0 * expected, |bench| {
            let slots = bench.hold_all(sizes)?;
            bench.timed(|bench| bench.engine.step(&slots))
        });
        if let Ok(Some(seconds)) = &outcome {
            let median = median(seconds);
            self.seconds_per_token = self.seconds_per_token.max(median / self.tokens(sizes) as f64);
        }
        self.timing(Part::Step, sizes, None, outcome)
    }

    /// Times the decoder with one image.
    fn decode(&mut self, size: ImageSize) -> Timing {
        let outcome = self.repeated(2.0 * self.expected_decoding(size), |bench| {
            let slots = bench.hold_all(&[size])?;
            bench.timed(|bench| slots.iter().try_for_each(|&slot| bench.engine.decode(slot)))
        });
        self.timing(Part::Decoder, &[size], None, outcome)
    }

    /// Times a finish: from the last step's latents to bytes.
    fn finish(&mut self, size: ImageSize) -> Timing {
        let outcome = self.repeated(2.0 * self.expected_decoding(size), |bench| {
            let spec = bench.spec(size, 1)?;
            let slot = bench.hold(&spec)?;
            bench.engine.step(&[slot])?;
            bench.timed(|bench| allow_not_finite(bench.engine.finish(slot)))
        });
        self.timing(Part::Finish, &[size], None, outcome)
    }

    /// Times a complete image. Its parts were timed before, so an image of one step is enough to warm up.
    fn image(&mut self, size: ImageSize, steps: u32) -> Timing {
        let expected = self.seconds_per_token * self.tokens(&[size]) as f64 * f64::from(steps);
        let mut is_warm = false;
        let outcome = self.repeated(expected, |bench| {
            let steps = if is_warm { steps } else { 1 };
            is_warm = true;
            let spec = bench.spec(size, steps)?;
            bench.timed(|bench| {
                let slot = bench.hold(&spec)?;
                for _ in 0..steps {
                    bench.engine.step(&[slot])?;
                }
                allow_not_finite(bench.engine.finish(slot))
            })
        });
        self.timing(Part::Image, &[size], Some(steps), outcome)
    }

    fn timing(&self, part: Part, sizes: &[ImageSize], steps: Option<u32>, outcome: Measured) -> Timing {
        let images = sizes.iter().map(|size| [size.width, size.height]).collect();
        Timing { part, images, steps, tokens: self.tokens(sizes), outcome: outcome.into() }
    }

    /// Runs a part once, and then `repeats` times; `run` returns how long it took. `None` if there is no time for the
    /// `expected` duration. Leaves no image in the engine.
    fn repeated(
        &mut self,
        expected_seconds: f64,
        mut run: impl FnMut(&mut Self) -> Result<f64, EngineError>,
    ) -> Measured {
        if !self.has_time_for(expected_seconds) {
            return Ok(None);
        }
        let started = Instant::now();
        let mut seconds = Vec::with_capacity(self.repeats + 1);
        let outcome = loop {
            match run(self) {
                Ok(taken) => seconds.push(taken),
                Err(error) => break Err(error),
            }
            // The first run was the warm-up.
            let has_time = self.has_time_for(seconds[seconds.len() - 1]) && started.elapsed() < PART_MAX;
            if seconds.len() > self.repeats || seconds.len() > 1 && !has_time {
                break Ok(Some(seconds.split_off(1)));
            }
        };
        self.release_all();
        if outcome.is_err() {
            // Some faults break all later calls as well.
            self.lost = self.engine.wait().err().map(|error| error.to_string());
        }
        outcome
    }

    fn has_time_for(&self, seconds: f64) -> bool {
        self.deadline.is_none_or(|deadline| {
            Instant::now() + Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX) < deadline
        })
    }

    /// How long `run` takes, including its work on the device.
    fn timed(&mut self, run: impl FnOnce(&mut Self) -> Result<(), EngineError>) -> Result<f64, EngineError> {
        self.engine.wait()?;
        let started = Instant::now();
        run(self)?;
        self.engine.wait()?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Admits an image in place of the held ones.
    fn hold(&mut self, spec: &GenerateSpec) -> Result<Slot, EngineError> {
        self.release_all();
        let slot = self.engine.admit(spec)?;
        self.held.push(slot);
        Ok(slot)
    }

    /// The held images, or as many new ones, with more steps than will be run.
    fn hold_all(&mut self, sizes: &[ImageSize]) -> Result<Vec<Slot>, EngineError> {
        if self.held.len() != sizes.len() {
            self.release_all();
            for &size in sizes {
                let spec = self.spec(size, self.repeats as u32 + 2)?;
                self.held.push(self.engine.admit(&spec)?);
            }
        }
        Ok(self.held.clone())
    }

    fn release_all(&mut self) {
        for slot in self.held.drain(..) {
            self.engine.release(slot);
        }
    }

    fn spec(&mut self, size: ImageSize, steps: u32) -> Result<GenerateSpec, EngineError> {
        let prompt = self.next_prompt();
        spec_of(&self.card, params_of(size, &prompt, steps)).map_err(|error| EngineError::Request(format!("{error:#}")))
    }

    fn next_prompt(&mut self) -> String {
        self.prompts += 1;
        format!("a red circle on a blue background, take {}", self.prompts)
    }

    fn tokens(&self, sizes: &[ImageSize]) -> usize {
        let of_one = |size: &ImageSize| {
            spec_of(&self.card, params_of(*size, "", 1)).map_or(0, |spec: GenerateSpec| spec.step_tokens())
        };
        sizes.iter().map(of_one).sum()
    }

    fn expected_decoding(&self, size: ImageSize) -> f64 {
        DECODINGS_PER_STEP_MAX * self.seconds_per_token * self.tokens(&[size]) as f64
    }
}

/// Durations of the repetitions; `None`: there was no time.
type Measured = Result<Option<Vec<f64>>, EngineError>;

impl From<Measured> for Outcome {
    fn from(measured: Measured) -> Self {
        match measured {
            Ok(Some(seconds)) => Self::Measured {
                median_seconds: median(&seconds),
                min_seconds: seconds.iter().copied().fold(f64::INFINITY, f64::min),
                max_seconds: seconds.iter().copied().fold(0.0, f64::max),
                repeats: seconds.len(),
            },
            Ok(None) => Self::NoTime,
            Err(EngineError::OutOfMemory(reason)) => Self::DoesNotFit { reason },
            Err(error) => Self::Failed { reason: error.to_string() },
        }
    }
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] }
}

/// Accepts images that are not finite: the weights may be random.
fn allow_not_finite<T>(outcome: Result<T, EngineError>) -> Result<(), EngineError> {
    match outcome {
        Ok(_) | Err(EngineError::NotFinite) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
