//! Files that are made of the reference checkpoints, read by this program, by candle and by the safetensors library.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use tempfile::TempDir;

use super::*;
use crate::catalog::card_or_flux_dev;
use crate::domain::device::DeviceChoice;
use crate::domain::ids::ModelId;
use crate::domain::model::CompletedFiles;
use crate::domain::spec::{GenerateParams, GenerateSpec};
use crate::engine::FluxEngine;
use crate::engine::checkpoint::inspect;

use ConvertedComponent::{T5, Transformer};
use WeightFormat::{Bf16, Fp8, GgufQ4_0, GgufQ4K, GgufQ8_0};

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

fn at(path: &str) -> ModelFiles {
    ModelFiles::Directory(reference(path))
}

/// A file that was made of a component.
struct Made {
    component: ConvertedComponent,
    counts: StoredCounts,
    path: PathBuf,
    _folder: TempDir,
}

/// Adds up what it is told.
#[derive(Default)]
struct Progress(Mutex<[u64; 2]>);

impl LoadObserver for Progress {
    fn planned(&self, bytes: u64) {
        self.0.lock().expect("no panic")[0] = bytes;
    }

    fn loaded(&self, bytes: u64) {
        self.0.lock().expect("no panic")[1] += bytes;
    }
}

impl Made {
    fn of(files: &ModelFiles, component: ConvertedComponent, format: WeightFormat) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(format!("made.{}", format.ending()));
        let conversion = Conversion::new(files, component, format).unwrap_or_else(|error| panic!("{error}"));
        let (file, progress) = (File::create(&path).expect("created"), Progress::default());
        conversion.write(&file, &progress).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(file.metadata().expect("a file").len(), conversion.bytes());
        let [planned, loaded] = *progress.0.lock().expect("no panic");
        assert!(planned > 0 && planned == loaded, "{planned} bytes to read, {loaded} were read");
        Self { component, counts: conversion.counts(), path, _folder: folder }
    }

    fn files(&self) -> ModelFiles {
        ModelFiles::Directory(self.path.clone())
    }

    /// As a user serves it: together with a checkpoint that has the rest.
    fn completed(&self, base: &str) -> ModelFiles {
        let files = match self.component {
            Transformer => {
                let (path, base) = (self.path.clone(), Some(at(base)));
                CompletedFiles {
                    path,
                    text_encoders: Vec::new(),
                    vae: None,
                    base,
                    attachments: crate::domain::model::Attachments::default(),
                }
            }
            T5 => {
                let (path, text_encoders) = (reference(base), vec![self.path.clone()]);
                CompletedFiles {
                    path,
                    text_encoders,
                    vae: None,
                    base: None,
                    attachments: crate::domain::model::Attachments::default(),
                }
            }
        };
        ModelFiles::Completed(Box::new(files))
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("readable")
    }
}

fn open(files: &ModelFiles, component: ConvertedComponent) -> Vec<WeightTensor> {
    ComponentWeights::open(files, component).unwrap_or_else(|error| panic!("{error}")).tensors
}

fn numbers(files: &ModelFiles, component: ConvertedComponent) -> BTreeMap<String, Vec<f32>> {
    let tensors = open(files, component);
    tensors.iter().map(|tensor| (tensor.name().to_owned(), tensor.numbers().expect("numbers"))).collect()
}

fn largest_of(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |largest, number| largest.max(number.abs()))
}

/// A number as a type has it.
fn rounded(number: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(number).to_f32(),
        DType::F16 => f16::from_f32(number).to_f32(),
        _ => number,
    }
}

/// Compares a file with what it was made of: numbers that were not quantized have their bits, the others are within what
/// `limit` allows for a number and the largest of its block or matrix.
fn check(source: &ModelFiles, made: &Made, format: WeightFormat, limit: impl Fn(f32, f32) -> f32) {
    let found = numbers(&made.files(), made.component);
    let mut quantized = 0;
    for tensor in open(source, made.component) {
        let name = tensor.name();
        let (original, found) = (tensor.numbers().expect("numbers"), &found[name]);
        assert_eq!(original.len(), found.len(), "{name}");
        let block = match plan::choose(format, name, tensor.shape(), tensor.plain()).stored {
            Stored::Plain(dtype) => {
                let same = original.iter().zip(found).all(|(a, b)| rounded(*a, dtype).to_bits() == b.to_bits());
                assert!(same, "{name} in {dtype:?}");
                continue;
            }
            Stored::Blocks(kind) => kind.block_size(),
            Stored::E4m3 => original.len(),
        };
        quantized += 1;
        assert!(*found != original, "{name} was quantized");
        for (original, found) in original.chunks(block).zip(found.chunks(block)) {
            let largest = largest_of(original);
            for (a, b) in original.iter().zip(found) {
                assert!((a - b).abs() <= limit(*a, largest), "{name}: {a} became {b}, of {largest}");
            }
        }
    }
    assert!(quantized > 0 && quantized == made.counts.quantized, "{quantized}: {:?}", made.counts);
}

/// Allows a share of the largest number of a block, and the rounding of its scale to f16.
fn of_blocks(share: f32) -> impl Fn(f32, f32) -> f32 {
    move |_, largest| largest * (share + 1.0 / 2048.0) + 1e-5
}

#[test]
fn numbers_in_blocks_are_within_half_a_step() {
    for (source, component, format, share) in [
        ("FLUX.1-dev", Transformer, GgufQ8_0, 1.0 / 254.0),
        ("FLUX.1-dev", T5, GgufQ8_0, 1.0 / 254.0),
        // Four bits reach seven eighths of the largest magnitude on one side.
        ("FLUX.1-dev/flux1-dev.safetensors", Transformer, GgufQ4_0, 1.0 / 8.0),
        ("quant/fp8/flux1-dev-fp8-aio.safetensors", Transformer, GgufQ8_0, 1.0 / 254.0),
        ("quant/FLUX.1-dev-256/tiny-flux-mixed.gguf", Transformer, GgufQ4K, 0.25),
        ("quant/FLUX.1-dev-256", T5, GgufQ4K, 0.25),
    ] {
        let made = Made::of(&at(source), component, format);
        check(&at(source), &made, format, of_blocks(share));
    }
}

#[test]
fn numbers_in_fp8_are_within_half_a_step() {
    // Half of the last of three bits of mantissa; below the smallest exponent, half of 2⁻⁹ of the scale.
    let limit = |number: f32, largest: f32| (number.abs() / 16.0).max(largest / 448.0 / 1024.0) * (1.0 + 1e-5) + 1e-30;
    for (source, component) in [("FLUX.1-dev", Transformer), ("FLUX.1-dev", T5), ("quant/FLUX.1-dev-nf4", Transformer)]
    {
        check(&at(source), &Made::of(&at(source), component, Fp8), Fp8, limit);
    }
}

#[test]
fn bf16_keeps_every_bit_and_folders_and_files_become_the_same() {
    let folder = Made::of(&at("FLUX.1-dev"), Transformer, Bf16);
    let file = Made::of(&at("FLUX.1-dev/flux1-dev.safetensors"), Transformer, Bf16);
    assert!(folder.bytes() == file.bytes() && folder.bytes() == Made::of(&file.files(), Transformer, Bf16).bytes());
    assert_eq!((folder.counts.quantized, folder.counts.uneven), (0, 0));
    for (source, component) in [("FLUX.1-dev", Transformer), ("FLUX.1-dev", T5)] {
        let made = Made::of(&at(source), component, Bf16);
        let originals = open(&at(source), component);
        let found = open(&made.files(), component);
        assert_eq!(originals.len(), found.len());
        for (original, found) in originals.iter().zip(&found) {
            assert_eq!((original.name(), original.shape()), (found.name(), found.shape()));
            let bits = [original, found].map(|tensor| tensor.bytes_as(DType::BF16).expect("bytes"));
            assert!(bits[0] == bits[1] && found.plain() == Some(DType::BF16), "{}", original.name());
        }
    }
}

#[test]
fn the_same_weights_become_the_same_bytes() {
    for (component, path) in [(Transformer, "quant/FLUX.1-dev-256/tiny-flux-Q4_K_S.gguf"), (T5, "FLUX.1-dev")] {
        for format in WeightFormat::ALL {
            let twice = [(); 2].map(|()| Made::of(&at(path), component, format).bytes());
            assert!(twice[0] == twice[1], "{component} in {format}");
        }
    }
}

#[test]
fn every_file_is_served_with_a_checkpoint_that_has_the_rest() {
    for component in [Transformer, T5] {
        for format in WeightFormat::ALL {
            let made = Made::of(&at("FLUX.1-dev"), component, format);
            let inspection = inspect(&made.completed("FLUX.1-dev"));
            assert!(inspection.is_sound(), "{component} in {format}: {inspection}");
            let name = made.path.file_name().expect("a name").to_string_lossy().into_owned();
            assert!(inspection.components.iter().any(|report| report.files.iter().any(|file| file.ends_with(&name))));
        }
    }
}

#[test]
fn rows_without_whole_blocks_are_kept_and_counted() {
    // Of widths 64, 256 and 320 only the second consists of blocks of 256.
    let made = Made::of(&at("FLUX.1-dev"), Transformer, GgufQ4K);
    assert_eq!((made.counts.quantized, made.counts.uneven), (4, 25));
    check(&at("FLUX.1-dev"), &made, GgufQ4K, of_blocks(0.25));
}

/// candle's reader of GGUF, which shares no code with ours, reads the same.
#[test]
fn candle_reads_the_gguf_files() {
    for (component, format, architecture, file_type, known) in [
        (Transformer, GgufQ8_0, "flux", 7, "double_blocks.0.img_attn.norm.query_norm.scale"),
        (Transformer, GgufQ4_0, "flux", 2, "guidance_in.out_layer.weight"),
        (T5, GgufQ8_0, "t5encoder", 7, "enc.blk.1.ffn_gate.weight"),
        (T5, GgufQ4K, "t5encoder", 14, "token_embd.weight"),
    ] {
        let made = Made::of(&at("quant/FLUX.1-dev-256"), component, format);
        assert!(made.bytes().starts_with(b"GGUF\x03\0\0\0"));
        let mut file = File::open(&made.path).expect("opens");
        let content = Content::read(&mut file).expect("a header");
        assert_eq!(content.metadata.len(), 3);
        let value = |key: &str| &content.metadata[&format!("general.{key}")];
        assert_eq!(value("architecture").to_string().expect("text"), architecture);
        assert_eq!(value("quantization_version").to_u32().expect("a number"), 2);
        assert_eq!(value("file_type").to_u32().expect("a number"), file_type);
        assert_eq!(content.tensor_data_offset % 32, 0);
        assert!(content.tensor_infos.contains_key(known), "{known}");
        let tensors = open(&made.files(), component);
        assert_eq!(content.tensor_infos.len(), tensors.len());
        for tensor in tensors {
            let name = tensor.name_in_gguf();
            assert_eq!(content.tensor_infos[&name].offset % 32, 0, "{name}");
            let theirs = content.tensor(&mut file, &name, &Device::Cpu).expect("a tensor");
            assert_eq!(theirs.shape().dims(), tensor.shape(), "{name}");
            let theirs = theirs.dequantize(&Device::Cpu).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
            let (ours, theirs) = (tensor.numbers().expect("numbers"), theirs.expect("numbers"));
            let tolerance = 1e-6 * largest_of(&ours);
            assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= tolerance), "{name}");
        }
    }
}

/// The library that defines safetensors reads matrices with their scales, as ComfyUI does.
#[test]
fn an_fp8_file_has_scales_and_says_so() {
    let made = Made::of(&at("FLUX.1-dev"), Transformer, Fp8);
    let length = u64::from_le_bytes(made.bytes()[..8].try_into().expect("eight bytes"));
    assert_eq!(length % 8, 0, "the tensors begin aligned");
    let tensors = candle_core::safetensors::load(&made.path, &Device::Cpu).expect("readable");
    let list = |tensor: &Tensor| {
        tensor.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>()).expect("numbers")
    };
    let mut scaled = 0;
    for (name, numbers) in numbers(&made.files(), Transformer) {
        let tensor = &tensors[&name];
        let module = name.strip_suffix(".weight").filter(|_| tensor.dtype() == DType::F8E4M3);
        let Some(module) = module else {
            assert_eq!((tensor.dtype(), list(tensor)), (DType::BF16, numbers), "{name}");
            continue;
        };
        scaled += 1;
        let scale = tensors[&format!("{module}.weight_scale")].to_scalar::<f32>().expect("one number");
        assert!(list(tensor).iter().zip(&numbers).all(|(code, number)| code * scale == *number), "{name}");
        assert_eq!(largest_of(&list(tensor)), 448.0, "{name}");
        let said = tensors[&format!("{module}.comfy_quant")].to_vec1::<u8>().expect("bytes");
        let said: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
        assert_eq!(said, serde_json::json!({ "format": "float8_e4m3fn" }));
    }
    assert_eq!(tensors.len(), open(&made.files(), Transformer).len() + 2 * scaled);
    assert_eq!(scaled, made.counts.quantized);
}

/// The first step's velocity.
fn velocity(files: &ModelFiles) -> Vec<f32> {
    let params = GenerateParams {
        prompt: "a red circle on a blue background".into(),
        width: Some(64),
        height: Some(64),
        steps: Some(4),
        seed: 42,
        ..GenerateParams::default()
    };
    let spec = GenerateSpec::new(params, &card_or_flux_dev(&ModelId::new("reference"))).expect("a valid request");
    let mut engine = FluxEngine::load(files, DeviceChoice::Cpu).unwrap_or_else(|error| panic!("{error}"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("stages.safetensors");
    engine.stages(&spec, false).expect("generated").write(&file).expect("written");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).expect("readable");
    tensors["velocity_first"].flatten_all().and_then(|flat| flat.to_vec1()).expect("numbers")
}

fn length(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.map(|number| number * number).sum::<f32>().sqrt()
}

#[test]
fn a_converted_transformer_computes_what_the_original_does() {
    let original = velocity(&at("FLUX.1-dev"));
    for (format, limit) in [(Bf16, 0.0), (GgufQ8_0, 0.05), (Fp8, 0.25)] {
        let found = velocity(&Made::of(&at("FLUX.1-dev"), Transformer, format).completed("FLUX.1-dev"));
        let off = length(original.iter().zip(&found).map(|(a, b)| a - b)) / length(original.iter().copied());
        assert!(off <= limit && (off > 0.0) == (limit > 0.0), "{format}: off by {off}");
    }
}

fn refusal(files: &ModelFiles, component: ConvertedComponent) -> String {
    match Conversion::new(files, component, GgufQ8_0) {
        Ok(_) => panic!("it has no {component}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_has_no_such_component_is_refused_by_name() {
    for (path, component, reason) in [
        ("FLUX.1-dev/flux1-dev.safetensors", T5, "flux1-dev.safetensors: it is no T5 text encoder"),
        ("FLUX.1-dev/ae.safetensors", Transformer, "ae.safetensors: it is no FLUX transformer"),
        ("quant/FLUX.1-dev-256/transformer/config.json", Transformer, "config.json: not a complete safetensors file"),
        ("nothing/here", Transformer, "not a folder or a file that can be read"),
        ("FLUX.1-dev/tokenizer", Transformer, "transformer/diffusion_pytorch_model.safetensors: missing"),
    ] {
        let refusal = refusal(&at(path), component);
        assert!(refusal.contains(reason), "{refusal}");
    }
}

#[test]
fn sizes_beyond_any_model_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let transformer = folder.path().join("transformer");
    std::fs::create_dir(&transformer).expect("made");
    for entry in std::fs::read_dir(reference("FLUX.1-dev/transformer")).expect("a folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, transformer.join(path.file_name().expect("a name"))).expect("copied");
    }
    let config = transformer.join("config.json");
    let text = std::fs::read_to_string(&config).expect("readable");
    std::fs::write(&config, text.replace("\"num_layers\": 2", "\"num_layers\": 4000000000")).expect("written");
    let refusal = refusal(&ModelFiles::Directory(folder.path().to_owned()), Transformer);
    assert!(refusal.contains("transformer/config.json: there can be at most 1000 layers"), "{refusal}");
}

#[test]
fn a_number_that_is_not_finite_is_refused_by_its_tensor() {
    const NAME: &str = "double_blocks.0.img_attn.proj.weight";
    let mut bytes = std::fs::read(reference("FLUX.1-dev/flux1-dev.safetensors")).expect("readable");
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let place = 8 + header + metadata.info(NAME).expect("a tensor").data_offsets.0;
    bytes[place..place + 2].copy_from_slice(&bf16::NAN.to_le_bytes());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("broken.safetensors");
    std::fs::write(&path, bytes).expect("written");
    let files = ModelFiles::Directory(path);
    for format in [GgufQ8_0, GgufQ4_0, Fp8, Bf16] {
        let file = File::create(folder.path().join("made")).expect("created");
        let outcome = Conversion::new(&files, Transformer, format).expect("complete").write(&file, &());
        match outcome {
            Ok(()) => assert_eq!(format, Bf16, "which has it"),
            Err(error) => assert!(error.to_string().starts_with(&format!("tensor `{NAME}` has numbers")), "{error}"),
        }
    }
}
