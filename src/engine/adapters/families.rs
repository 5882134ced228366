//! The model families whose adapters are taken for FLUX.1's, and what else is taken for an adapter.

use crate::engine::checkpoint::{self, TensorFile};

/// What names of modules have in them in files of other families, and the family. No file for FLUX.1 has any of these.
const OTHERS: [(&str, &str); 19] = [
    ("lora_unet_input_blocks_", "Stable Diffusion XL"),
    ("lora_unet_middle_block_", "Stable Diffusion XL"),
    ("lora_unet_output_blocks_", "Stable Diffusion XL"),
    ("lora_te2_text_model_", "Stable Diffusion XL"),
    ("lora_unet_down_blocks_", "Stable Diffusion 1.5 or XL"),
    ("lora_unet_mid_block_", "Stable Diffusion 1.5 or XL"),
    ("lora_unet_up_blocks_", "Stable Diffusion 1.5 or XL"),
    ("unet.down_blocks.", "Stable Diffusion 1.5 or XL"),
    ("unet.mid_block.", "Stable Diffusion 1.5 or XL"),
    ("unet.up_blocks.", "Stable Diffusion 1.5 or XL"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("double_stream_modulation_", "FLUX.2"),
    ("single_stream_modulation", "FLUX.2"),
    ("single_transformer_blocks.0.attn.to_qkv_mlp_proj", "FLUX.2"),
    ("distilled_guidance_layer", "Chroma"),
    (".img_mod.1.", "Qwen-Image"),
    ("_img_mod_1.", "Qwen-Image"),
    ("context_refiner", "Z-Image or Lumina"),
    ("diffusion_model.layers.", "Z-Image or Lumina"),
];

/// The other family that a file is for, by the names of its tensors.
pub(super) fn other<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    names.find_map(|name| OTHERS.iter().find(|(part, _)| name.contains(part)).map(|(_, family)| *family))
}

/// Why a file is no adapter at all, where its names tell.
pub(super) fn other_kind(file: &TensorFile) -> Option<String> {
    let is_net = file.names().any(|name| name.starts_with("controlnet_x_embedder."));
    let as_net = "it is a ControlNet: load it with `--controlnet NAME=PATH` and send control images";
    checkpoint::other_kind(file.names()).or_else(|| is_net.then(|| as_net.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::AdaptedModules;

    #[test]
    fn names_of_other_families_tell_them() {
        for (name, family) in [
            ("lora_unet_middle_block_1_transformer_blocks_0_ff_net_2.alpha", "Stable Diffusion XL"),
            ("diffusion_model.double_stream_modulation_img.lin.lora_A.weight", "FLUX.2"),
            ("transformer.transformer_blocks.3.img_mod.1.lora_A.weight", "Qwen-Image"),
            ("lora_unet_transformer_blocks_3_img_mod_1.lora_down.weight", "Qwen-Image"),
            ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "Stable Diffusion 3"),
            ("diffusion_model.distilled_guidance_layer.layers.0.in_layer.lora_A.weight", "Chroma"),
        ] {
            assert_eq!(other(std::iter::once(name)), Some(family), "{name}");
        }
    }

    #[test]
    fn no_name_of_flux_is_taken_for_another_familys() {
        let modules = AdaptedModules::flux_dev();
        for (part, family) in OTHERS {
            let part = part.trim_matches('.').trim_start_matches("lora_unet_").trim_end_matches('_');
            assert!(!modules.has_name_with(part), "`{part}` of {family} is in a name of FLUX.1");
        }
    }
}
