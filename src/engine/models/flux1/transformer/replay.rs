//! Steps of one composition, recorded once and repeated as a whole: for one image alone nothing but numbers changes between steps.
//!
//! Recorded work reads and writes fixed memory. So the latents and what is joined to them, the reference images, the text, the
//! modulation and the rotary tables of each sequence are copied there before every step, and the velocities are copied from there.
//! What else a step does depends on its composition.

use candle_core::{Device, Result, Tensor};

use super::{Sequence, Transformer};
use crate::engine::adapted::AdapterSet;
use crate::engine::ops::recording::Recording;
use crate::engine::ops::rope::Rotary;

/// Records work and repeats it.
pub(crate) trait Recorder<'a> {
    /// Recorded work.
    type Recording;

    /// Records `work` without running it.
    ///
    /// # Errors
    /// When it cannot be recorded.
    fn record(&self, work: Box<dyn Fn() -> Result<()> + 'a>) -> Result<Self::Recording>;

    /// Runs recorded work.
    ///
    /// # Errors
    /// When the device is out of memory or fails.
    fn repeat(&self, recording: &Self::Recording) -> Result<()>;
}

/// A device that records.
pub(crate) struct OnDevice<'d>(pub(crate) &'d Device);

impl<'a> Recorder<'a> for OnDevice<'_> {
    type Recording = Recording;

    fn record(&self, work: Box<dyn Fn() -> Result<()> + 'a>) -> Result<Recording> {
        Recording::of(self.0, &*work)
    }

    fn repeat(&self, recording: &Recording) -> Result<()> {
        recording.repeat()
    }
}

/// The lengths of a sequence: text tokens, image tokens, reference tokens, and channels that are joined to the latents.
type Lengths = [usize; 4];

/// The recording of the latest composition. Only one is kept: it holds the memory of a whole step.
pub(crate) struct Replay<R>(Option<(Vec<Lengths>, State<R>)>);

/// What there is of a composition.
enum State<R> {
    /// It was in one step, and may be in no other.
    Seen,
    /// A step has run in the fixed memory, so that everything that is loaded at first use is there.
    Prepared(Vec<Fixed>),
    Recorded(Vec<Fixed>, R),
    /// It cannot be recorded.
    Refused,
}

impl<R> Default for Replay<R> {
    fn default() -> Self {
        Self(None)
    }
}

impl<R> Replay<R> {
    /// [`Transformer::velocities`], which is recorded when a composition comes for the third time.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn velocities<'a>(
        &mut self,
        recorder: &impl Recorder<'a, Recording = R>,
        transformer: &'a Transformer,
        sequences: &[Sequence],
    ) -> Result<Vec<Tensor>> {
        let Some(composition) = composition_of(sequences) else { return transformer.velocities(sequences) };
        // Taken out: after an error nothing is left of it.
        let state = match self.0.take() {
            Some((latest, state)) if latest == composition => state,
            _ => {
                self.0 = Some((composition, State::Seen));
                return transformer.velocities(sequences);
            }
        };
        let (state, velocities) = state.step(recorder, transformer, sequences)?;
        self.0 = Some((composition, state));
        Ok(velocities)
    }
}

/// `None` where a modulation is not there: it would be computed in the step, from numbers of the host. And with adapters or
/// residuals of ControlNets: another image, or another step, of the same lengths has others. Steps with a cache do not come here:
/// what they do depends on numbers of the device.
fn composition_of(sequences: &[Sequence]) -> Option<Vec<Lengths>> {
    let lengths = |sequence: &Sequence| {
        let is_plain = sequence.adapters.is_empty() && sequence.residuals.is_none();
        let is_recordable = sequence.modulation.is_some() && is_plain;
        let size = |tensor: Option<&Tensor>, dimension: usize| tensor.map_or(0, |tensor| tensor.dims()[dimension]);
        let (references, joined) = (size(sequence.references, 0), size(sequence.joined, 1));
        is_recordable.then(|| [sequence.text.dims()[0], sequence.latents.dims()[0], references, joined])
    };
    sequences.iter().map(lengths).collect()
}

impl<R> State<R> {
    fn step<'a>(
        self,
        recorder: &impl Recorder<'a, Recording = R>,
        transformer: &'a Transformer,
        sequences: &[Sequence],
    ) -> Result<(Self, Vec<Tensor>)> {
        let (fixed, recorded) = match self {
            Self::Seen => {
                let fixed: Vec<Fixed> = sequences.iter().map(Fixed::of).collect::<Result<_>>()?;
                fill(&fixed, sequences)?;
                run(&fixed, transformer)?;
                let velocities = velocities_of(&fixed)?;
                return Ok((Self::Prepared(fixed), velocities));
            }
            Self::Prepared(fixed) => {
                let work = fixed.clone();
                let recorded = recorder.record(Box::new(move || run(&work, transformer)));
                (fixed, recorded)
            }
            Self::Recorded(fixed, recording) => (fixed, Ok(recording)),
            Self::Refused => return Ok((Self::Refused, transformer.velocities(sequences)?)),
        };
        fill(&fixed, sequences)?;
        match recorded.and_then(|recording| recorder.repeat(&recording).map(|()| recording)) {
            Ok(recording) => {
                let velocities = velocities_of(&fixed)?;
                Ok((Self::Recorded(fixed, recording), velocities))
            }
            Err(error) => {
                tracing::warn!(%error, "a step cannot be repeated as a graph, and is computed operation by operation");
                drop(fixed);
                Ok((Self::Refused, transformer.velocities(sequences)?))
            }
        }
    }
}

/// The fixed memory of a sequence.
#[derive(Clone)]
struct Fixed {
    latents: Tensor,
    joined: Option<Tensor>,
    references: Option<Tensor>,
    text: Tensor,
    modulation: Tensor,
    rotary: Rotary,
    velocity: Tensor,
    /// None.
    adapters: AdapterSet,
}

impl Fixed {
    fn of(sequence: &Sequence) -> Result<Self> {
        let modulation = sequence.modulation.unwrap_or(sequence.condition);
        let Rotary { cos, sin } = sequence.rotary;
        Ok(Self {
            latents: sequence.latents.zeros_like()?,
            joined: sequence.joined.map(Tensor::zeros_like).transpose()?,
            references: sequence.references.map(Tensor::zeros_like).transpose()?,
            text: sequence.text.zeros_like()?,
            modulation: modulation.zeros_like()?,
            rotary: Rotary { cos: cos.zeros_like()?, sin: sin.zeros_like()? },
            // Of the latents' shape, and like them f32.
            velocity: sequence.latents.zeros_like()?,
            adapters: AdapterSet::default(),
        })
    }

    /// Copies what a step reads.
    fn fill(&self, sequence: &Sequence) -> Result<()> {
        self.latents.slice_set(&sequence.latents.contiguous()?, 0, 0)?;
        for (fixed, given) in [(&self.joined, sequence.joined), (&self.references, sequence.references)] {
            if let (Some(fixed), Some(given)) = (fixed, given) {
                fixed.slice_set(&given.contiguous()?, 0, 0)?;
            }
        }
        self.text.slice_set(&sequence.text.contiguous()?, 0, 0)?;
        if let Some(modulation) = sequence.modulation {
            self.modulation.slice_set(&modulation.contiguous()?, 0, 0)?;
        }
        self.rotary.cos.slice_set(&sequence.rotary.cos.contiguous()?, 0, 0)?;
        self.rotary.sin.slice_set(&sequence.rotary.sin.contiguous()?, 0, 0)
    }

    /// The sequence as it is recorded.
    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            latents: &self.latents,
            joined: self.joined.as_ref(),
            references: self.references.as_ref(),
            text: &self.text,
            modulation: Some(&self.modulation),
            rotary: &self.rotary,
            // These two are not read where there is a modulation. Were they, it would show at once.
            condition: &self.modulation,
            sigma: f32::NAN,
            adapters: &self.adapters,
            cache: None,
            residuals: None,
        }
    }
}

fn fill(fixed: &[Fixed], sequences: &[Sequence]) -> Result<()> {
    fixed.iter().zip(sequences).try_for_each(|(fixed, sequence)| fixed.fill(sequence))
}

/// A step, from fixed memory to fixed memory.
fn run(fixed: &[Fixed], transformer: &Transformer) -> Result<()> {
    let sequences: Vec<Sequence> = fixed.iter().map(Fixed::sequence).collect();
    let velocities = transformer.velocities(&sequences)?;
    fixed.iter().zip(&velocities).try_for_each(|(fixed, velocity)| fixed.velocity.slice_set(velocity, 0, 0))
}

/// Copies of a step's results: the next step overwrites them.
fn velocities_of(fixed: &[Fixed]) -> Result<Vec<Tensor>> {
    fixed.iter().map(|fixed| fixed.velocity.copy()).collect()
}
