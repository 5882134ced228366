//! Weight files that are given as a ControlNet or a LoRA of FLUX.1 and are neither: known by names of tensors that no file for
//! FLUX.1 has.

/// What to do where a ControlNet was wanted.
const OTHER_NET: &str = "use a ControlNet that reads latents and has `controlnet_x_embedder`, as those of InstantX, Shakker Labs and \
     Jasper AI";

/// What to do where the look of an image was wanted.
const BY_REDUX: &str = "load FLUX.1-Redux with `--redux` and send style images";

/// What is in the name of a tensor, what the file is, and what to do. The first that is found counts: ControlNets of Stable Diffusion
/// have names of XLabs', too.
///
/// Sources of the names: the detection in `comfy/controlnet.py` of ComfyUI, XLabs' x-flux, `controlnet_union.py` of diffusers.
const KINDS: [(&str, &str, &str); 17] = [
    ("lllite_", "a ControlNet-LLLite, which changes layers of another model", OTHER_NET),
    ("ip_adapter", "an IP-Adapter, which is not supported", BY_REDUX),
    ("image_proj.", "an IP-Adapter, which is not supported", BY_REDUX),
    ("pulid_", "PuLID, which is not supported", BY_REDUX),
    ("redux_up.", "FLUX.1-Redux", "load it with `--redux` and send style images"),
    ("lora_controlnet", "a Control-LoRA of Stable Diffusion XL", OTHER_NET),
    ("control_add_embedding.", "a union or union promax of Stable Diffusion XL", OTHER_NET),
    ("controlnet_cond_embedding.", "a ControlNet of Stable Diffusion", OTHER_NET),
    ("controlnet_down_blocks.", "a ControlNet of Stable Diffusion", OTHER_NET),
    ("control_model.", "a ControlNet of Stable Diffusion", OTHER_NET),
    ("zero_convs.", "a ControlNet of Stable Diffusion", OTHER_NET),
    ("pos_embed_input.proj.", "a ControlNet of Stable Diffusion 3", OTHER_NET),
    ("transformer_blocks.0.img_mod.1.", "a ControlNet of Qwen-Image", OTHER_NET),
    ("control_img_in.", "a ControlNet of Qwen-Image", OTHER_NET),
    ("control_layers.", "a ControlNet of Z-Image", OTHER_NET),
    ("controlnet_blocks.0.linear.", "MistoLine, which reads pixels", OTHER_NET),
    ("input_hint_block.", "one of XLabs' ControlNets, which read pixels", OTHER_NET),
];

/// What a file with tensors of these names is and what to do, as the rest of a sentence; `None` where nothing says that it is of
/// another kind.
pub(crate) fn other_kind<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let found = names.filter_map(|name| KINDS.iter().position(|(part, ..)| name.contains(part)));
    let (_, what, advice) = KINDS[found.min()?];
    Some(format!("it is {what}: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::inventory::tensors_of;
    use crate::engine::checkpoint::layout::Layout;
    use crate::engine::checkpoint::names::adapted::AdaptedModules;
    use crate::engine::checkpoint::names::controlnet::modules;
    use crate::engine::models::flux1::config::TransformerConfig;
    use crate::engine::models::flux1::config::controlnet::ControlNetConfig;

    #[test]
    fn no_name_of_flux_is_one_of_another_kind() {
        let union = ControlNetConfig { trunk: TransformerConfig::flux_dev(), modes: Some(10) };
        let tensors = tensors_of(&modules(&union), Layout::Diffusers);
        for name in tensors.iter().flat_map(|tensor| &tensor.parts).map(|part| part.name.as_str()) {
            assert_eq!(other_kind(std::iter::once(name)), None, "{name}");
        }
        let adaptable = AdaptedModules::flux_dev();
        for (part, what, _) in KINDS {
            let part = part.trim_matches('.');
            assert!(!adaptable.has_name_with(part), "`{part}` of {what} is in a name of FLUX.1");
        }
    }

    #[test]
    fn the_first_of_several_kinds_counts() {
        let names = ["input_hint_block.0.weight", "control_model.zero_convs.0.0.weight"];
        let of = |names: &[&str]| other_kind(names.iter().copied()).expect("of another kind");
        assert!(of(&names).contains("Stable Diffusion") && of(&names[..1]).contains("XLabs"), "{}", of(&names));
        assert_eq!(other_kind(std::iter::empty()), None);
    }
}
