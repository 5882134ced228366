//! The spellings of tensors' names in files: which component a name belongs to, and the name that the tables have for it.

use std::borrow::Cow;

/// A component of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Component {
    Transformer,
    Vae,
    Clip,
    T5,
}

use Component::{Clip, T5, Transformer, Vae};

/// Prefixes that name a component. Where one begins with another, the longer comes first.
const PREFIXES: [(&str, Component); 9] = [
    ("model.diffusion_model.", Transformer),
    ("diffusion_model.", Transformer),
    ("first_stage_model.", Vae),
    ("vae.", Vae),
    ("text_encoders.clip_l.transformer.", Clip),
    ("text_encoders.clip_l.", Clip),
    ("text_encoders.t5xxl.transformer.", T5),
    ("text_encoders.t5xxl.", T5),
    ("text_encoders.t5.", T5),
];

/// Prefixes that some tools put before a transformer's own names; other files have them before other names.
const LOOSE_PREFIXES: [&str; 2] = ["transformer.", "model."];

/// Prefixes of the names in files of adapters, beside those above; and the component that each names, if it names one. Where one
/// begins with another, the longer comes first.
const ADAPTER_PREFIXES: [(&str, Option<Component>); 12] = [
    ("base_model.model.", None),
    ("transformer.", Some(Transformer)),
    ("unet.", Some(Transformer)),
    ("lora_unet_", Some(Transformer)),
    ("lora_transformer_", Some(Transformer)),
    ("oft_unet_", Some(Transformer)),
    ("lycoris_", None),
    ("text_encoder.", Some(Clip)),
    ("lora_te1_", Some(Clip)),
    ("text_encoder_2.", Some(T5)),
    // OneTrainer counts the text encoders from 1, kohya's scripts give T5 the number that it has in Stable Diffusion 3.
    ("lora_te2_", Some(T5)),
    ("lora_te3_", Some(T5)),
];

/// How names without a prefix begin. T5's come before the autoencoder's, which begin alike.
const BEGINNINGS: [(&str, Component); 26] = [
    ("double_blocks.", Transformer),
    ("single_blocks.", Transformer),
    ("img_in.", Transformer),
    ("txt_in.", Transformer),
    ("time_in.", Transformer),
    ("vector_in.", Transformer),
    ("guidance_in.", Transformer),
    ("final_layer.", Transformer),
    ("transformer_blocks.", Transformer),
    ("single_transformer_blocks.", Transformer),
    ("x_embedder.", Transformer),
    ("context_embedder.", Transformer),
    ("time_text_embed.", Transformer),
    ("norm_out.", Transformer),
    ("proj_out.", Transformer),
    ("text_model.", Clip),
    ("text_projection.", Clip),
    ("encoder.block.", T5),
    ("encoder.final_layer_norm.", T5),
    ("encoder.embed_tokens.", T5),
    ("shared.", T5),
    ("token_embd.", T5),
    ("enc.blk.", T5),
    ("enc.output_norm.", T5),
    ("encoder.", Vae),
    ("decoder.", Vae),
];

impl Component {
    /// All of them, in the order of reports.
    pub(in crate::engine::checkpoint) const ALL: [Self; 4] = [Transformer, Vae, Clip, T5];

    /// How the names of tensors begin, one of which every file of the component has, and no adapter of it.
    pub(in crate::engine::checkpoint) fn landmarks(self) -> &'static [&'static str] {
        match self {
            Transformer => &["final_layer.linear.weight", "proj_out.weight"],
            Vae => &["decoder.conv_in.weight"],
            Clip => &["text_model.embeddings.token_embedding.weight"],
            T5 => &["encoder.block.0.layer.0.SelfAttention.q.weight"],
        }
    }

    /// Its folder in the diffusers layout.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Transformer => "transformer",
            Vae => "vae",
            Clip => "text_encoder",
            T5 => "text_encoder_2",
        }
    }
}

/// The component that a name's prefix names, and the rest of the name.
pub(in crate::engine::checkpoint) fn prefixed(name: &str) -> Option<(Component, &str)> {
    let named = PREFIXES.iter().find_map(|(prefix, component)| Some((*component, name.strip_prefix(prefix)?)));
    named.or_else(|| {
        let rest = LOOSE_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))?;
        (bare(rest) == Some(Transformer)).then_some((Transformer, rest))
    })
}

/// The prefix of a name in a file of an adapter, the component that it names, and the rest of the name.
pub(in crate::engine::checkpoint) fn adapter_prefixed(name: &str) -> Option<(&'static str, Option<Component>, &str)> {
    let of_files = PREFIXES.iter().map(|(prefix, component)| (*prefix, Some(*component)));
    let mut all = of_files.chain(ADAPTER_PREFIXES);
    all.find_map(|(prefix, component)| Some((prefix, component, name.strip_prefix(prefix)?)))
}

/// The component whose names begin like this one.
pub(in crate::engine::checkpoint) fn bare(name: &str) -> Option<Component> {
    BEGINNINGS.iter().find(|(beginning, _)| name.starts_with(beginning)).map(|(_, component)| *component)
}

/// The tables' name for a tensor of a component: files of other tools spell some differently.
pub(in crate::engine::checkpoint) fn canonical(component: Component, name: &str) -> Cow<'_, str> {
    match component {
        Transformer => norm_scale(name),
        T5 => of_llama_cpp(name).map_or(Cow::Borrowed(name), Cow::Owned),
        Vae | Clip => Cow::Borrowed(name),
    }
}

/// Newer single files have `query_norm.weight` for `query_norm.scale`.
fn norm_scale(name: &str) -> Cow<'_, str> {
    let norm = name.strip_suffix(".weight").filter(|norm| norm.ends_with(".query_norm") || norm.ends_with(".key_norm"));
    norm.map_or(Cow::Borrowed(name), |norm| Cow::Owned(format!("{norm}.scale")))
}

/// llama.cpp's names of T5's tensors outside its blocks, in GGUF, and ours.
const LLAMA_CPP: [(&str, &str); 2] =
    [("token_embd.weight", "shared.weight"), ("enc.output_norm.weight", "encoder.final_layer_norm.weight")];

/// llama.cpp's names of the parts of T5's blocks, and ours.
const LLAMA_CPP_PARTS: [(&str, &str); 10] = [
    ("attn_q", "0.SelfAttention.q"),
    ("attn_k", "0.SelfAttention.k"),
    ("attn_v", "0.SelfAttention.v"),
    ("attn_o", "0.SelfAttention.o"),
    ("attn_rel_b", "0.SelfAttention.relative_attention_bias"),
    ("attn_norm", "0.layer_norm"),
    ("ffn_norm", "1.layer_norm"),
    // Of the two that are multiplied, the one with the activation.
    ("ffn_gate", "1.DenseReluDense.wi_0"),
    ("ffn_up", "1.DenseReluDense.wi_1"),
    ("ffn_down", "1.DenseReluDense.wo"),
];

/// Our name for what llama.cpp names so.
fn of_llama_cpp(name: &str) -> Option<String> {
    if let Some((_, ours)) = LLAMA_CPP.iter().find(|(theirs, _)| *theirs == name) {
        return Some((*ours).to_owned());
    }
    let (block, part) = name.strip_prefix("enc.blk.")?.split_once('.')?;
    let part = part.strip_suffix(".weight")?;
    let (_, ours) = LLAMA_CPP_PARTS.iter().find(|(theirs, _)| *theirs == part)?;
    Some(format!("encoder.block.{block}.layer.{ours}.weight"))
}

/// llama.cpp's name for a tensor of T5.
pub(in crate::engine::checkpoint) fn in_llama_cpp(name: &str) -> Option<String> {
    if let Some((theirs, _)) = LLAMA_CPP.iter().find(|(_, ours)| *ours == name) {
        return Some((*theirs).to_owned());
    }
    let (block, part) = name.strip_prefix("encoder.block.")?.split_once(".layer.")?;
    let part = part.strip_suffix(".weight")?;
    let (theirs, _) = LLAMA_CPP_PARTS.iter().find(|(_, ours)| *ours == part)?;
    Some(format!("enc.blk.{block}.{theirs}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_names_the_component() {
        for (name, component, rest) in [
            ("model.diffusion_model.img_in.weight", Transformer, "img_in.weight"),
            ("transformer.transformer_blocks.0.x", Transformer, "transformer_blocks.0.x"),
            ("model.double_blocks.0.x", Transformer, "double_blocks.0.x"),
            ("vae.decoder.conv_in.bias", Vae, "decoder.conv_in.bias"),
            ("text_encoders.clip_l.logit_scale", Clip, "logit_scale"),
            ("text_encoders.clip_l.transformer.text_model.x", Clip, "text_model.x"),
            ("text_encoders.t5xxl.transformer.shared.weight", T5, "shared.weight"),
        ] {
            assert_eq!(prefixed(name), Some((component, rest)), "{name}");
        }
        for name in ["img_in.weight", "transformer.resblocks.0.x", "model.layers.0.x", "text_model.x"] {
            assert_eq!(prefixed(name), None, "{name}");
        }
    }

    #[test]
    fn a_beginning_names_the_component() {
        for (name, component) in [
            ("double_blocks.0.img_attn.qkv.weight", Some(Transformer)),
            ("single_transformer_blocks.0.proj_out.bias", Some(Transformer)),
            ("encoder.block.0.layer.0.SelfAttention.q.weight", Some(T5)),
            ("enc.blk.0.attn_q.weight", Some(T5)),
            ("encoder.down.0.block.0.conv1.weight", Some(Vae)),
            ("text_model.final_layer_norm.bias", Some(Clip)),
            ("lora_unet_x", None),
        ] {
            assert_eq!(bare(name), component, "{name}");
        }
    }

    #[test]
    fn other_spellings_get_the_names_of_the_tables() {
        for (component, name, expected) in [
            (Transformer, "single_blocks.0.norm.key_norm.weight", "single_blocks.0.norm.key_norm.scale"),
            (Transformer, "img_in.weight", "img_in.weight"),
            (T5, "token_embd.weight", "shared.weight"),
            (T5, "enc.output_norm.weight", "encoder.final_layer_norm.weight"),
            (T5, "enc.blk.7.ffn_gate.weight", "encoder.block.7.layer.1.DenseReluDense.wi_0.weight"),
            (T5, "enc.blk.7.ffn_down.weight", "encoder.block.7.layer.1.DenseReluDense.wo.weight"),
            (T5, "enc.blk.0.unknown.weight", "enc.blk.0.unknown.weight"),
        ] {
            assert_eq!(canonical(component, name), expected, "{name}");
        }
    }

    #[test]
    fn every_tensor_of_t5_has_a_name_in_llama_cpp_and_gets_its_own_back() {
        let config = crate::engine::models::flux1::config::T5Config::xxl();
        let modules = crate::engine::checkpoint::names::text_encoders::t5(&config);
        for module in &modules {
            // A vector's name is its tensor's.
            let name = format!("{}.weight", module.name.trim_end_matches(".weight"));
            let theirs = in_llama_cpp(&name).unwrap_or_else(|| panic!("{name} has no name there"));
            assert!(theirs.starts_with("enc.") || theirs == "token_embd.weight", "{theirs}");
            assert_eq!(canonical(T5, &theirs), name);
        }
        assert_eq!(modules.len(), 219, "as in the published files");
        assert_eq!(in_llama_cpp("double_blocks.0.img_attn.qkv.weight"), None);
    }
}
