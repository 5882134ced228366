//! The rules of a request's images.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{
    FILL_STRENGTH_DEFAULT, FieldError, GenerateParams, INPUT_IMAGES, InputImage, MASK_PADDING, MASK_PADDING_MAX,
    PIXELS_PER_TOKEN_SIDE, STRENGTH_DEFAULT,
};
use crate::domain::conditioning::{
    Conditioning, ControlImage, GivenImage, IMAGE_SCALE_MAX, IMAGES, IMAGES_MAX, ImageOptions, ImageRole, Preprocess,
    StyleImage, count_in_words,
};
use crate::domain::image::RgbImage;
use crate::domain::model::ModelCard;
use crate::domain::overlay::Overlay;

/// The images of a valid request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct CheckedImages {
    pub(super) input: Option<InputImage>,
    pub(super) mask: Option<Arc<RgbImage>>,
    pub(super) overlay: Option<Overlay>,
    pub(super) controls: Vec<ControlImage>,
    pub(super) references: Vec<Arc<RgbImage>>,
    pub(super) styles: Vec<StyleImage>,
    /// Of all style images together.
    pub(super) style_tokens: usize,
}

/// What is wrong with the numbers of images of each role, if anything.
#[must_use]
pub fn image_count_errors(params: &GenerateParams, card: &ModelCard) -> Vec<FieldError> {
    let main = card.conditioning.main_role();
    let mut errors = Vec::new();
    for role in ImageRole::ALL {
        let (count, allowed) = (params.count(role), allowed(role, params, card));
        if !allowed.contains(&count) {
            let is_main = role == main && !is_named(params, role);
            let (field, name) = if is_main { (INPUT_IMAGES, "input") } else { (IMAGES, role.as_str()) };
            let images = if *allowed.end() == 1 && *allowed.start() == 1 { "image" } else { "images" };
            let counts = match (*allowed.start(), *allowed.end()) {
                (0, 0) if is_main => "from 0 to 0".to_owned(),
                (0, 0) => "no".to_owned(),
                (min, max) if is_main => format!("from {min} to {max}"),
                _ => count_in_words(&allowed),
            };
            errors.push(FieldError::new(field, format!("this model takes {counts} {name} {images}, not {count}")));
        }
    }
    if params.images.len() > IMAGES_MAX {
        errors
            .push(FieldError::new(IMAGES, format!("must be at most {IMAGES_MAX} images, not {}", params.images.len())));
    }
    errors.extend(combination_errors(params));
    errors
}

/// Whether images of a role were given by its name.
fn is_named(params: &GenerateParams, role: ImageRole) -> bool {
    params.images.iter().any(|given| given.role == role && given.field.starts_with(IMAGES))
}

/// How many images of a role a request may have. What cards do not know: a model without ControlNets takes a control image where the
/// request has a LoRA that reads it (FLUX.1-Canny-dev-lora, FLUX.1-Depth-dev-lora). The engine knows whether it does.
fn allowed(role: ImageRole, params: &GenerateParams, card: &ModelCard) -> RangeInclusive<usize> {
    let is_prompted = matches!(card.conditioning, Conditioning::Prompt | Conditioning::References);
    let is_by_lora = is_prompted && card.attached.controlnets.is_empty() && !params.loras.is_empty();
    if role == ImageRole::Control && is_by_lora { 0..=1 } else { card.images(role) }
}

/// What does not go together.
fn combination_errors(params: &GenerateParams) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let input = params.count(ImageRole::Input);
    if let Some(mask) = params.image(ImageRole::Mask).filter(|_| input == 0) {
        errors.push(FieldError::new(mask.field.clone(), "a mask needs an input image"));
    }
    let reference = params.image(ImageRole::Reference);
    if let (Some(control), Some(_)) = (params.image(ImageRole::Control), reference) {
        errors.push(FieldError::new(control.field.clone(), "a ControlNet and reference images do not go together"));
    }
    if let Some(padding) = params.mask_padding {
        match params.image(ImageRole::Mask) {
            None => errors.push(FieldError::new(MASK_PADDING, "needs a mask")),
            Some(mask) if params.overlay.is_none() && mask.image.is_black() => {
                let reason = format!("has nothing white, so there is no region for `{MASK_PADDING}` to cut out");
                errors.push(FieldError::new(mask.field.clone(), reason));
            }
            Some(_) => {}
        }
        if padding > MASK_PADDING_MAX {
            errors.push(FieldError::new(MASK_PADDING, format!("must be at most {MASK_PADDING_MAX}, not {padding}")));
        }
    }
    errors
}

/// What is wrong with the options of images, if anything.
#[must_use]
pub fn option_errors(params: &GenerateParams, card: &ModelCard) -> Vec<FieldError> {
    params.images.iter().flat_map(|given| errors_of(given, card)).collect()
}

fn errors_of(given: &GivenImage, card: &ModelCard) -> Vec<FieldError> {
    let ImageOptions { controlnet, mode, preprocess, scale, start, end } = &given.options;
    let mut errors = Vec::new();
    let mut refuse = |option: &str, reason: String| {
        errors.push(FieldError::new(format!("{}.{option}", given.field), reason));
    };
    let is_control = given.role == ImageRole::Control;
    // Channels of the model itself, or of a LoRA, have neither a name nor a strength.
    let is_by_net = is_control && is_by_net(card);
    let has_scale = is_by_net || given.role == ImageRole::Style;
    let given_options = [
        ("controlnet", controlnet.is_some(), is_by_net),
        ("mode", mode.is_some(), is_by_net),
        ("preprocess", preprocess.is_some(), is_control),
        ("scale", scale.is_some(), has_scale),
        ("start", start.is_some(), is_by_net),
        ("end", end.is_some(), is_by_net),
    ];
    for (option, _, _) in given_options.into_iter().filter(|(_, is_given, is_known)| *is_given && !is_known) {
        let role = given.role;
        let of = match card.conditioning {
            _ if !is_control => "of this role",
            Conditioning::Control => "of this model, which takes control images by itself",
            _ => "of this model, which has no ControlNets",
        };
        refuse(option, format!("is no option of a {role} image {of}"));
    }
    if scale.is_some_and(|scale| !(0.0..=IMAGE_SCALE_MAX).contains(&scale)) {
        refuse("scale", format!("must be from 0 to {IMAGE_SCALE_MAX}, not {}", scale.unwrap_or_default()));
    }
    let (first, last) = (start.unwrap_or(0.0), end.unwrap_or(1.0));
    if !(0.0..1.0).contains(&first) {
        refuse("start", format!("must be at least 0 and below 1, not {first}"));
    } else if !(last > first && last <= 1.0) {
        refuse("end", format!("must be above `start` and at most 1, not {last}"));
    }
    if *preprocess == Some(Preprocess::Depth) && !card.attached.estimates_depth {
        refuse("preprocess", "this worker has no model that estimates depth: send a depth map instead".to_owned());
    }
    if is_by_net {
        errors.extend(net_errors(given, card));
    }
    errors
}

fn net_errors(given: &GivenImage, card: &ModelCard) -> Vec<FieldError> {
    let nets = &card.attached.controlnets;
    let names = || nets.iter().map(|net| format!("`{}`", net.name)).collect::<Vec<_>>().join(", ");
    let refuse = |option: &str, reason: String| vec![FieldError::new(format!("{}.{option}", given.field), reason)];
    let net = match &given.options.controlnet {
        Some(name) => nets.iter().find(|net| net.name == *name),
        None if nets.len() == 1 => nets.first(),
        None => return refuse("controlnet", format!("must name one of this model's ControlNets: {}", names())),
    };
    let Some(net) = net else {
        return refuse("controlnet", format!("must be one of this model's ControlNets: {}", names()));
    };
    match (given.options.mode, net.modes) {
        (Some(mode), Some(modes)) if mode.0 >= modes => {
            refuse("mode", format!("`{}` has modes from 0 to {}, not {}", net.name, modes.saturating_sub(1), mode.0))
        }
        (None, Some(_)) => refuse("mode", format!("`{}` needs the kind of the control image", net.name)),
        (Some(_), None) => refuse("mode", format!("`{}` has no modes", net.name)),
        _ => Vec::new(),
    }
}

impl CheckedImages {
    /// The images of a request of which all else is valid, if they have the sizes that their roles require.
    pub(super) fn of(params: &GenerateParams, card: &ModelCard, size: (u32, u32)) -> Result<Self, Vec<FieldError>> {
        let errors: Vec<FieldError> = params.images.iter().filter_map(|given| size_error(given, card, size)).collect();
        if !errors.is_empty() {
            return Err(errors);
        }
        let of = |role| params.images.iter().filter(move |given: &&GivenImage| given.role == role);
        let strength = match card.conditioning {
            Conditioning::Fill => FILL_STRENGTH_DEFAULT,
            _ => STRENGTH_DEFAULT,
        };
        let input = of(ImageRole::Input)
            .next()
            .map(|given| InputImage { image: Arc::clone(&given.image), strength: params.strength.unwrap_or(strength) });
        let styles: Vec<StyleImage> = of(ImageRole::Style)
            .map(|given| StyleImage { image: Arc::clone(&given.image), scale: given.options.scale.unwrap_or(1.0) })
            .collect();
        let style_tokens = card.attached.style.filter(|_| !styles.is_empty()).map_or(0, |style| style.tokens);
        Ok(Self {
            input,
            mask: of(ImageRole::Mask).next().map(|given| Arc::clone(&given.image)),
            overlay: params.overlay.clone(),
            controls: of(ImageRole::Control).map(|given| control(given, card)).collect(),
            references: of(ImageRole::Reference).map(|given| Arc::clone(&given.image)).collect(),
            styles,
            style_tokens,
        })
    }

    /// Every image with its role, as [`GenerateParams::images`] has them.
    pub(super) fn given(&self) -> impl Iterator<Item = (ImageRole, &Arc<RgbImage>, ImageOptions)> {
        let whole = self.overlay.as_ref();
        let input = self.input.as_ref().map(|input| whole.map_or(&input.image, |whole| &whole.image));
        let mask = self.mask.as_ref().map(|mask| whole.map_or(mask, |whole| &whole.mask));
        let plain = |role| move |image| (role, image, ImageOptions::default());
        let controls = self.controls.iter().map(|control| {
            let by_net = control.controlnet.is_some();
            let options = ImageOptions {
                controlnet: control.controlnet.clone(),
                mode: control.mode,
                preprocess: control.is_depth_estimated.then_some(Preprocess::Depth),
                scale: by_net.then_some(control.scale),
                start: by_net.then_some(control.start),
                end: by_net.then_some(control.end),
            };
            (ImageRole::Control, &control.image, options)
        });
        let styles = self.styles.iter().map(|style| {
            (ImageRole::Style, &style.image, ImageOptions { scale: Some(style.scale), ..ImageOptions::default() })
        });
        input
            .into_iter()
            .map(plain(ImageRole::Input))
            .chain(mask.into_iter().map(plain(ImageRole::Mask)))
            .chain(controls)
            .chain(self.references.iter().map(plain(ImageRole::Reference)))
            .chain(styles)
    }
}

/// Whether a model's control images are read by its ControlNets.
fn is_by_net(card: &ModelCard) -> bool {
    card.conditioning != Conditioning::Control && !card.attached.controlnets.is_empty()
}

fn control(given: &GivenImage, card: &ModelCard) -> ControlImage {
    let is_by_net = is_by_net(card);
    let only = || card.attached.controlnets.first().map(|net| Arc::clone(&net.name));
    ControlImage {
        image: Arc::clone(&given.image),
        controlnet: given.options.controlnet.clone().or_else(only).filter(|_| is_by_net),
        mode: given.options.mode,
        is_depth_estimated: given.options.preprocess == Some(Preprocess::Depth),
        scale: given.options.scale.unwrap_or(1.0),
        start: given.options.start.unwrap_or(0.0),
        end: given.options.end.unwrap_or(1.0),
    }
}

/// What is wrong with the size of an image, if anything.
fn size_error(given: &GivenImage, card: &ModelCard, output: (u32, u32)) -> Option<FieldError> {
    let size = (given.image.width(), given.image.height());
    let is_of_tokens = |side: u32| side > 0 && side.is_multiple_of(PIXELS_PER_TOKEN_SIDE);
    let (is_allowed, must) = match given.role {
        ImageRole::Input | ImageRole::Mask | ImageRole::Control => {
            (size == output, format!("must be {}x{} pixels", output.0, output.1))
        }
        ImageRole::Reference => {
            let fits = u64::from(size.0) * u64::from(size.1) <= u64::from(card.limits.pixels_max);
            let rule = format!(
                "must have sides of whole multiples of {PIXELS_PER_TOKEN_SIDE} pixels, and at most {} pixels",
                card.limits.pixels_max
            );
            (is_of_tokens(size.0) && is_of_tokens(size.1) && fits, rule)
        }
        ImageRole::Style => {
            let side = card.attached.style.map_or(0, |style| style.side);
            (size == (side, side), format!("must be {side}x{side} pixels"))
        }
    };
    (!is_allowed).then(|| FieldError::new(given.field.clone(), format!("{must}, not {}x{}", size.0, size.1)))
}
