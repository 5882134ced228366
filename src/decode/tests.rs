//! Decoding, and preparing a request's images.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::*;
use crate::catalog::card_or_flux_dev;
use crate::domain::conditioning::{
    AttachedCards, Conditioning, ControlNetCard, ImageOptions, KONTEXT_SIZES, StyleCard,
};
use crate::domain::format::OutputFormat;
use crate::domain::ids::ModelId;
use crate::domain::spec::GenerateSpec;
use crate::encode::encode;

/// Red on the left, blue on the right.
pub(super) fn two_halves(width: u32, height: u32) -> RgbImage {
    let pixel = |x: u32| if x < width / 2 { [200, 40, 40] } else { [40, 40, 200] };
    let pixels = (0..height).flat_map(|_| (0..width).flat_map(pixel)).collect();
    RgbImage::new(width, height, pixels).expect("three bytes per pixel")
}

pub(super) fn png(pixels: &[u8], (width, height): (u32, u32), color: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(pixels, width, height, color).expect("encodes");
    bytes
}

/// A file of `tests/reference`.
pub(super) fn reference(path: &str) -> RgbImage {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path);
    decode(&std::fs::read(path).expect("a file")).expect("an image")
}

/// The largest difference of two images of the same size, and how many bytes differ.
pub(super) fn apart(a: &RgbImage, b: &RgbImage) -> (u8, usize) {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let differences = a.pixels().iter().zip(b.pixels()).map(|(a, b)| a.abs_diff(*b));
    differences.fold((0, 0), |(most, count), next| (most.max(next), count + usize::from(next > 0)))
}

#[test]
fn every_format_that_is_written_is_read() {
    let image = two_halves(48, 32);
    for format in OutputFormat::ALL {
        let read = decode(&encode(&image, format).expect("encodes")).expect("decodes");
        assert_eq!((read.width(), read.height()), (48, 32), "{format}");
        let is_lossless = format != OutputFormat::Jpeg;
        assert!(!is_lossless || read == image, "{format}");
    }
}

#[test]
fn transparency_is_dropped_and_gray_becomes_color() {
    let rgba = png(&[10, 20, 30, 0, 40, 50, 60, 128], (2, 1), ExtendedColorType::Rgba8);
    assert_eq!(decode(&rgba).expect("decodes").pixels(), [10, 20, 30, 40, 50, 60]);
    let gray = png(&[7, 200], (2, 1), ExtendedColorType::L8);
    assert_eq!(decode(&gray).expect("decodes").pixels(), [7, 7, 7, 200, 200, 200]);
    for (deep, expected) in [
        (png(&[0x12, 0x12, 0xff, 0xff, 0, 0], (1, 1), ExtendedColorType::Rgb16), [0x12, 0xff, 0]),
        (png(&[0x12, 0x12, 0xff, 0xff, 0, 0, 0, 0], (1, 1), ExtendedColorType::Rgba16), [0x12, 0xff, 0]),
        (png(&[0x34, 0x34], (1, 1), ExtendedColorType::L16), [0x34; 3]),
        (png(&[0x34, 0x34, 0, 0], (1, 1), ExtendedColorType::La16), [0x34; 3]),
    ] {
        assert_eq!(decode(&deep).expect("decodes").pixels(), expected);
    }
}

#[test]
fn the_exif_orientation_is_applied() {
    // TIFF, little endian: one entry, orientation 6 (rotate right).
    let exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let mut as_long = exif.clone();
    as_long[12] = 4;
    for exif in [exif, as_long] {
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder.set_exif_metadata(exif).expect("JPEG can hold it");
        let lying = two_halves(64, 32);
        encoder.write_image(lying.pixels(), 64, 32, ExtendedColorType::Rgb8).expect("encodes");
        let upright = decode(&bytes).expect("decodes");
        assert_eq!((upright.width(), upright.height()), (32, 64));
        let red_of = |row: usize| upright.pixels()[row * 32 * 3];
        assert!(red_of(4) > 150 && red_of(60) < 90, "the left half is at the top");
    }
}

#[test]
fn every_orientation_turns_or_mirrors_the_image() {
    let turned = [
        (3, [1, 2, 3, 4, 5, 6]),
        (3, [3, 2, 1, 6, 5, 4]),
        (3, [6, 5, 4, 3, 2, 1]),
        (3, [4, 5, 6, 1, 2, 3]),
        (2, [1, 4, 2, 5, 3, 6]),
        (2, [4, 1, 5, 2, 6, 3]),
        (2, [6, 3, 5, 2, 4, 1]),
        (2, [3, 6, 2, 5, 1, 4]),
    ];
    for (orientation, (width, shades)) in (1..).zip(turned) {
        // TIFF, little endian: one entry.
        let mut exif = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x00\0\0\0\0\0\0\0".to_vec();
        exif[18] = orientation;
        let mut file = Vec::new();
        let mut encoder = PngEncoder::new(&mut file);
        encoder.set_exif_metadata(exif).expect("PNG can hold it");
        encoder.write_image(&[1, 2, 3, 4, 5, 6], 3, 2, ExtendedColorType::L8).expect("encodes");
        let image = decode(&file).expect("decodes");
        let found: Vec<u8> = image.pixels().iter().copied().step_by(3).collect();
        assert_eq!((image.width(), &found[..]), (width, &shades[..]), "orientation {orientation}");
        assert_eq!(inspect(&file).expect("an image").width, width, "orientation {orientation}");
    }
}

#[test]
fn pixels_beyond_those_of_the_head_are_not_unpacked_into_an_image() {
    // Four megabytes in a file that is much smaller, whose head says one pixel.
    let mut bomb = png(&vec![0; 2048 * 2048], (2048, 2048), ExtendedColorType::L8);
    bomb[16..24].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
    let sum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
    bomb[29..33].copy_from_slice(&sum);
    assert!(bomb.len() < 1 << 20, "{} bytes", bomb.len());
    match decode(&bomb) {
        Ok(image) => assert_eq!((image.width(), image.height()), (1, 1)),
        Err(error) => assert_eq!(error, DecodeError::Damaged { format: "PNG" }),
    }
}

#[test]
fn other_files_are_distinguished_from_damaged_images() {
    for bytes in [&b""[..], b"GIF89a", b"BM", b"<svg/>", b"\0\0\0\0"] {
        assert_eq!(decode(bytes), Err(DecodeError::Format), "{bytes:?}");
    }
    for (format, name) in [(OutputFormat::Png, "PNG"), (OutputFormat::Jpeg, "JPEG"), (OutputFormat::Webp, "WebP")] {
        let complete = encode(&two_halves(64, 64), format).expect("encodes");
        for length in [16, complete.len() / 2] {
            let error = decode(&complete[..length]);
            // A JPEG that ends within its pixels decodes as gray from there on, as everywhere.
            let is_lenient = format == OutputFormat::Jpeg && length > 16;
            assert!(is_lenient || error == Err(DecodeError::Damaged { format: name }), "{format}: {error:?}");
        }
    }
}

#[test]
fn large_files_and_many_pixels_are_refused_before_decoding() {
    let large = vec![0; FILE_BYTES_MAX + 1];
    assert_eq!(decode(&large), Err(DecodeError::Bytes { bytes: FILE_BYTES_MAX + 1 }));
    // Only a header: decoding it would report a truncated file.
    let mut bomb = png(&[0; 3], (1, 1), ExtendedColorType::Rgb8);
    bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let sum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
    bomb[29..33].copy_from_slice(&sum);
    assert_eq!(decode(&bomb), Err(DecodeError::Pixels { width: 65_535, height: 65_535 }));
}

#[test]
fn heads_of_every_format_are_held_to_the_pixels() {
    // The sides in the frame's head, behind its length and its depth.
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg).write_image(&[7; 3], 1, 1, ExtendedColorType::Rgb8).expect("encodes");
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).expect("a frame");
    jpeg[frame + 5..frame + 9].fill(0xff);
    assert_eq!(decode(&jpeg), Err(DecodeError::Pixels { width: 65_535, height: 65_535 }));
    // Fourteen bits for each side, less one, behind a byte that says that nothing is lost.
    let mut webp = Vec::new();
    WebPEncoder::new_lossless(&mut webp).write_image(&[7; 3], 1, 1, ExtendedColorType::Rgb8).expect("encodes");
    let pixels = webp.windows(4).position(|name| name == b"VP8L").expect("pixels");
    let less_one = 15_999_u32;
    webp[pixels + 9..pixels + 13].copy_from_slice(&(less_one | (less_one << 14)).to_le_bytes());
    assert_eq!(decode(&webp), Err(DecodeError::Pixels { width: 16_000, height: 16_000 }));
    for bytes in [jpeg, webp] {
        assert_eq!(inspect(&bytes).map(|_| ()), decode(&bytes).map(|_| ()));
    }
}

#[test]
fn long_thin_images_are_refused_before_decoding() {
    let headers = |width: u32, height: u32| {
        let mut bytes = png(&[0; 3], (1, 1), ExtendedColorType::Rgb8);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let sum = crc32fast::hash(&bytes[12..29]).to_be_bytes();
        bytes[29..33].copy_from_slice(&sum);
        bytes
    };
    for (width, height) in [(32_000_000, 1), (1, 32_000_000), (4_000_000, 8), (8, 4_000_000), (16_385, 1), (1, 16_385)]
    {
        assert_eq!(decode(&headers(width, height)), Err(DecodeError::Sides { width, height }));
    }
    let wide = two_halves(16_385, 1);
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg).write_image(wide.pixels(), 16_385, 1, ExtendedColorType::Rgb8).expect("encodes");
    assert_eq!(decode(&jpeg), Err(DecodeError::Sides { width: 16_385, height: 1 }));
}

fn card() -> ModelCard {
    let card = card_or_flux_dev(&ModelId::new("black-forest-labs/FLUX.1-dev"));
    ModelCard { input_images_max: 1, ..card }
}

fn kontext() -> ModelCard {
    ModelCard { conditioning: Conditioning::References, input_images_max: 4, ..card() }
}

fn given(role: ImageRole, image: RgbImage) -> GivenImage {
    GivenImage::new(role.as_str(), role, Arc::new(image))
}

fn request(images: Vec<GivenImage>) -> GenerateParams {
    GenerateParams { prompt: "a fox".into(), images, ..GenerateParams::default() }
}

fn sizes(params: &GenerateParams) -> Vec<(u32, u32)> {
    params.images.iter().map(|given| (given.image.width(), given.image.height())).collect()
}

/// Prepares a request, and checks that preparing it again changes nothing and that it is valid.
fn prepared(params: GenerateParams, card: &ModelCard) -> GenerateParams {
    let once = prepare(params, card);
    assert_eq!(prepare(once.clone(), card), once);
    assert!(GenerateSpec::new(once.clone(), card).is_ok());
    once
}

#[test]
fn an_image_is_resized_to_the_output_size() {
    let with_width = |width: Option<u32>| {
        let images = vec![given(ImageRole::Input, two_halves(130, 70))];
        prepare(GenerateParams { width, height: width, ..request(images) }, &card())
    };
    let own = with_width(None);
    assert_eq!((own.width, own.height), (Some(128), Some(64)));
    let image = &own.images[0].image;
    assert_eq!((image.width(), image.height()), (128, 64));
    assert_eq!((&image.pixels()[..3], &image.pixels()[127 * 3..128 * 3]), (&[200, 40, 40][..], &[40, 40, 200][..]));
    assert_eq!(sizes(&with_width(Some(96))), [(96, 96)]);
    let refused = with_width(Some(u32::MAX));
    assert_eq!(refused.images[0].image.width(), 130, "left unchanged");
}

#[test]
fn a_mask_of_another_size_is_stretched_like_its_image() {
    for mask in [two_halves(1, 1), two_halves(16_384, 2), two_halves(33, 700)] {
        let images = vec![given(ImageRole::Input, two_halves(130, 70)), given(ImageRole::Mask, mask)];
        assert_eq!(sizes(&prepared(request(images), &card())), [(128, 64); 2]);
    }
}

#[test]
fn references_get_the_sizes_that_kontext_was_trained_with() {
    let images = [(64, 48), (3, 900), (1392, 752), (1, 1)];
    let references = images.map(|(width, height)| given(ImageRole::Reference, two_halves(width, height)));
    let params = prepared(request(references.into()), &kontext());
    assert_eq!(sizes(&params), [(1184, 880), (672, 1568), (1392, 752), (1024, 1024)]);
    assert_eq!((params.width, params.height), (Some(1184), Some(880)), "as large as the first one");
    for size in KONTEXT_SIZES {
        assert_eq!(kontext_size(size), size, "a prepared one stays");
    }
}

/// Recorded from `FluxKontextPipeline`. What an image becomes is its rule; the output's size is BFL's, who take what was asked for
/// as it is, and not diffusers', which scales it to 1024² pixels.
#[test]
fn kontexts_sizes_are_those_of_its_authors() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/kontext/size_rules.json");
    let rules: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
    let pair = |value: &serde_json::Value| {
        let side = |index: usize| u32::try_from(value[index].as_u64().expect("a number")).expect("a side");
        (side(0), side(1))
    };
    let images = rules["input_image"].as_array().expect("a list");
    assert!(images.len() >= 50);
    for rule in images {
        assert_eq!(kontext_size(pair(&rule["image"])), pair(&rule["resized_to"]), "{rule}");
    }
    for rule in rules["output"].as_array().expect("a list") {
        let asked = pair(&rule["asked"]);
        let params = GenerateParams { width: Some(asked.0), height: Some(asked.1), ..request(Vec::new()) };
        let params = prepare(params, &kontext());
        assert_eq!((params.width, params.height), (Some(asked.0), Some(asked.1)), "{rule}");
    }
}

#[test]
fn a_style_image_becomes_the_encoders_square() {
    let style = Some(StyleCard { side: 58, tokens: 16 });
    let card = ModelCard { attached: AttachedCards { style, ..AttachedCards::default() }, ..card() };
    let names = ["one", "two"];
    let images = names.map(|name| given(ImageRole::Style, reference(&format!("images/style-{name}.png"))));
    let params = prepared(request(images.into()), &card);
    for (given, name) in params.images.iter().zip(names) {
        let (most, count) = apart(&given.image, &reference(&format!("images/style-{name}-58.png")));
        // PIL rounds between its two passes.
        assert!(most <= 1 && count < given.image.pixels().len() / 4, "{name}: {most}, {count} bytes");
    }
}

#[test]
fn edges_are_drawn_once_and_depth_is_left_to_the_engine() {
    let net = ControlNetCard { name: "union".into(), modes: None };
    let attached = AttachedCards { controlnets: vec![net], estimates_depth: true, ..AttachedCards::default() };
    let by_net = ModelCard { attached: attached.clone(), ..card() };
    let by_channels = ModelCard { conditioning: Conditioning::Control, attached, input_images_min: 1, ..card() };
    for card in [by_net, by_channels] {
        let control = |preprocess| {
            let options = ImageOptions { preprocess, ..ImageOptions::default() };
            GivenImage { options, ..given(ImageRole::Control, reference("images/shapes.png")) }
        };
        let at_its_size = |preprocess| {
            let params = GenerateParams { width: Some(128), height: Some(64), ..request(vec![control(preprocess)]) };
            prepared(params, &card).images.remove(0)
        };
        let drawn = at_its_size(Some(Preprocess::Canny));
        assert_eq!((drawn.image.width(), drawn.options.preprocess), (128, None));
        assert!(drawn.image.pixels().iter().all(|byte| [0, 255].contains(byte)) && !drawn.image.is_black());
        let (plain, deep) = (at_its_size(None), at_its_size(Some(Preprocess::Depth)));
        assert_eq!((plain.image == deep.image, deep.options.preprocess), (true, Some(Preprocess::Depth)));
        assert!(*drawn.image == canny::edges(&plain.image), "in the output size");
    }
}

#[test]
fn images_that_are_refused_are_not_worked_on() {
    let references = vec![given(ImageRole::Reference, two_halves(2, 1)); 20];
    let left = prepare(request(references), &kontext());
    assert!(sizes(&left).iter().all(|size| *size == (2, 1)));
    let errors = GenerateSpec::new(left, &kontext()).expect_err("too many");
    assert!(errors.iter().any(|error| error.reason.contains("from 0 to 4 input images, not 20")), "{errors:?}");
    let masks = vec![given(ImageRole::Mask, two_halves(2, 1))];
    let left = prepare(GenerateParams { mask_padding: Some(4), ..request(masks) }, &card());
    assert_eq!((sizes(&left), left.overlay), (vec![(2, 1)], None), "a mask without an image");
}
