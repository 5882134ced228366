//! Who names modules so: shown to people, and never decides how a tensor is read.

use crate::engine::checkpoint::{Component, NamedPlace, Naming};

/// The dialect of a name of a module.
pub(super) fn of(found: &NamedPlace) -> &'static str {
    let is_of_transformer = found.module.component == Component::Transformer;
    match (found.prefix, found.place.naming) {
        (_, Naming::XLabs) => "XLabs",
        ("lora_unet_", Naming::Diffusers) => "kohya over diffusers' modules",
        ("lora_unet_" | "oft_unet_" | "lora_te1_" | "lora_te3_", _) => "kohya",
        ("lora_transformer_" | "lora_te2_", _) => "OneTrainer",
        ("lycoris_", _) => "LyCORIS",
        ("base_model.model.", Naming::Authors) if is_of_transformer => "fal",
        ("transformer.", Naming::Authors) => "OneTrainer's OMI",
        ("base_model.model." | "transformer." | "text_encoder." | "text_encoder_2." | "unet.", _) => "PEFT",
        ("", Naming::Authors) if is_of_transformer => "BFL",
        ("", _) => "PEFT without prefixes",
        _ => "ComfyUI",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::AdaptedModules;

    #[test]
    fn names_tell_their_dialect() {
        let modules = AdaptedModules::flux_dev();
        for (name, dialect) in [
            ("transformer.transformer_blocks.0.attn.to_q", "PEFT"),
            ("transformer_blocks.0.attn.to_q", "PEFT without prefixes"),
            ("lora_unet_double_blocks_0_img_attn_qkv", "kohya"),
            ("lora_unet_transformer_blocks_0_attn_to_q", "kohya over diffusers' modules"),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "kohya"),
            ("lora_transformer_transformer_blocks_0_attn_to_q", "OneTrainer"),
            ("transformer.double_blocks.0.img_attn.qkv.1", "OneTrainer's OMI"),
            ("lycoris_transformer_blocks_0_attn_to_q", "LyCORIS"),
            ("base_model.model.double_blocks.0.img_attn.qkv", "fal"),
            ("diffusion_model.double_blocks.0.img_attn.qkv", "ComfyUI"),
            ("double_blocks.0.img_attn.qkv", "BFL"),
            ("double_blocks.0.processor.qkv_lora1", "XLabs"),
            ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "PEFT"),
            ("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q", "ComfyUI"),
        ] {
            assert_eq!(of(&modules.find(name).expect(name)), dialect, "{name}");
        }
    }
}
