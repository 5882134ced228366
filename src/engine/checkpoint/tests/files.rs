use candle_core::DType;
use safetensors::Dtype;

use super::made::{Linked, Made, bytes_of, completed};
use super::*;

/// A square matrix of the transformer, and its module.
const MODULE: &str = "double_blocks.0.img_attn.proj";
const MATRIX: &str = "double_blocks.0.img_attn.proj.weight";
const SIDE: usize = 64;

fn open(made: &Made) -> Checkpoint {
    Checkpoint::open(&made.files(true)).unwrap_or_else(|error| panic!("{error}"))
}

fn problems_of(files: &ModelFiles) -> Vec<String> {
    inspect(files).into_problems().iter().map(ToString::to_string).collect()
}

/// The only problem of a file that the reference checkpoint completes.
fn problem_of(made: &Made) -> String {
    let problems = problems_of(&made.files(true));
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.into_iter().next().expect("one")
}

fn numbers(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.transformer.recipe(name, DType::F32).and_then(|recipe| recipe.read_to_host());
    tensor.and_then(|tensor| tensor.flatten_all()?.to_vec1()).expect("numbers")
}

#[test]
fn a_file_of_any_name_prefix_and_spelling_is_a_transformer() {
    let plain = open(&Made::transformer());
    let made = Made::transformer().renamed(|name| {
        let name = name.replace("query_norm.scale", "query_norm.weight").replace("key_norm.scale", "key_norm.weight");
        format!("model.diffusion_model.{name}")
    });
    let renamed = open(&made);
    for name in plain.transformer.names() {
        assert!(numbers(&plain, name) == numbers(&renamed, name), "{name}");
    }
}

#[test]
fn a_configuration_follows_from_the_shapes() {
    let made =
        Made::transformer().without(|name| name.starts_with("single_blocks.2.") || name.starts_with("guidance_in."));
    let configs = open(&made).configs;
    assert_eq!((configs.transformer.num_layers, configs.transformer.num_single_layers), (2, 2));
    assert!(!configs.transformer.guidance_embeds);
    assert!(!configs.scheduler.use_dynamic_shifting, "as for FLUX.1-schnell, whatever the base's is");
    let configs = open(&Made::transformer()).configs;
    assert!(configs.transformer.guidance_embeds && configs.scheduler.use_dynamic_shifting);
}

#[test]
fn a_file_alone_says_what_it_lacks_and_how_to_name_it() {
    let problems = problems_of(&Made::transformer().files(false));
    for (part, hint) in [
        ("vae/", "`--vae PATH`"),
        ("text_encoder/", "`--text-encoder PATH` (clip_l.safetensors)"),
        ("text_encoder_2/", "`--text-encoder PATH` (t5xxl_fp16.safetensors)"),
        ("tokenizer/vocab.json", "and so is tokenizer/tokenizer.json: put vocab.json and merges.txt"),
        ("tokenizer/vocab.json", "of openai/clip-vit-large-patch14 into tokenizer/"),
        ("tokenizer/vocab.json", "`--base ID`"),
        ("tokenizer_2/tokenizer.json", "and so is tokenizer_2/spiece.model: put spiece.model of google/t5-v1_1-xxl"),
        ("tokenizer_2/tokenizer.json", "a GGUF file of T5"),
        ("tokenizer_2/tokenizer.json", "`--base ID`"),
    ] {
        let found = problems.iter().find(|problem| problem.starts_with(part));
        assert!(
            found.is_some_and(|problem| problem.contains("missing") && problem.contains(hint)),
            "{part}: {problems:?}"
        );
    }
}

#[test]
fn a_file_without_its_embedders_is_refused_with_their_names() {
    let embedders = ["img_in.", "time_in.", "vector_in.", "guidance_in."];
    let made = Made::transformer().without(|name| embedders.iter().any(|embedder| name.starts_with(embedder)));
    let problem = problem_of(&made);
    assert!(problem.contains("img_in, time_in, vector_in, guidance_in are missing"), "{problem}");
}

#[test]
fn a_file_with_another_models_tensors_is_refused() {
    let adapter = |name: &str| name.replace(".weight", ".lora_A.weight");
    for made in [Made::transformer().renamed(adapter), Made::transformer().renamed(|name| format!("unet.{name}"))] {
        let problem = problem_of(&made);
        assert_eq!(problem, "any-name.safetensors: it is no FLUX transformer");
    }
}

#[test]
fn a_type_that_cannot_be_decoded_is_named_with_its_tensor() {
    let mut bytes = std::fs::read(reference("quant/FLUX.1-dev-256/tiny-flux-mixed.gguf")).expect("readable");
    // Behind the name come the number of dimensions, two sizes, and the type.
    let name = b"double_blocks.0.img_mlp.0.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).expect("there") + name.len() + 20;
    bytes[at..at + 4].copy_from_slice(&21_u32.to_le_bytes());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("written");
    let base = Some(ModelFiles::Directory(reference("quant/FLUX.1-dev-256")));
    let files = CompletedFiles {
        path,
        text_encoders: Vec::new(),
        vae: None,
        base,
        attachments: crate::domain::model::Attachments::default(),
    };
    let problems = problems_of(&ModelFiles::Completed(Box::new(files)));
    let expected = "tensor `double_blocks.0.img_mlp.0.weight` has type IQ3_S, expected";
    assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
}

#[test]
fn packed_weights_of_other_kernels_are_refused_by_name() {
    let nunchaku = Made::transformer().with("transformer_blocks.0.qkv_proj.qweight", Dtype::I8, &[1], &[0]);
    assert!(problem_of(&nunchaku).contains("packed for nunchaku's own kernels"));
    let quanto = Made::transformer().with("double_blocks.0.img_mlp.0.weight._data", Dtype::I8, &[1], &[0]);
    assert!(problem_of(&quanto).contains("quantized by quanto"));
}

#[test]
fn formats_of_comfyui_that_are_not_supported_are_refused_by_name() {
    let format = br#"{"format":"nvfp4"}"#;
    let made = ["double_blocks.0", "double_blocks.1"].iter().fold(Made::transformer(), |made, block| {
        made.with(&format!("{block}.img_attn.proj.comfy_quant"), Dtype::U8, &[format.len()], format)
    });
    let problem = problem_of(&made);
    assert!(problem.contains("tensor `double_blocks.0.img_attn.proj.weight`: its quantization `nvfp4`"), "{problem}");
    let metadata = r#"{"format_version":"1.0","layers":{"double_blocks.0.img_attn.proj":{"format":"mxfp8"}}}"#;
    let problem = problem_of(&Made::transformer().noted("_quantization_metadata", metadata));
    assert!(problem.contains("its quantization `mxfp8` is not supported"), "{problem}");
    let known = metadata.replace("mxfp8", "float8_e4m3fn");
    open(&Made::transformer().noted("_quantization_metadata", &known));
}

#[test]
fn what_a_file_of_several_components_says_of_itself_is_reported_once() {
    let metadata = r#"{"format_version":"1.0","layers":{"double_blocks.0.img_attn.proj":{"format":"mxfp8"}}}"#;
    let made = Made::of("quant/fp8/flux1-dev-fp8-aio.safetensors").noted("_quantization_metadata", metadata);
    let problem = problem_of(&made);
    assert!(problem.contains("its quantization `mxfp8` is not supported"), "{problem}");
}

#[test]
fn an_unreadable_file_is_not_replaced_by_the_base_silently() {
    let folder = Linked::new("FLUX.1-dev").without("vae").with("ae.safetensors", "<!DOCTYPE html>");
    for has_base in [false, true] {
        let problems = problems_of(&completed(folder.path().to_owned(), has_base));
        assert!(matches!(&problems[..], [one] if one.starts_with("ae.safetensors: a web page")), "{problems:?}");
    }
    let sound = folder.without("ae.safetensors");
    assert_eq!(problems_of(&completed(sound.path().to_owned(), true)), [""; 0]);
}

#[test]
fn folders_of_other_quantizers_are_refused_by_name() {
    for (method, has_weights) in [("torchao", true), ("torchao", false), ("quanto", true), ("nunchaku_lite", false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let transformer = folder.path().join("transformer");
        std::fs::create_dir(&transformer).expect("made");
        for entry in std::fs::read_dir(reference("FLUX.1-dev/transformer")).expect("a folder") {
            let path = entry.expect("an entry").path();
            if has_weights {
                std::fs::copy(&path, transformer.join(path.file_name().expect("a name"))).expect("copied");
            }
        }
        let config = std::fs::read_to_string(reference("FLUX.1-dev/transformer/config.json")).expect("readable");
        let quantized = format!("{{\"quantization_config\":{{\"quant_method\":\"{method}\"}},");
        std::fs::write(transformer.join("config.json"), config.replacen('{', &quantized, 1)).expect("written");
        let problems = problems_of(&completed(folder.path().to_owned(), true));
        let expected = format!("transformer/config.json: quant_method `{method}` is not supported: use the bf16");
        assert!(problems.len() == 1 && problems[0].starts_with(&expected), "{problems:?}");
    }
}

#[test]
fn eight_bits_with_scales_of_rows_are_expanded() {
    let codes: Vec<u8> = (0..SIDE * SIDE).map(|number| (number * 7 % 256) as u8).collect();
    let scales: Vec<f32> = (0..SIDE).map(|row| 0.01 + row as f32 / 100.0).collect();
    let made = Made::transformer()
        .with(MATRIX, Dtype::I8, &[SIDE, SIDE], &codes)
        .with(&format!("{MODULE}.SCB"), Dtype::F32, &[SIDE], &bytes_of(&scales))
        .with(&format!("{MODULE}.weight_format"), Dtype::U8, &[], &[0]);
    let found = numbers(&open(&made), MATRIX);
    for (index, (found, code)) in found.iter().zip(&codes).enumerate() {
        assert_eq!(*found, f32::from(code.cast_signed()) * scales[index / SIDE] * (1.0 / 127.0), "{index}");
    }
    let short = made.with(&format!("{MODULE}.SCB"), Dtype::F32, &[2], &bytes_of(&[1.0, 1.0]));
    assert!(problem_of(&short).contains("`SCB` must have 64 numbers, and has 2"));
    let alone = Made::transformer().with(MATRIX, Dtype::I8, &[SIDE, SIDE], &codes);
    assert!(problem_of(&alone).contains("has type I8, expected"));
}

/// The matrix in four bits, every code in turn, with a scale for each 64 numbers.
fn four_bits(absmax: &[f32], state: &str) -> Made {
    let codes: Vec<u8> = (0..SIDE * SIDE / 2).map(|byte| (byte % 256) as u8).collect();
    let levels: Vec<f32> = (0..16).map(|level| (level as f32 - 8.0) / 8.0).collect();
    Made::transformer()
        .with(MATRIX, Dtype::U8, &[codes.len(), 1], &codes)
        .with(&format!("{MATRIX}.absmax"), Dtype::F32, &[absmax.len()], &bytes_of(absmax))
        .with(&format!("{MATRIX}.quant_map"), Dtype::F32, &[16], &bytes_of(&levels))
        .with(&format!("{MATRIX}.quant_state.bitsandbytes__fp4"), Dtype::U8, &[state.len()], state.as_bytes())
}

#[test]
fn four_bits_in_a_single_file_are_expanded_and_checked() {
    let absmax: Vec<f32> = (1..=SIDE).map(|block| block as f32).collect();
    let state = r#"{"quant_type":"fp4","blocksize":64,"dtype":"bfloat16","shape":[64,64]}"#;
    let found = numbers(&open(&four_bits(&absmax, state)), MATRIX);
    for (index, found) in found.iter().enumerate() {
        let byte = index / 2 % 256;
        let code = if index % 2 == 0 { byte >> 4 } else { byte & 0xf };
        assert_eq!(*found, (code as f32 - 8.0) / 8.0 * absmax[index / 64], "{index}");
    }
    for (state, words) in [
        ("{}", "missing field `shape`"),
        (r#"{"blocksize":64,"shape":[64,65]}"#, "has not the bytes of 4160 numbers"),
        (r#"{"blocksize":0,"shape":[64,64]}"#, "a block of 0 numbers"),
        (r#"{"blocksize":63,"shape":[64,64]}"#, "a block of 63 numbers"),
        (r#"{"blocksize":128,"shape":[64,64]}"#, "`absmax` must have 32 numbers"),
        (r#"{"blocksize":64,"shape":[18446744073709551615,2]}"#, "its shape is too large"),
    ] {
        let problem = problem_of(&four_bits(&absmax, state));
        assert!(problem.contains(words), "{problem}");
    }
    let made = four_bits(&absmax, state).without(|name| name.ends_with(".absmax"));
    assert!(problem_of(&made).contains(".absmax` is missing"));
}

#[test]
fn fp8_is_expanded_with_and_without_a_scale() {
    let codes: Vec<u8> = (0..SIDE * SIDE).map(|number| (number % 120) as u8).collect();
    let made = |dtype| Made::transformer().with(MATRIX, dtype, &[SIDE, SIDE], &codes);
    let value = |kind: crate::engine::blocks::BlockType, code: u8| {
        let mut out = [0.0];
        kind.decode(&[code], &mut out);
        out[0]
    };
    let e5m2 = crate::engine::blocks::BlockType::F8E5M2;
    let found = numbers(&open(&made(Dtype::F8_E5M2)), MATRIX);
    assert!(found.iter().zip(&codes).all(|(found, code)| *found == value(e5m2, *code)));
    for (scale, input) in [("scale_weight", "scale_input"), ("weight_scale", "input_scale")] {
        let made = made(Dtype::F8_E5M2)
            .with(&format!("{MODULE}.{scale}"), Dtype::F32, &[1], &bytes_of(&[0.3]))
            .with(&format!("{MODULE}.{input}"), Dtype::F32, &[], &bytes_of(&[1.0]))
            .with("scaled_fp8", Dtype::F8_E5M2, &[0], &[]);
        let found = numbers(&open(&made), MATRIX);
        assert!(found.iter().zip(&codes).all(|(found, code)| *found == value(e5m2, *code) * 0.3), "{scale}");
    }
    let rows = made(Dtype::F8_E4M3).with(&format!("{MODULE}.weight_scale"), Dtype::F32, &[2], &bytes_of(&[1.0, 1.0]));
    assert!(problem_of(&rows).contains("is not one number"));
}

#[test]
fn what_is_not_a_weight_file_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    for (bytes, words) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"GGUF\x03\0\0\0", "not a complete GGUF file"),
        (b"", "not a complete safetensors file"),
    ] {
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).expect("written");
        let problems = problems_of(&completed(path, true));
        assert!(problems.len() == 1 && problems[0].contains(words), "{problems:?}");
    }
}

#[test]
fn a_file_that_is_named_for_a_component_must_have_it() {
    let files = CompletedFiles {
        path: reference("FLUX.1-dev"),
        text_encoders: vec![reference("FLUX.1-dev/ae.safetensors")],
        vae: Some(reference("quant/fp8/clip_l.safetensors")),
        base: None,
        attachments: crate::domain::model::Attachments::default(),
    };
    let problems = problems_of(&ModelFiles::Completed(Box::new(files)));
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].ends_with("ae.safetensors: it is neither CLIP nor T5"), "{problems:?}");
    assert!(problems[1].ends_with("clip_l.safetensors: it is no autoencoder"), "{problems:?}");
}
