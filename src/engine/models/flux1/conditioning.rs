//! What the images of a request become before its first step: latents that a run starts from, channels that are joined to the
//! latents, and tokens of reference images. Each is one run of the autoencoder's encoder, done part by part.

mod masks;

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::controls::Controls;
use super::grid::TokenGrid;
use super::vae::{self, Encoding};
use crate::domain::conditioning::Conditioning;
use crate::domain::image::RgbImage;
use crate::domain::spec::GenerateSpec;
use crate::engine::adapted::AdapterSet;

pub(crate) use masks::{fill_channels, latent_mask};

/// Where the numbers of each draw begin in the generator of a request's seed. The order is that of diffusers: a sample for each
/// control image, one for the input image, the noise, one for what a mask leaves of the input image. Images of one request share the
/// samples of the input image; noise and control images have draws of their own, one behind the other. Reference images have none:
/// their mean is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draws {
    /// Numbers of a draw: those of an image's latents.
    elements: usize,
    /// Images of the request, and which of them this is.
    images: usize,
    index: usize,
    controls: usize,
    has_input: bool,
}

impl Draws {
    /// Of a request whose latents have so many numbers.
    pub(crate) fn of(spec: &GenerateSpec, elements: usize) -> Self {
        Self {
            elements,
            images: spec.batch_size() as usize,
            index: spec.image_index() as usize,
            controls: spec.controls().len(),
            has_input: spec.input_image().is_some(),
        }
    }

    /// Numbers before the sample of a control image, by its place in the request.
    pub(crate) fn control(&self, place: usize) -> usize {
        (place * self.images + self.index) * self.elements
    }

    /// Numbers before the sample of the input image.
    pub(crate) fn input(&self) -> usize {
        self.controls * self.images * self.elements
    }

    /// Numbers before the noise.
    pub(crate) fn noise(&self) -> usize {
        self.input() + (usize::from(self.has_input) + self.index) * self.elements
    }

    /// Numbers before the sample of what a mask leaves.
    pub(crate) fn masked(&self) -> usize {
        self.input() + (1 + self.images) * self.elements
    }
}

/// An image of a request that is to be encoded.
pub(crate) struct Part {
    pub(super) image: Arc<RgbImage>,
    /// Whether its depth is encoded in place of it.
    pub(super) is_depth_estimated: bool,
    /// Numbers before its sample in the seed's generator. `None`: its mean is taken.
    pub(crate) draw: Option<usize>,
    pub(crate) goal: Goal,
}

/// What an encoded image is for.
pub(crate) enum Goal {
    /// The run starts from it. With a mask, what that leaves stays as it is in every step.
    Start { mask: Option<Arc<RgbImage>> },
    /// What a mask leaves of it is joined to the latents, and the mask itself behind that (FLUX.1-Fill).
    Surroundings { mask: Arc<RgbImage> },
    /// It is joined to the latents (FLUX.1-Canny, FLUX.1-Depth).
    Control,
    /// A ControlNet reads it: the index of one of the image's controls.
    Net { control: usize },
    /// Its tokens follow those of the image (FLUX.1-Kontext).
    Reference,
}

impl Part {
    /// The pixels that are encoded.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub(crate) fn pixels(&self, device: &Device) -> Result<Tensor> {
        match &self.goal {
            Goal::Surroundings { mask } => masks::surroundings(&self.image, mask, device),
            Goal::Start { .. } | Goal::Control | Goal::Net { .. } | Goal::Reference => {
                vae::pixels_of(&self.image, device)
            }
        }
    }

    /// Its size in tokens, with latents of so many channels.
    pub(crate) fn grid(&self, channels: usize) -> TokenGrid {
        TokenGrid::of_sides(self.image.width(), self.image.height(), channels)
    }
}

/// The images of a request that are to be encoded, the next one first.
pub(crate) struct Pending {
    seed: u64,
    parts: VecDeque<Part>,
    /// The state of the first, once it has begun.
    begun: Option<Encoding>,
}

impl Pending {
    /// All of a request, for a model that reads so, with ControlNets that read these, and a run that starts at a noise level.
    pub(crate) fn of(
        spec: &GenerateSpec,
        (reads, by_nets): (Conditioning, &Controls),
        draws: &Draws,
        sigma: f32,
    ) -> Self {
        let mut parts = VecDeque::new();
        if let Some(input) = spec.input_image() {
            let mut add = |draw: usize, goal: Goal| {
                let image = Arc::clone(&input.image);
                parts.push_back(Part { image, is_depth_estimated: false, draw: Some(draw), goal });
            };
            let (is_filled, mask) = (reads == Conditioning::Fill, spec.mask());
            let kept = mask.filter(|_| !is_filled);
            // At noise level 1 nothing is left of it.
            if sigma < 1.0 || kept.is_some() {
                add(draws.input(), Goal::Start { mask: kept.cloned() });
            }
            if let Some(mask) = mask.filter(|_| is_filled) {
                add(draws.masked(), Goal::Surroundings { mask: Arc::clone(mask) });
            }
        }
        let controls = spec.controls().iter().enumerate().filter(|(_, control)| control.controlnet.is_none());
        parts.extend(controls.map(|(place, control)| Part {
            image: Arc::clone(&control.image),
            is_depth_estimated: control.is_depth_estimated,
            draw: Some(draws.control(place)),
            goal: Goal::Control,
        }));
        // One that never acts is not encoded.
        let used = by_nets.all.iter().enumerate().filter(|(_, control)| control.is_used());
        parts.extend(used.map(|(index, control)| Part {
            image: Arc::clone(&spec.controls()[control.number].image),
            is_depth_estimated: spec.controls()[control.number].is_depth_estimated,
            draw: Some(draws.control(control.number)),
            goal: Goal::Net { control: index },
        }));
        let reference =
            |image| Part { image: Arc::clone(image), is_depth_estimated: false, draw: None, goal: Goal::Reference };
        parts.extend(spec.references().iter().map(reference));
        Self { seed: spec.seed(), parts, begun: None }
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The seed of the samples.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The next image.
    pub(crate) fn first(&self) -> Option<&Part> {
        self.parts.front()
    }

    /// How far the next image is.
    pub(crate) fn begun(&self) -> Option<&Encoding> {
        self.begun.as_ref()
    }

    /// Notes how far the next image is.
    pub(crate) fn note(&mut self, encoding: Encoding) {
        self.begun = Some(encoding);
    }

    /// Drops the next image, which is encoded.
    pub(crate) fn complete_first(&mut self) {
        self.parts.pop_front();
        self.begun = None;
    }
}

/// Why a model that reads so cannot generate a request, if so. A card refuses the same before; but a checkpoint may be another than
/// its card says.
pub(crate) fn refusal(spec: &GenerateSpec, reads: Conditioning) -> Option<String> {
    let (has_input, has_mask) = (spec.input_image().is_some(), spec.mask().is_some());
    let (controls, references, styles) = (spec.controls().len(), spec.references().len(), spec.styles().len());
    let by_model = spec.controls().iter().filter(|control| control.controlnet.is_none()).count();
    let reason = match reads {
        Conditioning::Fill if !(has_input && has_mask) => {
            "this checkpoint repaints part of an image, as FLUX.1-Fill: a request needs an input image and a mask"
        }
        Conditioning::Fill if controls + references + styles > 0 => {
            "this checkpoint takes an input image and a mask, as FLUX.1-Fill, and no other images"
        }
        Conditioning::Control if (controls, by_model) != (1, 1) => {
            "this checkpoint follows a control image, as FLUX.1-Canny and FLUX.1-Depth: a request needs exactly one"
        }
        Conditioning::Control if has_input || has_mask || references + styles > 0 => {
            "this checkpoint takes a control image, as FLUX.1-Canny and FLUX.1-Depth, and no other images"
        }
        Conditioning::Prompt | Conditioning::References if has_mask && !has_input => "a mask needs an input image",
        Conditioning::Prompt | Conditioning::References if by_model > 0 && spec.loras().is_empty() => NO_CONTROL,
        _ => return None,
    };
    Some(reason.to_owned())
}

/// Why a checkpoint of FLUX.1-dev's kind refuses a control image.
const NO_CONTROL: &str = "this checkpoint reads no control image: it needs a ControlNet, a control LoRA, or a checkpoint as FLUX.1-Canny \
     or FLUX.1-Depth";

/// Why a request's adapters and its control images do not go together, if so: those that join inputs to the image's layer read one
/// control image, and the checkpoint by itself, if it joins none, none.
pub(crate) fn refusal_by_adapters(spec: &GenerateSpec, reads: Conditioning, adapters: &AdapterSet) -> Option<String> {
    let by_model = spec.controls().iter().filter(|control| control.controlnet.is_none()).count();
    match (adapters.joining(), by_model, reads) {
        (Some(_), 1, _) | (None, 0, _) | (None, _, Conditioning::Control) => None,
        (Some((id, _)), _, _) => Some(format!(
            "the adapter `{id}` is a control adapter: a request with it needs exactly one control image that no \
                 ControlNet reads"
        )),
        (None, ..) => Some(NO_CONTROL.to_owned()),
    }
}
