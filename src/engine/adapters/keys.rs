//! The names of tensors in files of adapters: which module each is about, and what it is of the module's change. A name is read
//! by itself, so a file may mix dialects.

use std::fmt;

use crate::engine::checkpoint::{AdaptedModules, Component, NamedPlace};

/// What a tensor is of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// `[rank, inputs]`, which is applied first.
    Down,
    /// `[outputs, rank]`.
    Up,
    /// `[outputs]`, which is scaled as the product is.
    UpBias,
    Alpha,
    /// The norms of DoRA.
    Magnitude,
    HadamardUp1,
    HadamardDown1,
    HadamardUp2,
    HadamardDown2,
    Kronecker1,
    KroneckerUp1,
    KroneckerDown1,
    Kronecker2,
    KroneckerUp2,
    KroneckerDown2,
    /// What is added to a weight.
    Difference,
    /// What is added to a bias.
    BiasDifference,
    /// What replaces a weight, at any strength.
    Replacement,
    /// The shape of the weight that the change is for.
    Shape,
    /// A middle factor, which changes of convolutions have.
    Middle,
    /// A weight of a model, not of an adapter.
    Own,
    /// Part of a kind of change that the engine does not know.
    Unsupported(&'static str),
}

use Role::{
    Alpha, BiasDifference, Difference, Down, HadamardDown1, HadamardDown2, HadamardUp1, HadamardUp2, Kronecker1,
    Kronecker2, KroneckerDown1, KroneckerDown2, KroneckerUp1, KroneckerUp2, Magnitude, Middle, Own, Replacement, Shape,
    Unsupported, Up, UpBias,
};

const OFT: Role = Unsupported("OFT");
const GLORA: Role = Unsupported("GLoRA");

/// How names end. Where one ends with another, the longer comes first.
#[rustfmt::skip]
const SUFFIXES: [(&str, Role); 59] = [
    (".lora_magnitude_vector.default.weight", Magnitude),
    (".lora_magnitude_vector.weight", Magnitude),
    (".lora_magnitude_vector", Magnitude),
    (".lora_linear_layer.down.weight", Down),
    (".lora_linear_layer.up.weight", Up),
    (".lora_A.default.weight", Down),
    (".lora_B.default.weight", Up),
    (".lora_B.default.bias", UpBias),
    (".lora_down.weight", Down),
    (".lora_up.weight", Up),
    (".lora_up.bias", UpBias),
    (".lora_mid.weight", Middle),
    (".lora.down.weight", Down),
    (".lora.up.weight", Up),
    ("_lora.down.weight", Down),
    ("_lora.up.weight", Up),
    (".lora_A.weight", Down),
    (".lora_B.weight", Up),
    (".lora_B.bias", UpBias),
    (".lora_A", Down),
    (".lora_B", Up),
    (".down.weight", Down),
    (".up.weight", Up),
    (".alpha", Alpha),
    (".dora_scale", Magnitude),
    (".hada_w1_a", HadamardUp1),
    (".hada_w1_b", HadamardDown1),
    (".hada_w2_a", HadamardUp2),
    (".hada_w2_b", HadamardDown2),
    (".hada_t1", Middle),
    (".hada_t2", Middle),
    (".lokr_w1_a", KroneckerUp1),
    (".lokr_w1_b", KroneckerDown1),
    (".lokr_w2_a", KroneckerUp2),
    (".lokr_w2_b", KroneckerDown2),
    (".lokr_w1", Kronecker1),
    (".lokr_w2", Kronecker2),
    (".lokr_t2", Middle),
    (".diff", Difference),
    (".diff_b", BiasDifference),
    (".w_norm", Difference),
    (".b_norm", BiasDifference),
    (".set_weight", Replacement),
    (".reshape_weight", Shape),
    (".oft_blocks", OFT),
    (".oft_diag", OFT),
    (".oft_R.weight", OFT),
    (".oft_R", OFT),
    (".rescale", OFT),
    (".a1.weight", GLORA),
    (".a2.weight", GLORA),
    (".b1.weight", GLORA),
    (".b2.weight", GLORA),
    (".on_input", Unsupported("IA3")),
    (".lora_embedding_A", Unsupported("a change of an embedding")),
    (".lora_embedding_B", Unsupported("a change of an embedding")),
    (".scale", Own),
    (".weight", Own),
    (".bias", Own),
];

/// Why a tensor is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotUsed {
    /// The model has no module of that name.
    NoSuchModule,
    /// The model has fewer blocks.
    NoSuchBlock,
    /// Its name does not end as those of adapters.
    NoSuffix,
    /// It is a weight of a model.
    OwnWeight,
    /// A kind of change that the engine does not know.
    Unsupported(&'static str),
    /// An alpha whose module has no change.
    AlphaAlone,
}

impl fmt::Display for NotUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchModule => f.write_str("the model has no such module"),
            Self::NoSuchBlock => f.write_str("the model has fewer blocks"),
            Self::NoSuffix => f.write_str("not named as a part of an adapter"),
            Self::OwnWeight => f.write_str("a weight of a model, not of an adapter"),
            Self::Unsupported(what) => write!(f, "{what}, which is not supported"),
            Self::AlphaAlone => f.write_str("an alpha of a module that is not changed"),
        }
    }
}

/// A name that was understood.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    /// The name without what says the role: that of the module.
    pub(super) path: &'a str,
    pub(super) role: Role,
    pub(super) found: NamedPlace<'a>,
}

/// Reads a tensor's name.
///
/// # Errors
/// When it is not understood: why.
pub(super) fn read<'a>(modules: &'a AdaptedModules, name: &'a str) -> Result<Key<'a>, NotUsed> {
    let mut first = None;
    for (suffix, role) in SUFFIXES {
        let Some(path) = name.strip_suffix(suffix) else { continue };
        // The suffix may be part of the module's name, as in `processor.qkv_lora.down.weight`.
        if let Some(found) = modules.find(path) {
            let key = Key { path, role, found };
            return match role {
                Own if is_norm_of_transformer(&found) && suffix != ".bias" => Ok(key),
                Own => Err(NotUsed::OwnWeight),
                Unsupported(what) => Err(NotUsed::Unsupported(what)),
                _ => Ok(key),
            };
        }
        first = first.or(Some((path, role)));
    }
    Err(match first {
        Some((_, Unsupported(what))) => NotUsed::Unsupported(what),
        Some((path, _)) if has_block_0(modules, path) => NotUsed::NoSuchBlock,
        Some((_, Own)) | None => NotUsed::NoSuffix,
        Some(_) => NotUsed::NoSuchModule,
    })
}

/// Control adapters have the norms' weights in place of differences.
fn is_norm_of_transformer(found: &NamedPlace) -> bool {
    found.module.component == Component::Transformer && found.module.inputs.is_none()
}

/// Whether there is such a module in the first block.
fn has_block_0(modules: &AdaptedModules, path: &str) -> bool {
    let is_digit = |letter: char| letter.is_ascii_digit();
    let blocks = ["block", "layers"].iter().find_map(|word| path.find(word));
    let Some(start) = blocks.and_then(|at| Some(at + path[at..].find(is_digit)?)) else { return false };
    let end = path[start..].find(|letter| !is_digit(letter)).map_or(path.len(), |length| start + length);
    modules.find(&format!("{}0{}", &path[..start], &path[end..])).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_two_suffixes_comes_first() {
        for (place, (suffix, _)) in SUFFIXES.iter().enumerate() {
            for (other, _) in &SUFFIXES[..place] {
                assert!(!suffix.ends_with(other), "`{suffix}` is never reached: `{other}` comes before it");
            }
        }
    }

    #[test]
    fn names_of_every_dialect_are_read() {
        let modules = AdaptedModules::flux_dev();
        let query = "transformer_blocks.3.attn.to_q";
        for (suffix, role) in [
            (".lora_A.weight", Down),
            (".lora_B.default.weight", Up),
            (".lora.down.weight", Down),
            ("_lora.up.weight", Up),
            (".lora_linear_layer.up.weight", Up),
            (".lora_A", Down),
            (".lora_magnitude_vector", Magnitude),
            (".alpha", Alpha),
            (".lokr_w1", Kronecker1),
            (".lokr_w1_a", KroneckerUp1),
            (".diff_b", BiasDifference),
        ] {
            let name = format!("transformer.{query}{suffix}");
            let key = read(&modules, &name).unwrap_or_else(|reason| panic!("{name}: {reason}"));
            assert_eq!((key.role, key.found.rest), (role, query), "{name}");
        }
        let name = "single_blocks.0.processor.qkv_lora.down.weight";
        let key = read(&modules, name).expect("XLabs'");
        assert_eq!((key.role, key.found.place.rows.clone()), (Down, 0..9216));
        let name = "double_blocks.0.img_attn.norm.key_norm.scale";
        assert_eq!(read(&modules, name).expect("a norm").role, Own);
    }

    #[test]
    fn what_is_not_used_has_its_reason() {
        let modules = AdaptedModules::flux_dev();
        for (name, reason) in [
            ("foo.bar.lora_A.weight", NotUsed::NoSuchModule),
            ("transformer.transformer_blocks.19.attn.to_q.lora_A.weight", NotUsed::NoSuchBlock),
            ("lora_unet_single_blocks_38_linear1.lora_up.weight", NotUsed::NoSuchBlock),
            ("lora_te1_text_model_encoder_layers_12_mlp_fc1.alpha", NotUsed::NoSuchBlock),
            ("lora_te3_encoder_block_24_layer_0_SelfAttention_q.alpha", NotUsed::NoSuchBlock),
            ("double_blocks.0.img_attn.proj.weight", NotUsed::OwnWeight),
            ("double_blocks.0.img_attn.qkv.bias", NotUsed::OwnWeight),
            ("text_model.encoder.layers.0.layer_norm1.weight", NotUsed::OwnWeight),
            ("iteration", NotUsed::NoSuffix),
            ("decoder.conv_in.weight", NotUsed::NoSuffix),
            ("oft_unet_double_blocks_0_img_attn_qkv.oft_blocks", NotUsed::Unsupported("OFT")),
            ("double_blocks.0.img_attn.qkv.a1.weight", NotUsed::Unsupported("GLoRA")),
        ] {
            assert_eq!(read(&modules, name).map(|key| key.role), Err(reason), "{name}");
        }
    }
}
