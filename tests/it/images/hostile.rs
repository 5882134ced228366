//! Images and masks that hurt: of one color, of odd sizes, of sixteen bits a channel, and more than there may be.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};
use serde_json::{Value, json};

use super::{ORANGE, TEAL, WHITE, body, color, done, flat, kontext, of, with_card};
use crate::app::TestApp;

const BLACK: [u8; 3] = [0; 3];

/// An image to change.
fn input(file: &str) -> Value {
    json!({ "role": "input", "base64": file })
}

/// A request for a part of an image.
fn masked(seed: u64, mask: &str) -> Value {
    body(seed, &[of("input", ORANGE), json!({ "role": "mask", "base64": mask })])
}

#[tokio::test]
async fn a_mask_of_one_shade_reaches_the_engine_as_it_is() {
    let app = TestApp::start().await;
    for (seed, shade) in [(1, 0), (2, 127), (3, 128), (4, 255)] {
        done(&app, &masked(seed, &flat(64, 64, [shade; 3]))).await;
        let spec = app.control.spec_of(seed);
        assert!(spec.mask().expect("a mask").pixels().iter().all(|byte| *byte == shade), "{shade}");
    }
}

#[tokio::test]
async fn a_black_mask_has_no_region_to_cut_out_and_a_white_one_is_all() {
    let app = TestApp::start().await;
    let cut_out = |mask| {
        let mut asked = masked(1, &flat(64, 64, mask));
        asked["mask_padding"] = json!(8);
        asked
    };
    let refused = app.post(&cut_out(BLACK)).await;
    assert_eq!(refused.fields(), ["images[1]"]);
    assert!(refused.text().contains("nothing white"), "{}", refused.text());
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
    done(&app, &cut_out(WHITE)).await;
}

#[tokio::test]
async fn a_mask_of_another_size_is_stretched_over_its_image() {
    let app = TestApp::start().await;
    for (seed, (width, height)) in (1..).zip([(1, 1), (7, 5), (1, 16_384), (16_384, 1)]) {
        done(&app, &masked(seed, &flat(width, height, WHITE))).await;
        let spec = app.control.spec_of(seed);
        let mask = spec.mask().expect("a mask");
        assert_eq!((mask.width(), mask.height()), (64, 64), "{width}x{height}");
        assert!(mask.pixels().iter().all(|byte| *byte >= 128), "{width}x{height}: all of it is repainted");
    }
}

#[tokio::test]
async fn sixteen_bits_of_a_channel_become_eight() {
    let app = TestApp::start().await;
    let orange: Vec<u8> = ORANGE.iter().flat_map(|byte| [*byte; 2]).collect();
    let clear = |pixel: &[u8]| [pixel, &[0, 0]].concat();
    let cases = [
        (ExtendedColorType::L16, vec![119; 2], [119; 3]),
        (ExtendedColorType::La16, clear(&[119; 2]), [119; 3]),
        (ExtendedColorType::Rgb16, orange.clone(), ORANGE),
        (ExtendedColorType::Rgba16, clear(&orange), ORANGE),
    ];
    for (seed, (kind, pixel, expected)) in (1..).zip(cases) {
        let mut file = Vec::new();
        PngEncoder::new(&mut file).write_image(&pixel.repeat(64 * 64), 64, 64, kind).expect("encodes");
        done(&app, &body(seed, &[input(&STANDARD.encode(file))])).await;
        let spec = app.control.spec_of(seed);
        assert_eq!(color(&spec.input_image().expect("an image").image), expected, "{kind:?}");
    }
}

#[tokio::test]
async fn the_longest_images_are_taken_and_longer_ones_named() {
    let app = TestApp::start().await;
    for (seed, (width, height)) in (1..).zip([(16_384, 1), (1, 16_384), (1, 1)]) {
        done(&app, &body(seed, &[input(&flat(width, height, TEAL))])).await;
        let spec = app.control.spec_of(seed);
        let image = &spec.input_image().expect("an image").image;
        assert_eq!((image.width(), image.height()), (64, 64), "{width}x{height}");
        assert!(color(image).iter().zip(TEAL).all(|(found, teal)| found.abs_diff(teal) <= 1), "{width}x{height}");
    }
    for (width, height) in [(16_385, 1), (1, 16_385)] {
        let refused = app.post(&body(9, &[input(&flat(width, height, TEAL))])).await;
        assert_eq!(refused.fields(), ["images[0]"]);
        let reason = format!("at most 16384 pixels wide and high, not {width}x{height}");
        assert!(refused.text().contains(&reason), "{}", refused.text());
    }
}

#[tokio::test]
async fn twenty_references_are_refused_before_one_is_decoded() {
    let app = with_card(kontext).await;
    let broken = json!({ "role": "reference", "base64": "no base64 at all" });
    let refused = app.post(&body(1, &vec![broken; 20])).await;
    assert!(refused.fields().iter().all(|field| field == "images"), "{}", refused.text());
    for reason in ["from 0 to 2 reference images, not 20", "at most 16 images, not 20"] {
        assert!(refused.text().contains(reason), "{reason}: {}", refused.text());
    }
    assert!(app.control.calls().is_empty(), "nothing reached the engine");
}
