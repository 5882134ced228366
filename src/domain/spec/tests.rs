use std::path::Path;

use super::*;
use crate::domain::adapter::{ADAPTERS_MAX, AdapterId};
use crate::domain::conditioning::{AttachedCards, Conditioning};
use crate::domain::model::{ParameterDefaults, ParameterLimits};

fn card() -> ModelCard {
    ModelCard {
        id: ModelId::new("test/model"),
        notice: None,
        defaults: ParameterDefaults { width: 512, height: 512, steps: 30, guidance: 3.5 },
        limits: ParameterLimits {
            width_min: 64,
            width_max: 2048,
            height_min: 64,
            height_max: 2048,
            size_multiple_of: 16,
            pixels_max: 4_194_304,
            steps_min: 1,
            steps_max: 100,
            guidance_min: 0.0,
            guidance_max: 30.0,
        },
        conditioning: Conditioning::Prompt,
        attached: AttachedCards::default(),
        input_images_min: 0,
        input_images_max: 0,
        prompt_chars_max: 2048,
        sequence_length: 512,
        true_cfg_scale: 4.0,
    }
}

fn fields(params: GenerateParams) -> Vec<String> {
    match GenerateSpec::new(params, &card()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.field).collect(),
    }
}

fn params() -> GenerateParams {
    GenerateParams { prompt: "a fox".into(), ..GenerateParams::default() }
}

#[test]
fn defaults_come_from_the_card() {
    let spec = GenerateSpec::new(params(), &card()).expect("valid");
    assert_eq!((spec.width(), spec.height(), spec.steps()), (512, 512, 30));
    assert_eq!(spec.image_tokens(), 1024);
    assert_eq!(spec.step_tokens(), 1536);
}

#[test]
fn behind_the_largest_seed_comes_the_smallest() {
    let seeds = |seed| {
        let first = GenerateSpec::new(GenerateParams { seed, ..params() }, &card()).expect("valid");
        [0, 1, 2].map(|later| first.with_later_seed(later).seed())
    };
    assert_eq!(seeds(7), [7, 8, 9]);
    assert_eq!(seeds(SEED_MAX - 1), [SEED_MAX - 1, SEED_MAX, 0]);
}

#[test]
fn each_bad_field_is_named() {
    let cases = [
        (GenerateParams { width: Some(100), ..params() }, "width"),
        (GenerateParams { height: Some(48), ..params() }, "height"),
        (GenerateParams { height: Some(2064), ..params() }, "height"),
        (GenerateParams { steps: Some(0), ..params() }, "steps"),
        (GenerateParams { steps: Some(101), ..params() }, "steps"),
        (GenerateParams { guidance: Some(-0.1), ..params() }, "guidance"),
        (GenerateParams { guidance: Some(f64::NAN), ..params() }, "guidance"),
        (GenerateParams { seed: SEED_MAX + 1, ..params() }, "seed"),
        (GenerateParams { images: vec![input(512, 512)], ..params() }, "input_images_base64"),
        (GenerateParams { strength: Some(0.5), ..params() }, "strength"),
        (GenerateParams { prompt: "x".repeat(2049), ..params() }, "prompt"),
        (GenerateParams { negative_prompt: Some("x".repeat(2049)), ..params() }, "negative_prompt"),
        (GenerateParams { sequence_length: Some(513), ..params() }, "max_sequence_length"),
        (GenerateParams { loras: loras(&[1.0; ADAPTERS_MAX + 1]), ..params() }, "loras"),
        (GenerateParams { loras: loras(&[1.0, 10.5]), ..params() }, "loras[1].scale"),
        (GenerateParams { loras: loras(&[f64::NAN]), ..params() }, "loras[0].scale"),
    ];
    for (params, field) in cases {
        assert_eq!(fields(params), [field]);
    }
}

fn loras(scales: &[f64]) -> Vec<AdapterUse> {
    let one =
        |scale: &f64| AdapterUse { id: AdapterId::of_sha256([1; 32]), file: Path::new("a").into(), scale: *scale };
    scales.iter().map(one).collect()
}

#[test]
fn adapters_of_any_sign_are_kept_in_order() {
    let spec = GenerateSpec::new(GenerateParams { loras: loras(&[-10.0, 0.0, 10.0]), ..params() }, &card());
    assert_eq!(spec.expect("valid").loras(), loras(&[-10.0, 0.0, 10.0]));
}

fn image(width: u32, height: u32) -> Arc<RgbImage> {
    let pixels = vec![7; (width * height * 3) as usize];
    Arc::new(RgbImage::new(width, height, pixels).expect("three bytes per pixel"))
}

#[test]
fn images_that_a_model_does_not_take_are_named_as_they_were_given() {
    let named = |field: &'static str, role| GivenImage::new(field, role, image(512, 512));
    for (given, field) in [
        (named("input_images_base64[0]", ImageRole::Input), "input_images_base64"),
        (named("images[0]", ImageRole::Input), "images"),
        (named("images[0]", ImageRole::Style), "images"),
    ] {
        assert_eq!(fields(GenerateParams { images: vec![given], ..params() }), [field]);
    }
    let reasons = GenerateSpec::new(
        GenerateParams { images: vec![named("images[0]", ImageRole::Input)], ..params() },
        &ModelCard { conditioning: Conditioning::References, input_images_min: 1, input_images_max: 2, ..card() },
    );
    let reasons = reasons.expect_err("a reference is missing");
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert_eq!(reasons[0], FieldError::new("input_images_base64", "this model takes from 1 to 2 input images, not 0"));
}

fn input(width: u32, height: u32) -> GivenImage {
    GivenImage::new("input_images_base64[0]", ImageRole::Input, image(width, height))
}

/// A request with a 512×512 input image, for a card that takes one.
fn from_image(strength: Option<f64>, steps: u32) -> Result<GenerateSpec, Vec<FieldError>> {
    let card = ModelCard { input_images_max: 1, ..card() };
    let images = vec![input(512, 512)];
    GenerateSpec::new(GenerateParams { images, strength, steps: Some(steps), ..params() }, &card)
}

#[test]
fn strength_sets_how_many_steps_of_the_schedule_are_run() {
    // As in diffusers: int(steps - min(steps × strength, steps)) are skipped.
    for (steps, strength, done) in [
        (10, None, 6),
        (10, Some(1.0), 10),
        (10, Some(0.05), 1),
        (1, Some(0.01), 1),
        (4, Some(0.6), 3),
        (7, Some(0.3), 3),
    ] {
        let spec = from_image(strength, steps).expect("valid");
        assert_eq!((spec.steps_scheduled(), spec.steps()), (steps, done), "{strength:?}");
        assert_eq!(spec.pixel_steps(), 512 * 512 * (u64::from(done) + 4));
    }
}

#[test]
fn both_passes_of_a_negative_prompt_are_charged() {
    let plain = GenerateParams { prompt: "a fox".into(), steps: Some(10), ..GenerateParams::default() };
    let steered = GenerateParams { negative_prompt: Some("a dog".into()), ..plain.clone() };
    let cost = |params| {
        let spec = GenerateSpec::new(params, &card()).expect("valid");
        spec.pixel_steps() / (u64::from(spec.width()) * u64::from(spec.height()))
    };
    assert_eq!((cost(plain), cost(steered)), (10 + 4, 2 * 10 + 4));
}

#[test]
fn a_strength_out_of_range_is_refused() {
    for strength in [0.0, -0.5, 1.01, f64::NAN, f64::INFINITY, 1e-17] {
        let errors = from_image(Some(strength), 100).expect_err("out of range");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].field, "strength");
    }
}

#[test]
fn an_input_image_has_the_output_size() {
    let card = ModelCard { input_images_max: 1, ..card() };
    let with = |width, height| {
        let images = vec![input(640, 384)];
        GenerateSpec::new(GenerateParams { width, height, images, ..params() }, &card)
    };
    let spec = with(None, None).expect("the image's own size");
    assert_eq!((spec.width(), spec.height()), (640, 384));
    let errors = with(Some(320), Some(384)).expect_err("another size");
    assert_eq!(errors[0].field, "input_images_base64[0]");
}

#[test]
fn all_broken_rules_are_reported_at_once() {
    let params = GenerateParams { width: Some(1), steps: Some(0), ..params() };
    assert_eq!(fields(params), ["width", "steps"]);
}

#[test]
fn a_negative_prompt_doubles_the_work() {
    let params = GenerateParams { negative_prompt: Some(String::new()), ..params() };
    let spec = GenerateSpec::new(params, &card()).expect("valid");
    assert_eq!(spec.step_tokens(), 2 * 1536);
}

#[test]
fn an_empty_prompt_2_falls_back_to_the_prompt() {
    let params = GenerateParams { prompt_2: Some(String::new()), ..params() };
    let spec = GenerateSpec::new(params, &card()).expect("valid");
    assert_eq!(spec.t5_prompt(), "a fox");
}

#[test]
fn without_controlnets_a_control_image_is_for_a_lora() {
    let control = || vec![GivenImage::new("images[0]", ImageRole::Control, image(512, 512))];
    let with = |loras, options: ImageOptions| {
        let images = control().into_iter().map(|given| GivenImage { options: options.clone(), ..given }).collect();
        GenerateSpec::new(GenerateParams { images, loras, ..params() }, &card())
    };
    let spec = with(loras(&[0.85]), ImageOptions::default()).expect("the engine knows whether a LoRA reads it");
    assert_eq!((spec.controls().len(), &spec.controls()[0].controlnet), (1, &None));
    let (_, _, options) = spec.given_images().next().expect("the control image");
    assert_eq!(options, ImageOptions::default(), "it can be asked for again");
    let reasons = |outcome: Result<GenerateSpec, Vec<FieldError>>| -> Vec<String> {
        outcome.expect_err("refused").into_iter().map(|error| format!("{}: {}", error.field, error.reason)).collect()
    };
    let none = reasons(with(Vec::new(), ImageOptions::default()));
    assert_eq!(none, ["images: this model takes no control images, not 1"]);
    let scaled = reasons(with(loras(&[0.85]), ImageOptions { scale: Some(0.5), ..ImageOptions::default() }));
    assert_eq!(scaled, ["images[0].scale: is no option of a control image of this model, which has no ControlNets"]);
    let two = GenerateParams { images: [control(), control()].concat(), loras: loras(&[1.0]), ..params() };
    assert_eq!(
        reasons(GenerateSpec::new(two, &card())),
        ["images: this model takes from 0 to 1 control images, not 2"]
    );
}
