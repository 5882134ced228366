//! Masks without an edge: what nothing is repainted of, and what all of it is.

use std::sync::Arc;

use super::family::{Checkpoint, card_of};
use super::mixed::{given, params};
use super::support::{admit_encoded, diffusers_folders, engine};
use crate::domain::conditioning::{Conditioning, GivenImage, ImageRole};
use crate::domain::engine::StepEngine as _;
use crate::domain::image::RgbImage;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::engine::FluxEngine;

const SIZE: (u32, u32) = (64, 64);

/// A mask of one shade.
fn shade(shade: u8) -> GivenImage {
    let pixels = vec![shade; 3 * (SIZE.0 * SIZE.1) as usize];
    let image = RgbImage::new(SIZE.0, SIZE.1, pixels).expect("three bytes a pixel");
    GivenImage::new("images[1]", ImageRole::Mask, Arc::new(image))
}

/// The latents behind the last step of a request with an input image, and with a mask if there is one.
fn latents(
    engine: &mut FluxEngine,
    conditioning: Conditioning,
    mask: Option<GivenImage>,
    (prompt, strength): (&str, f64),
) -> Vec<f32> {
    let images = std::iter::once(given(ImageRole::Input, SIZE, 3)).chain(mask).collect();
    let (prompt, strength) = (prompt.to_owned(), Some(strength));
    let params = GenerateParams { prompt, strength, ..params(1, SIZE, images) };
    let slot = admit_encoded(engine, &GenerateSpec::new(params, &card_of(conditioning)).expect("a valid request"));
    while !engine.images[&slot].is_done() {
        engine.step(&[slot]).expect("steps");
    }
    let latents = engine.images[&slot].latents.flatten_all().and_then(|all| all.to_vec1()).expect("numbers");
    engine.release(slot);
    latents
}

/// The end is the encoded image, which `repainted_images_equal_diffusers` compares with diffusers' own.
#[test]
fn a_black_mask_leaves_the_image_as_it_is_whatever_is_asked() {
    let mut engine = engine(&diffusers_folders());
    let mut of = |mask: u8, prompt: &str, strength| {
        latents(&mut engine, Conditioning::Prompt, Some(shade(mask)), (prompt, strength))
    };
    let left = of(0, "a red circle", 1.0);
    for (prompt, strength) in [("a red circle", 0.6), ("snow", 1.0), ("snow", 0.6)] {
        assert!(of(0, prompt, strength) == left, "{prompt}, {strength}");
    }
    // From half of white on it is repainted.
    assert!(of(127, "snow", 1.0) == left && of(128, "snow", 1.0) != left);
}

#[test]
fn a_white_mask_is_none() {
    let mut engine = engine(&diffusers_folders());
    let mut of = |mask: Option<u8>, request| latents(&mut engine, Conditioning::Prompt, mask.map(shade), request);
    for request in [("a red circle", 1.0), ("a red circle", 0.6), ("snow", 0.6)] {
        assert!(of(Some(255), request) == of(None, request), "{request:?}");
    }
    assert!(of(Some(255), ("snow", 0.6)) != of(Some(255), ("a red circle", 0.6)));
}

/// FLUX.1-Fill is told what to keep, and draws all of the image itself.
#[test]
fn a_mask_of_one_shade_is_what_the_model_that_fills_makes_of_it() {
    let mut engine = engine(&Checkpoint::fill().files());
    let mut of = |mask: u8, prompt| latents(&mut engine, Conditioning::Fill, Some(shade(mask)), (prompt, 1.0));
    let [black, white] = [of(0, "snow"), of(255, "snow")];
    assert!(black != white && black.iter().chain(&white).all(|number| number.is_finite()));
    assert!(of(0, "a red circle") != black, "the prompt counts where nothing is white, too");
}
