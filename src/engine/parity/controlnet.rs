//! ControlNets: the images of diffusers, stage by stage, and batch invariance.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::merged::{self, Merged};
use super::support::{
    self, IMAGE, LATENTS, MOMENTS, Tensors, admit_encoded, assert_close, diffusers_folders, engine, json, reference,
    tensors,
};
use crate::domain::adapter::{AdapterId, AdapterUse};
use crate::domain::byte_size::ByteSize;
use crate::domain::conditioning::{ControlMode, ControlNetCard, GivenImage, ImageOptions, ImageRole};
use crate::domain::device::{DeviceChoice, EngineSettings, Offload};
use crate::domain::engine::{EngineError, Slot, StepEngine as _};
use crate::domain::image::RgbImage;
use crate::domain::model::{Attachments, CompletedFiles, ModelCard, ModelFiles};
use crate::domain::precision::Precision;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::domain::weight_storage::WeightStorage;
use crate::engine::models::flux1::transformer::Residuals;
use crate::engine::models::flux1::{Sequence, pixels_of};
use crate::engine::{FluxEngine, controlnet_card};

/// The recorded nets, by the names that requests use here.
const NETS: [(&str, &str); 3] = [
    ("union", "FLUX.1-dev-ControlNet-Union"),
    ("pro2", "FLUX.1-dev-ControlNet-Union-Pro-2.0"),
    ("canny", "FLUX.1-dev-Controlnet-Canny"),
];

fn net(folder: &str) -> PathBuf {
    reference("family/controlnet").join(folder)
}

/// A checkpoint with all nets beside it. `below` is a path in each net's folder, or nothing.
fn with_nets(path: PathBuf, base: Option<ModelFiles>, below: &str) -> ModelFiles {
    let place = |folder| if below.is_empty() { net(folder) } else { net(folder).join(below) };
    let nets: [(Arc<str>, PathBuf); 3] = NETS.map(|(name, folder)| (name.into(), place(folder)));
    ModelFiles::Completed(Box::new(CompletedFiles {
        path,
        text_encoders: Vec::new(),
        vae: None,
        base,
        attachments: Attachments { controlnets: nets.to_vec(), ..Attachments::default() },
    }))
}

fn files() -> ModelFiles {
    with_nets(reference("FLUX.1-dev"), None, "")
}

fn card() -> ModelCard {
    let mut card = support::card();
    let nets = NETS.map(|(name, folder)| controlnet_card(name, &net(folder)).expect("a ControlNet"));
    card.attached.controlnets = nets.to_vec();
    card
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
    /// Where a case's tensor is that is not in its own file: `CASE/TENSOR`.
    stored_under_another_case: HashMap<String, String>,
}

/// A recorded run.
#[derive(Deserialize)]
struct Case {
    name: String,
    args: Arguments,
    /// The file of its tensors.
    #[serde(rename = "case")]
    file: String,
}

#[derive(Deserialize)]
struct Arguments {
    prompt: String,
    height: u32,
    width: u32,
    num_inference_steps: u32,
    guidance_scale: f64,
    max_sequence_length: usize,
    seed: u64,
    num_images_per_prompt: Option<u32>,
    control_mode: Option<Each<Option<u32>>>,
    controlnet_conditioning_scale: Each<f64>,
    control_guidance_start: Option<Each<f64>>,
    control_guidance_end: Option<Each<f64>>,
}

/// One value, or one for each control image.
#[derive(Deserialize)]
#[serde(untagged)]
enum Each<T> {
    Many(Vec<T>),
    One(T),
}

impl<T: Copy> Each<T> {
    fn of(&self, number: usize) -> T {
        match self {
            Self::Many(all) => all[number],
            Self::One(only) => *only,
        }
    }
}

impl Case {
    /// The nets of its control images.
    fn nets(&self) -> &'static [&'static str] {
        match self.name.split('_').next() {
            Some("n1" | "n2" | "n3") => &["union"],
            Some("n5") => &["canny"],
            Some("n7") => &["union", "union"],
            Some("n8") => &["union", "pro2"],
            _ => &["pro2"],
        }
    }

    fn recorded(&self) -> Tensors {
        tensors(&format!("family/controlnet/{}", self.file))
    }

    /// A control image, in the output size: from what the autoencoder was given.
    fn pixels(&self, all: &Cases, number: usize) -> RgbImage {
        let own = format!("{}/vae_encode.{number}.in", self.name);
        let stored = all.stored_under_another_case.get(&own).unwrap_or(&own);
        let (case, tensor) = stored.split_once('/').expect("a case and a tensor");
        let given = &tensors(&format!("family/controlnet/cases/{case}.safetensors"))[tensor];
        let rows = given.get(0).and_then(|image| image.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>());
        let bytes = rows.expect("pixels").into_iter().map(|value| ((value + 1.0) * 127.5).round() as u8);
        RgbImage::new(self.args.width, self.args.height, bytes.collect()).expect("of the case's size")
    }

    fn specs(&self, all: &Cases) -> Vec<GenerateSpec> {
        let spec = self.spec_with(all, &[]);
        let count = self.args.num_images_per_prompt.unwrap_or(1);
        (0..count).map(|index| spec.clone().at_index(index, count)).collect()
    }

    /// The request of its first image, with adapters.
    fn spec_with(&self, all: &Cases, loras: &[AdapterUse]) -> GenerateSpec {
        let args = &self.args;
        let scales = self.recorded()["controlnet.scale.0"].elem_count();
        let given = |(number, net): (usize, &&str)| {
            let options = ImageOptions {
                controlnet: Some((*net).into()),
                mode: args.control_mode.as_ref().and_then(|modes| modes.of(number)).map(ControlMode),
                preprocess: None,
                // Of several images for one net, diffusers uses the first: the list of scales is cut to the number of nets.
                scale: Some(if number < scales { args.controlnet_conditioning_scale.of(number) } else { 0.0 }),
                start: args.control_guidance_start.as_ref().map(|start| start.of(number)),
                end: args.control_guidance_end.as_ref().map(|end| end.of(number)),
            };
            GivenImage { options, ..control("", self.pixels(all, number)) }
        };
        let params = GenerateParams {
            prompt: args.prompt.clone(),
            width: Some(args.width),
            height: Some(args.height),
            steps: Some(args.num_inference_steps),
            guidance: Some(args.guidance_scale),
            seed: args.seed,
            sequence_length: Some(args.max_sequence_length),
            images: self.nets().iter().enumerate().map(given).collect(),
            loras: loras.to_vec(),
            ..GenerateParams::default()
        };
        GenerateSpec::new(params, &card()).unwrap_or_else(|errors| panic!("{}: {errors:?}", self.name))
    }
}

/// A control image for a net.
fn control(net: &str, image: RgbImage) -> GivenImage {
    let options = ImageOptions { controlnet: Some(net.into()), ..ImageOptions::default() };
    GivenImage { options, ..GivenImage::new("images[0]", ImageRole::Control, Arc::new(image)) }
}

fn row_of(tensor: &Tensor, index: usize) -> Tensor {
    tensor.get(index).and_then(|row| row.contiguous()).expect("a row")
}

/// What control images become, and the latents of the first step.
fn check_conditions(engine: &FluxEngine, case: &Case, spec: &GenerateSpec, (slot, index): (Slot, usize)) {
    let (name, recorded, image) = (&case.name, case.recorded(), &engine.images[&slot]);
    // Noise has torch's bits. Those of the control images come before it.
    assert_close(&format!("{name} noise"), &image.latents, &row_of(&recorded["model_in_first"], index), 0.0);
    for (number, control) in spec.controls().iter().enumerate() {
        let row = |name: &str| row_of(&recorded[name], index);
        let of = |kind: &str| row(&format!("vae_encode.{number}.{kind}")).unsqueeze(0).expect("one");
        let moments = engine.model.encoder.encode(&pixels_of(&control.image, &Device::Cpu).expect("pixels"));
        let moments = moments.expect("encodes");
        assert_close(&format!("{name} mean"), &moments.mean, &of("mean"), MOMENTS);
        assert_close(&format!("{name} variance"), &moments.log_variance, &of("logvar"), MOMENTS);
        let expected = row(&format!("controlnet.cond.{number}"));
        match &image.controls.all[number].latents {
            Some(found) => assert_close(&format!("{name} own condition {number}"), found, &expected, LATENTS),
            None => assert_eq!(control.scale, 0.0, "{name}: only what never acts is not encoded"),
        }
    }
}

/// What the first control image alone adds in the next step: of it the recorded residuals are.
fn residuals_of_first(engine: &mut FluxEngine, slot: Slot) -> Option<Residuals> {
    let others = engine.images.get_mut(&slot).expect("admitted").controls.all.split_off(1);
    let residuals = engine.model.residuals(&[&engine.images[&slot]]).expect("runs").remove(0);
    engine.images.get_mut(&slot).expect("admitted").controls.all.extend(others);
    residuals
}

fn check_residuals(engine: &mut FluxEngine, case: &Case, (slot, index): (Slot, usize)) {
    let recorded = case.recorded();
    let residuals = residuals_of_first(engine, slot);
    let scales = recorded["controlnet.scale.0"].to_vec1::<f32>().expect("numbers");
    assert_eq!(residuals.is_some(), scales[0] != 0.0, "{}", case.name);
    let Some(residuals) = residuals else { return };
    for (kind, found) in ["double", "single"].into_iter().zip(residuals.of_both_kinds()) {
        let name = |number: usize| format!("controlnet.{kind}.{number}.step0");
        assert!(!recorded.contains_key(&name(found.len())), "{}: {} {kind}", case.name, found.len());
        for (number, found) in found.iter().enumerate() {
            let expected = row_of(&recorded[&name(number)], index);
            assert_close(&format!("{} {kind} {number}", case.name), found, &expected, LATENTS);
        }
    }
}

fn check(engine: &mut FluxEngine, all: &Cases, case: &Case) {
    let (name, recorded, specs) = (&case.name, case.recorded(), case.specs(all));
    let slots: Vec<Slot> = specs.iter().map(|spec| admit_encoded(engine, spec)).collect();
    for (index, (slot, spec)) in slots.iter().zip(&specs).enumerate() {
        check_conditions(engine, case, spec, (*slot, index));
        check_residuals(engine, case, (*slot, index));
    }
    for step in 0..case.args.num_inference_steps as usize {
        let scales = &recorded[&format!("controlnet.scale.{step}")];
        let is_acting = scales.to_vec1::<f32>().expect("numbers").iter().any(|scale| *scale != 0.0);
        for slot in &slots {
            let residuals = engine.model.residuals(&[&engine.images[slot]]).expect("runs");
            assert_eq!(residuals[0].is_some(), is_acting, "{name}: step {step}");
        }
        engine.step(&slots).expect("steps");
        for (index, slot) in slots.iter().enumerate() {
            let of = |tensor: &str| row_of(&row_of(&recorded[tensor], step), index);
            let image = &engine.images[slot];
            let velocity = image.velocity.as_ref().expect("a step was run");
            assert_close(&format!("{name} noise_pred {step}"), velocity, &of("noise_pred"), LATENTS);
            assert_close(&format!("{name} latents {step}"), &image.latents, &of("latents_steps"), LATENTS);
        }
    }
    for (index, slot) in slots.into_iter().enumerate() {
        let image = &engine.images[&slot];
        let latents = image.grid.unpack(&image.latents).expect("unpacks");
        let pixels = engine.model.decoder.decode(&latents).expect("decodes");
        let image = ((pixels / 2.0).expect("halves") + 0.5).and_then(|image| image.clamp(0.0_f32, 1.0)).expect("image");
        assert_close(&format!("{name} image"), &image, &row_of(&recorded["image"], index), IMAGE);
        engine.release(slot);
    }
}

#[test]
fn every_recorded_case_equals_diffusers() {
    let (mut engine, all) = (engine(&files()), json::<Cases>("family/controlnet/cases.json"));
    for case in &all.cases {
        check(&mut engine, &all, case);
    }
    assert!(engine.images.is_empty());
    assert_eq!(all.cases.len(), 9, "every case");
}

#[test]
fn an_adapter_acts_beside_a_net_as_if_it_were_merged() {
    let (merged, all) = (Merged::of_dev(), json::<Cases>("family/controlnet/cases.json"));
    let case = all.cases.iter().find(|case| case.name == "n1_union_mode0").expect("a recorded case");
    let with = with_nets(merged.folder().to_owned(), None, "");
    merged::check(&case.name, &[files(), with], merged.lora(), |loras| case.spec_with(&all, loras));
}

#[test]
fn a_card_says_the_modes_of_a_union() {
    let modes = card().attached.controlnets.into_iter().map(|net| (net.name.to_string(), net.modes));
    let expected = [("union", Some(7)), ("pro2", None), ("canny", None)].map(|(name, modes)| (name.to_owned(), modes));
    assert_eq!(modes.collect::<Vec<_>>(), expected);
}

/// An image of this size that is the same for the same number.
fn picture((width, height): (u32, u32), number: u32) -> RgbImage {
    let byte = |index: u32| (index * (2 * number + 3) % 251) as u8;
    RgbImage::new(width, height, (0..3 * width * height).map(byte).collect()).expect("as many bytes")
}

/// A request for 4 steps; each control image is a net, a mode, a scale, and where it begins and ends to act.
fn spec(size: (u32, u32), seed: u64, controls: &[(&str, Option<u32>, f64, [f64; 2])]) -> GenerateParams {
    let images = (0..).zip(controls).map(|(number, (net, mode, scale, [start, end]))| {
        let mut given = control(net, picture(size, number));
        given.options.mode = mode.map(ControlMode);
        (given.options.scale, given.options.start, given.options.end) = (Some(*scale), Some(*start), Some(*end));
        given
    });
    GenerateParams {
        prompt: "a red circle on a blue background".to_owned(),
        width: Some(size.0),
        height: Some(size.1),
        steps: Some(4),
        seed,
        sequence_length: Some(32 + 16 * (seed as usize % 3)),
        images: images.collect(),
        ..GenerateParams::default()
    }
}

/// Ten images that share their steps: with one net, several, and none, in all of their steps or in some. What a control image is
/// multiplied by is multiplied by `factor`.
fn company(factor: f64) -> Vec<GenerateSpec> {
    const ALL: [f64; 2] = [0.0, 1.0];
    let (union, pro2, canny) = (("union", Some(0), 0.7, ALL), ("pro2", None, 0.6, ALL), ("canny", None, 0.8, ALL));
    let late = ("union", Some(4), 1.0, [0.25, 0.75]);
    let lora = reference("lora/adapters/a1_peft.safetensors");
    let lora = AdapterUse { id: AdapterId::of_sha256([7; 32]), file: lora.into(), scale: 0.9 };
    let cfg = GenerateParams {
        negative_prompt: Some("blurred".to_owned()),
        true_cfg_scale: Some(2.5),
        ..spec((64, 64), 10, &[late])
    };
    let all = [
        spec((64, 64), 1, &[union]),
        spec((96, 64), 2, &[late]),
        spec((64, 96), 3, &[pro2]),
        spec((64, 64), 4, &[]),
        spec((64, 64), 5, &[canny]),
        spec((96, 64), 6, &[union, late, ("union", Some(2), 0.3, ALL)]),
        spec((64, 64), 7, &[("pro2", None, 0.4, [0.0, 0.5]), union, canny]),
        spec((64, 64), 8, &[("pro2", None, 0.0, ALL)]),
        GenerateParams { loras: vec![lora], ..spec((64, 64), 9, &[union]) },
        cfg,
    ];
    let scaled = |mut params: GenerateParams| {
        for given in &mut params.images {
            given.options.scale = given.options.scale.map(|scale| scale * factor);
        }
        GenerateSpec::new(params, &card()).expect("a valid request")
    };
    all.into_iter().map(scaled).collect()
}

/// The bits of the latents behind each of four steps, of images together or alone.
fn latents(engine: &mut FluxEngine, specs: &[GenerateSpec]) -> Vec<Vec<u32>> {
    let slots: Vec<Slot> = specs.iter().map(|spec| admit_encoded(engine, spec)).collect();
    let mut bits = vec![Vec::new(); slots.len()];
    for _ in 0..4 {
        engine.step(&slots).expect("steps");
        for (bits, slot) in bits.iter_mut().zip(&slots) {
            let numbers = engine.images[slot].latents.flatten_all().and_then(|all| all.to_vec1::<f32>());
            bits.extend(numbers.expect("numbers").into_iter().map(f32::to_bits));
        }
    }
    for slot in slots {
        engine.release(slot);
    }
    bits
}

#[test]
fn images_have_the_same_bits_with_others_as_alone() {
    let [full, bf16] = [Precision::Full, Precision::Bf16].map(same_with_others_as_alone);
    assert!(full.iter().zip(&bf16).all(|(full, bf16)| full != bf16), "nothing was rounded");
}

/// The latents of images, which are checked.
fn same_with_others_as_alone(precision: Precision) -> Vec<Vec<u32>> {
    let specs = company(1.0);
    let mut expected: Option<Vec<Vec<u32>>> = None;
    let (expanded, stored) = (WeightStorage::Expanded, WeightStorage::AsStored);
    // The last reads every block for each step.
    for (weights, offload) in [(expanded, Offload::Nothing), (stored, Offload::Nothing), (expanded, Offload::Blocks)] {
        let memory_budget = (offload == Offload::Blocks).then_some(ByteSize(1 << 20));
        let settings = EngineSettings { offload, precision, weights, memory_budget, ..DeviceChoice::Cpu.into() };
        let mut engine = FluxEngine::load(&files(), settings).expect("loads");
        let together = latents(&mut engine, &specs);
        let alone: Vec<Vec<u32>> =
            specs.iter().flat_map(|spec| latents(&mut engine, std::slice::from_ref(spec))).collect();
        for (index, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert!(together == alone, "image {index}: {weights:?}, {offload:?}");
        }
        assert!(*expected.get_or_insert_with(|| alone.clone()) == alone, "{weights:?}, {offload:?}");
    }
    let all = expected.expect("three engines");
    // Without nets beside it, the model gives plain images the same bits.
    let engine = |files: &ModelFiles| {
        FluxEngine::load(files, EngineSettings { precision, ..DeviceChoice::Cpu.into() }).expect("loads")
    };
    let mut plain = engine(&diffusers_folders());
    assert!(latents(&mut plain, std::slice::from_ref(&specs[3]))[0] == all[3]);
    // Every net does something.
    let still = latents(&mut engine(&files()), &company(0.0));
    for (index, (image, still)) in all.iter().zip(&still).enumerate() {
        let is_controlled = specs[index].controls().iter().any(|control| control.scale > 0.0);
        assert_eq!(image != still, is_controlled, "image {index}");
    }
    all
}

#[test]
fn a_control_image_without_a_scale_changes_noise_alone() {
    let mut engine = engine(&files());
    let of = |controls: &[(&str, Option<u32>, f64, [f64; 2])]| {
        GenerateSpec::new(spec((64, 64), 3, controls), &card()).expect("valid")
    };
    let one = ("pro2", None, 0.0, [0.0, 1.0]);
    let [without, with] = [of(&[]), of(&[one])].map(|spec| latents(&mut engine, &[spec]).remove(0));
    assert!(without != with, "the generator gives the control image's numbers first");
    // Which net reads what does not act makes no difference.
    let other = latents(&mut engine, &[of(&[("canny", None, 0.0, [0.0, 1.0])])]).remove(0);
    assert!(other == with);
}

#[test]
fn both_passes_of_true_guidance_get_the_residuals() {
    let mut engine = engine(&files());
    let mut params = spec((64, 64), 1, &[("union", Some(0), 0.7, [0.0, 1.0])]);
    (params.negative_prompt, params.true_cfg_scale) = (Some(params.prompt.clone()), Some(2.0));
    let slot = admit_encoded(&mut engine, &GenerateSpec::new(params, &card()).expect("valid"));
    let image = &engine.images[&slot];
    let residuals = engine.model.residuals(&[image]).expect("runs").remove(0);
    let predicted = |residuals: Option<&Residuals>| -> Vec<Vec<Vec<f32>>> {
        let sequences: Vec<Sequence> = image.sequences().map(|sequence| Sequence { residuals, ..sequence }).collect();
        let velocities = engine.model.transformer.velocities(&sequences).expect("predicts");
        velocities.iter().map(|velocity| velocity.to_vec2().expect("numbers")).collect()
    };
    let (with, without) = (predicted(residuals.as_ref()), predicted(None));
    // The same prompt twice.
    assert!(with[0] == with[1] && without[0] == without[1]);
    assert!(with[0] != without[0]);
    let velocity = {
        engine.step(&[slot]).expect("steps");
        engine.images[&slot].velocity.as_ref().and_then(|velocity| velocity.to_vec2::<f32>().ok()).expect("numbers")
    };
    assert!(velocity == with[0], "of two equal passes nothing is added");
}

#[test]
fn a_net_in_a_single_file_is_the_net_of_the_folder() {
    let specs = company(1.0);
    let specs = [specs[0].clone(), specs[6].clone()];
    let from = |files: &ModelFiles| latents(&mut engine(files), &specs);
    let single = with_nets(reference("FLUX.1-dev"), None, "diffusion_pytorch_model.safetensors");
    assert!(from(&files()) == from(&single));
}

#[test]
fn a_net_acts_on_a_model_in_e4m3() {
    let path = reference("quant/fp8/flux1-dev-fp8-scaled.safetensors");
    let files = with_nets(path, Some(diffusers_folders()), "");
    let settings = EngineSettings { weights: WeightStorage::AsStored, ..DeviceChoice::Cpu.into() };
    let mut engine = FluxEngine::load(&files, settings).expect("loads");
    let specs = company(1.0);
    let specs = [specs[0].clone(), specs[3].clone()];
    let together = latents(&mut engine, &specs);
    let alone: Vec<_> = specs.iter().flat_map(|spec| latents(&mut engine, std::slice::from_ref(spec))).collect();
    assert!(together == alone && together[0] != together[1]);
}

#[test]
fn what_a_net_cannot_do_fails_its_image_alone() {
    let mut engine = engine(&files());
    let good = engine.admit(&company(1.0)[0]).expect("admits");
    let mut generous = card();
    let nets = ["union", "canny", "other"].map(|name| ControlNetCard { name: name.into(), modes: None });
    generous.attached.controlnets = nets.to_vec();
    generous.attached.controlnets[1].modes = Some(3);
    for (net, mode, reason) in [
        ("other", None, "no ControlNet `other`; it has `union`, `pro2`, `canny`"),
        ("union", None, "`union` needs the kind"),
        ("canny", Some(1), "`canny` has no modes"),
    ] {
        let params = spec((64, 64), 1, &[(net, mode, 1.0, [0.0, 1.0])]);
        let refused = engine.admit(&GenerateSpec::new(params, &generous).expect("the card allows it"));
        assert!(matches!(&refused, Err(EngineError::Request(text)) if text.contains(reason)), "{refused:?}");
    }
    engine.step(&[good]).expect("steps");
}

#[test]
fn a_net_of_another_width_is_refused_by_name() {
    let files = with_nets(reference("quant/FLUX.1-dev-256/tiny-flux-Q4_K_S.gguf"), None, "");
    let error = FluxEngine::load(&files, DeviceChoice::Cpu).err().expect("does not fit").to_string();
    for expected in ["ControlNet `union`: it is for another model", "ControlNet `canny`", "the model's is"] {
        assert!(error.contains(expected), "{error}");
    }
}
