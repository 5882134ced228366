//! The region around a mask, against what diffusers' rules and Pillow make of the same images.

use std::path::Path;

use super::super::prepare;
use super::super::tests::{apart, reference, two_halves};
use super::*;
use crate::catalog::card_or_flux_dev;
use crate::domain::conditioning::GivenImage;
use crate::domain::device::DeviceChoice;
use crate::domain::engine::StepEngine as _;
use crate::domain::ids::ModelId;
use crate::domain::model::{ModelCard, ModelFiles};
use crate::domain::spec::{GenerateSpec, MASK_PADDING_MAX};
use crate::engine::FluxEngine;

fn card() -> ModelCard {
    ModelCard { input_images_max: 1, ..card_or_flux_dev(&ModelId::new("black-forest-labs/FLUX.1-dev")) }
}

/// A request for a part of an image, in an output size.
fn request(image: RgbImage, mask: RgbImage, padding: u32, size: Option<(u32, u32)>) -> GenerateParams {
    let images = [(ImageRole::Input, image), (ImageRole::Mask, mask)];
    GenerateParams {
        prompt: "a fox".into(),
        images: images.map(|(role, image)| GivenImage::new(role.as_str(), role, Arc::new(image))).into(),
        mask_padding: Some(padding),
        width: size.map(|(width, _)| width),
        height: size.map(|(_, height)| height),
        ..GenerateParams::default()
    }
}

/// A black image with a white box: its columns and rows, and those behind its last.
fn mask_of((width, height): (u32, u32), (columns, rows): ((u32, u32), (u32, u32))) -> RgbImage {
    let is_white = |x: u32, y: u32| (columns.0..columns.1).contains(&x) && (rows.0..rows.1).contains(&y);
    let shade = |x: u32, y: u32| if is_white(x, y) { u8::MAX } else { 0 };
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [shade(x, y); PIXEL_BYTES]));
    RgbImage::new(width, height, pixels.collect()).expect("three bytes per pixel")
}

fn overlay_of(params: GenerateParams) -> Overlay {
    prepare(params, &card()).overlay.expect("the mask has something white")
}

/// `tests/reference/images/README.md` says what was recorded; `corner` is also a case of diffusers' own pipeline.
#[test]
fn a_region_is_that_of_diffusers() {
    for (name, whole, padding, size, region) in [
        ("corner", "noisy", 8, (96, 64), (0, 0, 48, 32)),
        ("soft", "shapes", 5, (64, 64), (45, 15, 50, 50)),
        ("wide", "shapes", 2, (64, 96), (1, 0, 118, 80)),
        ("tall", "shapes", 1, (192, 64), (0, 0, 120, 80)),
        ("dot", "shapes", 0, (64, 64), (119, 79, 1, 1)),
    ] {
        let (image, mask) = (reference(&format!("images/{whole}.png")), reference(&format!("images/{name}-mask.png")));
        let params = prepare(request(image, mask, padding, Some(size)), &card());
        let Region { x, y, width, height } = params.overlay.as_ref().expect("cut out").region;
        assert_eq!((x, y, width, height), region, "{name}");
        // PIL rounds between its two passes, so values differ by one.
        let (most, count) = apart(&params.images[0].image, &reference(&format!("images/{name}-cut.png")));
        assert!(most <= 2 && count < params.images[0].image.pixels().len() / 3, "{name}: {most}, {count} bytes");
        // And cuts off what a filter adds beyond white and black, which is more at a mask's corners.
        let recorded = reference(&format!("images/{name}-cut-mask.png"));
        let is_white = |byte: &u8| *byte >= 128;
        let pairs = params.images[1].image.pixels().iter().zip(recorded.pixels());
        let other = pairs.filter(|(mine, recorded)| is_white(mine) != is_white(recorded)).count();
        assert!(other <= 12, "{name}: {other} bytes of the mask are on the other side of half");
    }
}

#[test]
fn a_result_is_put_back_as_diffusers_does() {
    for (name, whole, padding, size) in
        [("corner", "noisy", 8, (96, 64)), ("soft", "shapes", 5, (64, 64)), ("dot", "shapes", 0, (64, 64))]
    {
        let image = reference(&format!("images/{whole}.png"));
        let mask = reference(&format!("images/{name}-mask.png"));
        let overlay = overlay_of(request(image, mask, padding, Some(size)));
        let result = put_back(&overlay, &reference(&format!("images/{name}-generated.png")));
        let (most, count) = apart(&result, &reference(&format!("images/{name}-back.png")));
        assert!(most <= 1 && count < result.pixels().len() / 20, "{name}: {most}, {count} bytes");
    }
}

#[test]
fn only_what_is_white_changes_and_it_stays_in_its_place() {
    for (name, padding, size) in [("wide", 2, (64, 96)), ("tall", 1, (192, 64)), ("soft", 5, (96, 64))] {
        let (image, mask) = (reference("images/shapes.png"), reference(&format!("images/{name}-mask.png")));
        let params = prepare(request(image.clone(), mask.clone(), padding, Some(size)), &card());
        let overlay = params.overlay.expect("cut out");
        // As if nothing had been repainted.
        let result = put_back(&overlay, &params.images[0].image);
        let sum: u64 = image.pixels().iter().zip(result.pixels()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert!(sum < image.pixels().len() as u64 / 4, "{name}: {sum}");
        let pixels = image.pixels().iter().zip(result.pixels()).zip(mask.pixels());
        assert!(pixels.filter(|(_, mask)| **mask == 0).all(|((a, b), _)| a == b), "{name}");
    }
}

#[test]
fn a_region_is_cut_out_again_from_the_whole_images() {
    let (image, mask) = (two_halves(300, 200), mask_of((300, 200), ((120, 160), (90, 110))));
    let params = prepare(request(image, mask, 16, None), &card());
    assert_eq!((params.width, params.height), (Some(288), Some(192)), "the whole's proportions");
    assert_eq!(prepare(params.clone(), &card()), params, "a prepared request stays");
    let spec = GenerateSpec::new(params.clone(), &card()).expect("valid");
    let stored: Vec<GivenImage> =
        spec.given_images().map(|(role, image, _)| GivenImage::new(role.as_str(), role, Arc::clone(image))).collect();
    assert_eq!((stored[0].image.width(), stored[1].image.width()), (300, 300));
    let again = prepare(GenerateParams { images: stored, overlay: None, ..params }, &card());
    assert_eq!(GenerateSpec::new(again, &card()).as_ref(), Ok(&spec));
}

#[test]
fn a_mask_of_another_size_is_stretched_to_the_whole_image() {
    for (size, mask) in [((10, 7), two_halves(1, 1)), ((16_384, 1), mask_of((2, 2), ((1, 2), (0, 2))))] {
        let params = prepare(request(two_halves(size.0, size.1), mask, MASK_PADDING_MAX, Some((64, 64))), &card());
        let overlay = params.overlay.expect("cut out");
        assert_eq!((overlay.mask.width(), overlay.mask.height()), size);
        assert_eq!((params.images[0].image.width(), params.images[1].image.height()), (64, 64));
        let result = put_back(&overlay, &params.images[0].image);
        assert_eq!((result.width(), result.height()), size);
    }
}

#[test]
fn a_black_mask_is_refused_by_name_and_a_white_one_is_all() {
    let black = request(two_halves(70, 70), mask_of((70, 70), ((0, 0), (0, 0))), 8, None);
    let errors = GenerateSpec::new(prepare(black, &card()), &card()).expect_err("nothing to repaint");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].field == "mask" && errors[0].reason.contains("nothing white"), "{errors:?}");
    let white = request(two_halves(70, 70), mask_of((70, 70), ((0, 70), (0, 70))), 8, None);
    let region = overlay_of(white).region;
    assert_eq!(region, Region { x: 0, y: 0, width: 70, height: 70 });
}

#[test]
fn borders_continue_what_they_are_next_to() {
    assert_eq!([beyond(9, 9), beyond(100, 92), beyond(0, 255), beyond(255, 0)], [9, 101, 0, 255]);
    assert_eq!((0..5).map(|at| source(at, 1, 3)).collect::<Vec<_>>(), [(0, 1), (0, 0), (1, 1), (2, 2), (2, 1)]);
    assert_eq!([source(0, 1, 1), source(2, 1, 1)], [(0, 0), (0, 0)]);
    let thin = Region { x: 0, y: 0, width: 16_384, height: 1 };
    let place = place_in((64, 64), &thin);
    assert_eq!((place.width, place.height, place.y), (64, 1, 32), "at least a pixel");
}

/// From the image and its mask to the whole image: a case of diffusers' inpainting pipeline with `padding_mask_crop`.
#[test]
fn a_region_is_repainted_and_put_back_as_by_diffusers() {
    let mask = reference("images/corner-mask.png");
    let params = GenerateParams {
        prompt: "A red circle on a blue background.".into(),
        strength: Some(0.8),
        steps: Some(3),
        guidance: Some(3.5),
        seed: 70_009,
        sequence_length: Some(64),
        ..request(reference("images/noisy.png"), mask.clone(), 8, Some((96, 64)))
    };
    let spec = GenerateSpec::new(prepare(params, &card()), &card()).expect("a valid request");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/FLUX.1-dev");
    let mut engine = FluxEngine::load(&ModelFiles::Directory(folder), DeviceChoice::Cpu).expect("the checkpoint loads");
    let slot = engine.admit(&spec).expect("admits");
    for _ in 0..spec.steps() {
        engine.step(&[slot]).expect("steps");
    }
    let generated = engine.finish(slot).expect("finishes");
    assert_eq!((generated.width(), generated.height()), (96, 64));
    let result = put_back(spec.overlay().expect("a region"), &generated);

    let expected = reference("images/corner-painted.png");
    assert_eq!((result.width(), result.height()), (expected.width(), expected.height()));
    let bytes = result.pixels().iter().zip(expected.pixels()).zip(mask.pixels());
    let repainted: Vec<u8> = bytes.clone().filter(|(_, mask)| **mask > 0).map(|((a, b), _)| a.abs_diff(*b)).collect();
    assert!(bytes.filter(|(_, mask)| **mask == 0).all(|((a, b), _)| a == b), "the rest is the image itself");
    // The image was reduced by another implementation of the same filter: its values differ by one.
    let sum: usize = repainted.iter().map(|difference| usize::from(*difference)).sum();
    let most = repainted.iter().max().copied().unwrap_or_default();
    assert!(sum < repainted.len() && most <= 8, "{sum} levels in {} bytes, at most {most}", repainted.len());
}
