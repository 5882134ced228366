//! Every kind of request that one checkpoint takes, in the same steps, some with adapters: each image has the bits that it has alone.
//! FLUX.1-Kontext differs from FLUX.1-dev in its weights alone, so FLUX.1-dev stands for it here: ControlNets, FLUX.1-Redux and
//! control adapters of its width are recorded.

use std::path::PathBuf;

use super::adapters::used;
use super::family::card_of;
use super::mixed::{check, given, mask, params};
use super::support::{engine, reference};
use crate::domain::adapter::AdapterUse;
use crate::domain::conditioning::{Conditioning, ControlMode, GivenImage, ImageRole};
use crate::domain::engine::{EngineError, StepEngine as _};
use crate::domain::model::{Attachments, CompletedFiles, ModelCard, ModelFiles};
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::engine::{controlnet_card, style_card};

const SQUARE: (u32, u32) = (64, 64);
const WIDE: (u32, u32) = (96, 48);

fn net() -> PathBuf {
    reference("family/controlnet/FLUX.1-dev-ControlNet-Union")
}

fn redux() -> PathBuf {
    reference("family/redux/FLUX.1-Redux-dev")
}

fn files() -> ModelFiles {
    let controlnets = vec![("union".into(), net())];
    let attachments = Attachments { controlnets, redux: Some(redux()), ..Attachments::default() };
    let path = reference("FLUX.1-dev");
    ModelFiles::Completed(Box::new(CompletedFiles {
        path,
        text_encoders: Vec::new(),
        vae: None,
        base: None,
        attachments,
    }))
}

/// The card of FLUX.1-Kontext with a ControlNet and FLUX.1-Redux.
fn card() -> ModelCard {
    let mut card = card_of(Conditioning::References);
    card.attached.controlnets.push(controlnet_card("union", &net()).expect("a ControlNet"));
    card.attached.style = Some(style_card(&redux()).expect("FLUX.1-Redux"));
    card
}

/// A control image for the ControlNet.
fn controlled(size: (u32, u32), seed: u64) -> GivenImage {
    let mut control = given(ImageRole::Control, size, seed);
    (control.options.controlnet, control.options.mode) = (Some("union".into()), Some(ControlMode(0)));
    control.options.scale = Some(0.7);
    control
}

/// A style image, in the size that the recorded encoder takes.
fn style(seed: u64) -> GivenImage {
    given(ImageRole::Style, (58, 58), seed)
}

/// Requests for that card: plain, from an image, repainted, edited by one reference and by two, by a ControlNet and by a style image;
/// and some that are several of these at once.
fn kinds() -> Vec<GenerateParams> {
    let input = |seed| given(ImageRole::Input, SQUARE, seed);
    let reference = |size, seed| given(ImageRole::Reference, size, seed);
    vec![
        params(1, SQUARE, Vec::new()),
        GenerateParams { strength: Some(0.6), ..params(2, SQUARE, vec![input(2)]) },
        GenerateParams { strength: Some(1.0), ..params(3, SQUARE, vec![input(3), mask(SQUARE)]) },
        params(4, WIDE, vec![reference(SQUARE, 4)]),
        params(5, SQUARE, vec![reference(WIDE, 5), reference((32, 80), 6)]),
        params(6, SQUARE, vec![controlled(SQUARE, 6)]),
        params(7, SQUARE, vec![style(7)]),
        params(8, WIDE, vec![controlled(WIDE, 8), style(8)]),
        GenerateParams {
            strength: Some(0.9),
            ..params(9, SQUARE, vec![input(9), mask(SQUARE), controlled(SQUARE, 9)])
        },
    ]
}

fn lora(name: &str) -> Vec<AdapterUse> {
    vec![used(&reference(&format!("lora/adapters/{name}.safetensors")), 0.8)]
}

#[test]
fn every_kind_of_image_has_the_same_bits_together_and_alone() {
    let mut all = kinds();
    for (index, name) in [(2, "a1_peft"), (4, "g2_lokr_kohya"), (5, "f1_kohya_te1"), (8, "g6_dora_kohya_in")] {
        all[index].loras = lora(name);
    }
    let spec = |params, card: &ModelCard| GenerateSpec::new(params, card).expect("a valid request");
    let mut specs: Vec<GenerateSpec> = all.into_iter().map(|params| spec(params, &card())).collect();
    // Where a model has ControlNets, its card gives them every control image. The engine takes both.
    let by_adapter = params(10, SQUARE, vec![given(ImageRole::Control, SQUARE, 10)]);
    let by_adapter = GenerateParams { loras: lora("h_control_canny"), ..by_adapter };
    specs.insert(4, spec(by_adapter, &card_of(Conditioning::Prompt)));
    check(&files(), &specs);
}

#[test]
fn a_control_image_for_a_net_is_none_for_a_control_adapter() {
    let mut engine = engine(&files());
    let params = params(1, SQUARE, vec![controlled(SQUARE, 1)]);
    let params = GenerateParams { loras: lora("h_control_canny"), ..params };
    let refused = engine.admit(&GenerateSpec::new(params, &card()).expect("the card allows it"));
    assert!(
        matches!(&refused, Err(EngineError::Request(reason)) if reason.contains("that no ControlNet reads")),
        "{refused:?}"
    );
}
