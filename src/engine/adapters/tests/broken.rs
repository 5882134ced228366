//! Files that are refused, each with its own words.

use safetensors::Dtype;

use super::*;

/// Why a file is refused.
fn refusal(path: &Path) -> String {
    let refused = Adapter::open(path, model()).and_then(|adapter| adapter.check());
    refused.expect_err("refused").to_string()
}

#[test]
fn every_recorded_broken_file_is_refused_with_its_own_words() {
    let lin = "double_blocks.0.img_mod.lin";
    let name = "transformer.transformer_blocks.0.norm1.linear";
    for (file, reasons) in [
        ("j1_wrong_shape", vec![format!("`{name}.lora_A.weight` has shape [4, 72], `{lin}` takes [rank, 64]")]),
        ("j2_wrong_shape_out", vec![format!("`{name}.lora_B.weight` has shape [376, 4], `{lin}` takes [384, rank]")]),
        ("j3_rank_mismatch", vec![format!("`{name}.lora_A.weight` has rank 6, `{name}.lora_B.weight` has rank 4")]),
        ("j4_missing_up", vec![format!("`{name}` has a down factor, and no up factor")]),
        (
            "j5_unknown_only",
            vec![
                "nothing in it is a change of FLUX.1".to_owned(),
                "no such module: `foo.bar.lora_A.weight`".to_owned(),
            ],
        ),
        ("j7_nan", vec![format!("`{name}.lora_B.weight` has NaN in it")]),
        ("j8_inf", vec![format!("`{name}.lora_B.weight` has inf in it")]),
        ("j9_rank0", vec![format!("`{name}.lora_A.weight` has rank 0, expected 1 to 4096")]),
        ("j10_sdxl", vec!["an adapter for Stable Diffusion XL, not for FLUX.1".to_owned()]),
        ("j11_no_lora_keys", vec!["a weight of a model, not of an adapter".to_owned()]),
        ("j12_alpha_nan", vec!["`lora_unet_double_blocks_0_img_mod_lin.alpha` has NaN in it".to_owned()]),
        ("j13_empty", vec!["it has no tensors".to_owned()]),
        ("j14_truncated", vec!["not a complete safetensors file".to_owned()]),
        ("j15_integer", vec![format!("`{name}.lora_A.weight` has type I8")]),
        ("j16_dim3", vec![format!("`{name}.lora_A.weight` has shape [4, 64, 1], `{lin}` takes [rank, 64]")]),
    ] {
        let refused = refusal(&adapter(file));
        for reason in reasons {
            assert!(refused.contains(&reason), "{file}: {refused}");
        }
    }
}

#[test]
fn a_model_is_no_adapter() {
    let refused = refusal(&reference("FLUX.1-dev/flux1-dev.safetensors"));
    assert!(refused.contains("a weight of a model, not of an adapter"), "{refused}");
}

#[test]
fn files_that_are_no_adapters_are_refused_by_name_with_what_to_do() {
    for (name, what, advice) in [
        ("double_blocks.0.processor.ip_adapter_double_stream_v_proj.weight", "it is an IP-Adapter", "with `--redux`"),
        ("ip_adapter.0.to_k_ip.weight", "it is an IP-Adapter", "send style images"),
        ("lllite_unet_middle_block_1_transformer_blocks_0_attn1_to_q.up", "it is a ControlNet-LLLite", "reads latents"),
        ("input_hint_block.0.weight", "it is one of XLabs' ControlNets", "`controlnet_x_embedder`"),
        ("controlnet_x_embedder.weight", "it is a ControlNet:", "load it with `--controlnet NAME=PATH`"),
        ("redux_up.weight", "it is FLUX.1-Redux", "load it with `--redux`"),
    ] {
        let alone = Made::empty().counted(name, &[2]);
        let refused = refusal(&alone.path());
        assert!(refused.contains(what) && refused.contains(advice), "{name}: {refused}");
        // A LoRA beside it would be half of what was meant.
        let query = "transformer.transformer_blocks.0.attn.to_q";
        let both = alone.counted(&format!("{query}.lora_A.weight"), &[2, 64]);
        let refused = refusal(&both.counted(&format!("{query}.lora_B.weight"), &[64, 2]).path());
        assert!(refused.contains(what) && refused.contains(advice), "{name}: {refused}");
    }
}

#[test]
fn what_would_be_applied_wrongly_is_refused() {
    let query = "transformer.transformer_blocks.0.attn.to_q";
    let low = || Made::empty().counted(&format!("{query}.lora_A.weight"), &[2, 64]);
    let low = || low().counted(&format!("{query}.lora_B.weight"), &[64, 2]);
    let with = |suffix: &str, shape: &[usize]| low().counted(&format!("{query}{suffix}"), shape);
    for (made, reason) in [
        (with(".lora_mid.weight", &[2, 2, 1, 1]), "a middle factor"),
        (with(".diff", &[64, 64]), "changes of more than one kind"),
        (with(".alpha", &[2]), "must be one number, it has shape [2]"),
        (with(".dora_scale", &[3, 1]), "takes [64, 1] or [1, 64]"),
        (with(".lora_B.bias", &[63]), "takes [64]"),
        (with(".reshape_weight", &[2]), "it says another"),
        (with(".lora_A", &[2, 64]), "is changed twice"),
        (
            low().counted("lora_unet_double_blocks_0_img_attn_qkv.diff", &[192, 64]),
            "`double_blocks.0.img_attn.qkv` is changed twice",
        ),
        (low().noted("lora_adapter_metadata", "{"), "which has the scales"),
        (Made::empty().counted(&format!("{query}.dora_scale"), &[64, 1]), "a magnitude (DoRA), and no change"),
        (Made::empty().counted(&format!("{query}.lokr_w1"), &[4, 4]), "one is missing"),
        (
            Made::empty().counted(&format!("{query}.lokr_w1"), &[4, 4]).counted(&format!("{query}.lokr_w2"), &[16, 15]),
            "make no matrix [64, 64]",
        ),
        (
            Made::empty()
                .counted("double_blocks.0.img_attn.norm.key_norm.lora_A.weight", &[1, 16])
                .counted("double_blocks.0.img_attn.norm.key_norm.lora_B.weight", &[16, 1]),
            "a norm is no matrix",
        ),
        (Made::empty().counted("lora_te3_encoder_block_0_layer_0_SelfAttention_q.diff_b", &[32]), "lacks"),
        (Made::empty().counted(&format!("{query}.oft_blocks"), &[2, 2, 2]), "OFT, which is not supported"),
        (Made::empty().counted(&format!("{query}.alpha"), &[]), "an alpha of a module that is not changed"),
        (Made::empty().with(&format!("{query}.diff"), Dtype::U8, &[64, 64], vec![0; 4096]), "has type U8"),
    ] {
        let refused = refusal(&made.path());
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
}

#[test]
fn names_in_a_refusal_cannot_write_to_the_terminal() {
    let refused = refusal(&Made::empty().counted("x\u{1b}[2J.lora_A.weight", &[1]).path());
    assert!(refused.contains("`x\u{FFFD}[2J.lora_A.weight`"), "{refused}");
}
