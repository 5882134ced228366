//! Spellings of which no adapter is recorded: recorded ones are renamed, and must add the same.

use safetensors::Dtype;

use super::*;

/// A recorded adapter with other names adds the same.
fn assert_same(name: &str, rename: impl Fn(&str) -> String) {
    let made = Made::of(&adapter(name)).renamed(&rename);
    let changed = rename("transformer.transformer_blocks.0.attn.to_q.lora_A.weight");
    assert!(differences(&made.path()) == differences(&adapter(name)), "{name} as `{changed}`");
}

#[test]
fn peft_has_many_prefixes_and_suffixes() {
    let name = "a1_peft";
    for prefix in ["", "base_model.model.", "transformer.base_model.model.", "unet.", "diffusion_model."] {
        assert_same(name, |name| name.replacen("transformer.", prefix, 1));
    }
    for suffix in [
        ".lora_A.default.weight",
        ".lora_A",
        ".lora_down.weight",
        "_lora.down.weight",
        ".lora.down.weight",
        ".lora_linear_layer.down.weight",
    ] {
        let up = suffix.replace("lora_A", "lora_B").replace("down", "up");
        assert_same(name, |name| name.replace(".lora_A.weight", suffix).replace(".lora_B.weight", &up));
    }
}

/// kohya's form of a name in diffusers' modules: underscores, and `trailing` before the suffix.
fn underscored(name: &str, prefix: &str, trailing: &str) -> String {
    let name = name.strip_prefix("transformer.").expect("PEFT's prefix");
    let at = name.find(".lora_").expect("a suffix");
    let suffix = name[at..].replace("lora_A", "lora_down").replace("lora_B", "lora_up");
    format!("{prefix}{}{trailing}{suffix}", name[..at].replace('.', "_"))
}

#[test]
fn names_may_have_underscores_and_one_behind_them() {
    for name in ["a1_peft", "a7_peft_all_linears"] {
        for prefix in ["lora_unet_", "lora_transformer_", "lycoris_"] {
            for trailing in ["", "_"] {
                assert_same(name, |name| underscored(name, prefix, trailing));
            }
        }
    }
}

#[test]
fn a_file_may_mix_dialects_and_name_parts_by_their_numbers() {
    let numbered = |name: &str| {
        let parts = [("attn.to_q", "0"), ("attn.to_k", "1"), ("attn.to_v", "2"), ("proj_mlp", "3")];
        let (kind, rest) = name.strip_prefix("transformer.")?.split_once('.')?;
        let (block, rest) = rest.split_once('.')?;
        let (part, number) = parts.into_iter().find(|(part, _)| rest.starts_with(&format!("{part}.")))?;
        let (ours, module) = match kind {
            "transformer_blocks" => ("double_blocks", "img_attn.qkv"),
            _ => ("single_blocks", "linear1"),
        };
        let suffix = rest[part.len()..].replace("lora_A", "lora_down").replace("lora_B", "lora_up");
        Some(format!("transformer.{ours}.{block}.{module}.{number}{suffix}"))
    };
    assert_same("a1_peft", |name| numbered(name).unwrap_or_else(|| name.to_owned()));
    let made = Made::of(&adapter("a1_peft")).renamed(|name| numbered(name).unwrap_or_else(|| name.to_owned()));
    let opened = Adapter::open(&made.path(), model()).expect("an adapter");
    assert_eq!(opened.report().dialects, ["OneTrainer's OMI", "PEFT"]);
}

#[test]
fn authors_names_have_many_prefixes() {
    for name in ["b5_comfy_dotted", "c3_bfl_peft"] {
        for prefix in ["", "model.diffusion_model.", "base_model.model.", "transformer."] {
            assert_same(name, |name| name.replacen("diffusion_model.", prefix, 1));
        }
    }
}

#[test]
fn text_encoders_have_many_prefixes() {
    assert_same("f2_peft_te", |name| name.replacen("text_encoder.", "text_encoders.clip_l.transformer.", 1));
    assert_same("f4_kohya_te3_t5", |name| name.replacen("lora_te3_", "lora_te2_", 1));
    let dotted = |name: &str| {
        let name = name.replacen("lora_te3_encoder_block_", "text_encoders.t5xxl.transformer.encoder.block.", 1);
        let name = name.replace("_layer_", ".layer.").replace("_SelfAttention_", ".SelfAttention.");
        name.replace("_DenseReluDense_", ".DenseReluDense.")
    };
    assert_same("f4_kohya_te3_t5", |name| if name.starts_with("lora_te3_") { dotted(name) } else { name.to_owned() });
}

#[test]
fn alphas_of_every_type_count() {
    let two_in_bf16 = 0x4000_u16.to_le_bytes();
    for (dtype, shape, bytes) in [
        (Dtype::F64, &[][..], &2.0_f64.to_le_bytes()[..]),
        (Dtype::F64, &[1], &2.0_f64.to_le_bytes()),
        (Dtype::BF16, &[], &two_in_bf16),
        (Dtype::F16, &[1, 1], &0x4000_u16.to_le_bytes()),
        (Dtype::I64, &[], &2_i64.to_le_bytes()),
        (Dtype::I32, &[1], &2_i32.to_le_bytes()),
    ] {
        let made = Made::of(&adapter("b1_kohya")).replaced(".alpha", dtype, shape, bytes);
        assert!(differences(&made.path()) == differences(&adapter("b1_kohya")), "{dtype:?} {shape:?}");
    }
}

#[test]
fn diffusers_have_the_halves_of_the_last_modulation_in_the_other_order() {
    let module = "final_layer.adaLN_modulation.1";
    let alone = |name: &str, suffixes: [&str; 2], shapes: [[usize; 2]; 2]| {
        let made = Made::empty().counted(&format!("{name}{}", suffixes[0]), &shapes[0]);
        differences(&made.counted(&format!("{name}{}", suffixes[1]), &shapes[1]).path())
            .remove(module)
            .expect("changed")
    };
    for (suffixes, shapes) in [
        ([".lora_A.weight", ".lora_B.weight"], [[2, 64], [128, 2]]),
        ([".lokr_w1", ".lokr_w2"], [[2, 4], [64, 16]]),
        ([".lokr_w1", ".lokr_w2"], [[1, 4], [128, 16]]),
    ] {
        let ours = alone(&format!("diffusion_model.{module}"), suffixes, shapes);
        let theirs = alone("transformer.norm_out.linear", suffixes, shapes);
        let half = ours.len() / 2;
        assert_ne!(ours[..half], ours[half..]);
        assert_eq!((&ours[..half], &ours[half..]), (&theirs[half..], &theirs[..half]), "{suffixes:?}");
    }
}

#[test]
fn full_differences_replace_or_add() {
    let made = Made::empty()
        .counted("diffusion_model.img_in.diff", &[64, 64])
        .counted("diffusion_model.img_in.diff_b", &[64])
        .counted("diffusion_model.double_blocks.0.img_attn.norm.query_norm.w_norm", &[16])
        .counted("diffusion_model.double_blocks.0.img_attn.norm.key_norm.set_weight", &[16])
        .counted("lora_te1_text_model_encoder_layers_0_layer_norm1.b_norm", &[32]);
    let found = differences(&made.path());
    let names = [
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "img_in",
        "img_in.bias",
        "text_model.encoder.layers.0.layer_norm1.bias",
    ];
    assert_eq!(found.keys().collect::<Vec<_>>(), names);
    for (name, numbers) in found {
        let counted: Vec<f32> = (1..=numbers.len()).map(|number| number as f32).collect();
        assert_eq!(numbers, counted, "{name}");
    }
}

#[test]
fn control_adapters_in_comfyuis_form_are_the_same() {
    let comfy = |name: &str| {
        let name = name.replace(".lora_B.bias", ".diff_b").replace("_norm.scale", "_norm.set_weight");
        format!("diffusion_model.{name}")
    };
    assert_same("h_control_canny", comfy);
    let shape: Vec<u8> = [64_i64, 128].iter().flat_map(|size| size.to_le_bytes()).collect();
    let made = Made::of(&adapter("h_control_canny")).renamed(comfy);
    let made = made.with("diffusion_model.img_in.reshape_weight", Dtype::I64, &[2], shape);
    let opened = Adapter::open(&made.path(), model()).expect("an adapter");
    assert_eq!((opened.report().inputs_added, opened.report().unused_tensors()), (64, 0));
}

#[test]
fn reports_say_what_is_changed() {
    let report = |name: &str| Adapter::open(&adapter(name), model()).expect("an adapter").report().clone();
    let f1 = report("f1_kohya_te1");
    let counts = |report: &AdapterReport| -> Vec<(&str, usize, usize)> {
        report.components.iter().map(|component| (component.name, component.matrices, component.of)).collect()
    };
    assert_eq!(counts(&f1), [("transformer", 29, 39), ("text_encoder", 12, 12)]);
    assert_eq!((f1.ranks, f1.factors, &f1.dialects[..]), (Some((4, 4)), Some((0.5, 0.5)), &["kohya"][..]));
    let h = report("h_control_canny");
    assert_eq!((counts(&h)[0], h.components[0].norms), (("transformer", 39, 39), 14));
    assert_eq!(h.kinds, [("LoRA", 39), ("bias", 39), ("replacement", 14)]);
    assert_eq!(report("d1_xlabs").dialects, ["XLabs"]);
    for (name, dtype) in [("k_dtype_bf16", "BF16"), ("k_dtype_f16", "F16"), ("k_dtype_f8_e4m3", "F8E4M3")] {
        assert_eq!(report(name).dtypes, [dtype]);
    }
    assert_eq!(report("g5_dora_kohya_out").kinds.first().map(|(kind, _)| *kind), Some("DoRA"));
    let text = report("j6_partly_unknown").to_string();
    assert!(text.contains("not used, the model has no such module: `transformer.nonsense.lora_A.weight`"), "{text}");
    assert!(text.contains("not used, the model has fewer blocks: `transformer."), "{text}");
    assert!(text.contains("12 of 16 tensors are used"), "{text}");
}
