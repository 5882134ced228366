//! The modules that adapters change, by every name that adapters have for them. All of these names come from the tables.

use std::collections::HashMap;
use std::ops::Range;

use super::spellings::{Component, adapter_prefixed};
use super::transformer::XLABS;
use super::{Kind, Module, text_encoders, transformer};
use crate::engine::models::flux1::config::{ClipConfig, T5Config, TransformerConfig};

/// Maximum prefixes of a name, one before the other.
const PREFIXES_MAX: usize = 4;

/// The transformer's layer that reads an image's latents, and what is joined to them.
pub(crate) const IMAGE_INPUT: &str = "img_in";

/// A module that an adapter can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdaptedModule {
    pub(crate) component: Component,
    /// The model's name for it.
    pub(crate) name: String,
    pub(crate) outputs: usize,
    /// Columns of its matrix; `None` where it is a norm.
    pub(crate) inputs: Option<usize>,
    /// How many of these, the last ones, other models of the family lack: what is joined to an image's latents.
    pub(crate) joined: usize,
    pub(crate) has_bias: bool,
}

/// Whose name for a module it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// That of the model's authors, which is the model's own.
    Authors,
    Diffusers,
    XLabs,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The module, by its number.
    pub(crate) module: usize,
    /// Which of the module's outputs.
    pub(crate) rows: Range<usize>,
    /// Whether the halves of these outputs are in the other order under this name.
    pub(crate) are_halves_swapped: bool,
    pub(crate) naming: Naming,
}

/// A name that was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NamedPlace<'a> {
    pub(crate) place: &'a Place,
    pub(crate) module: &'a AdaptedModule,
    /// The prefix that the name begins with, or nothing.
    pub(crate) prefix: &'static str,
    /// The name without its prefixes.
    pub(crate) rest: &'a str,
}

/// All modules that adapters can change.
#[derive(Debug)]
pub(crate) struct AdaptedModules {
    modules: Vec<AdaptedModule>,
    places: HashMap<String, Place>,
}

impl AdaptedModules {
    /// Of a model with these dimensions.
    pub(crate) fn of(transformer: &TransformerConfig, clip: &ClipConfig, t5: &T5Config) -> Self {
        let mut all = Self { modules: Vec::new(), places: HashMap::new() };
        for (component, modules) in [
            (Component::Transformer, transformer::modules(transformer)),
            (Component::Clip, text_encoders::clip(clip)),
            (Component::T5, text_encoders::t5(t5)),
        ] {
            for module in modules {
                all.add(component, &module);
            }
        }
        for module in all.modules.iter_mut().filter(|module| module.name == IMAGE_INPUT) {
            module.joined = transformer.in_channels.saturating_sub(transformer.latent_width());
        }
        all
    }

    /// Of FLUX.1-dev, whose modules FLUX.1-schnell has, too, but for those of the guidance.
    pub(crate) fn flux_dev() -> Self {
        Self::of(&TransformerConfig::flux_dev(), &ClipConfig::large(), &T5Config::xxl())
    }

    /// The module of this number.
    pub(crate) fn module(&self, number: usize) -> &AdaptedModule {
        &self.modules[number]
    }

    /// How many modules with a matrix a component has.
    pub(crate) fn matrices(&self, component: Component) -> usize {
        self.modules.iter().filter(|module| module.component == component && module.inputs.is_some()).count()
    }

    /// What a name stands for, with or without prefixes.
    pub(crate) fn find<'a>(&'a self, name: &'a str) -> Option<NamedPlace<'a>> {
        let (mut rest, mut prefix, mut component) = (name, "", None);
        for _ in 0..=PREFIXES_MAX {
            // Some trainers leave an underscore where the suffix began.
            if let Some(place) = self.places.get(rest.strip_suffix('_').unwrap_or(rest)) {
                let module = &self.modules[place.module];
                let is_of = component.is_none_or(|component| component == module.component);
                return is_of.then_some(NamedPlace { place, module, prefix, rest });
            }
            let (beginning, named, without) = adapter_prefixed(rest)?;
            prefix = if prefix.is_empty() { beginning } else { prefix };
            (rest, component) = (without, named.or(component));
        }
        None
    }

    /// Whether any name has a text in it.
    #[cfg(test)]
    pub(crate) fn has_name_with(&self, text: &str) -> bool {
        self.places.keys().any(|name| name.contains(text))
    }

    fn add(&mut self, component: Component, module: &Module) {
        let (inputs, has_bias) = match module.kind {
            Kind::Linear { inputs } | Kind::LinearHalvesSwapped { inputs } => (Some(inputs), true),
            Kind::Matrix { inputs } if !text_encoders::is_table(&module.name) => (Some(inputs), false),
            Kind::Vector => (None, false),
            Kind::Norm => (None, true),
            Kind::Matrix { .. } | Kind::Convolution { .. } | Kind::Pointwise { .. } => return,
        };
        let outputs = module.parts.iter().map(|(_, outputs)| outputs).sum();
        let number = self.modules.len();
        let name = module.name.clone();
        self.modules.push(AdaptedModule { component, name, outputs, inputs, joined: 0, has_bias });
        let place = |rows, naming| Place { module: number, rows, are_halves_swapped: false, naming };
        self.name(&module.name, place(0..outputs, Naming::Authors));
        let are_halves_swapped = matches!(module.kind, Kind::LinearHalvesSwapped { .. });
        let mut start = 0;
        for (index, (part, outputs)) in module.parts.iter().enumerate() {
            let rows = start..start + outputs;
            start = rows.end;
            if module.parts.len() > 1 {
                self.name(&format!("{}.{index}", module.name), place(rows.clone(), Naming::Authors));
            }
            if *part != module.name {
                self.name(part, Place { are_halves_swapped, ..place(rows, Naming::Diffusers) });
            }
        }
        if let Some((name, parts)) = in_xlabs(&module.name) {
            let rows = module.parts.iter().take(parts).map(|(_, outputs)| outputs).sum();
            self.name(&name, place(0..rows, Naming::XLabs));
        }
    }

    /// Adds a name, and the same with underscores. Of a vector the name of its module.
    fn name(&mut self, name: &str, place: Place) {
        let name = match self.modules[place.module].inputs {
            Some(_) => name,
            None => name.strip_suffix(".scale").or_else(|| name.strip_suffix(".weight")).unwrap_or(name),
        };
        self.places.insert(name.replace('.', "_"), place.clone());
        self.places.insert(name.to_owned(), place);
    }
}

/// XLabs' name for a module of a block, and how many of the module's parts it stands for.
fn in_xlabs(module: &str) -> Option<(String, usize)> {
    let mut pieces = module.splitn(3, '.');
    let (blocks, number, rest) = (pieces.next()?, pieces.next()?, pieces.next()?);
    let (_, _, theirs, parts) = XLABS.iter().find(|(kind, ours, ..)| *kind == blocks && *ours == rest)?;
    Some((format!("{blocks}.{number}.{theirs}"), *parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The module, its first and last row, and the prefix.
    fn found(name: &str) -> Option<(String, Range<usize>, &'static str)> {
        let modules = AdaptedModules::flux_dev();
        modules.find(name).map(|found| (found.module.name.clone(), found.place.rows.clone(), found.prefix))
    }

    #[test]
    fn every_spelling_leads_to_the_same_module() {
        let query = ("double_blocks.7.img_attn.qkv", 0..3072);
        let all = ("double_blocks.7.img_attn.qkv", 0..9216);
        let mlp = ("single_blocks.37.linear1", 9216..21_504);
        for (name, (module, rows), prefix) in [
            ("transformer.transformer_blocks.7.attn.to_q", query.clone(), "transformer."),
            ("transformer_blocks.7.attn.to_q", query.clone(), ""),
            ("transformer.base_model.model.transformer_blocks.7.attn.to_q", query.clone(), "transformer."),
            ("lora_transformer_transformer_blocks_7_attn_to_q", query.clone(), "lora_transformer_"),
            ("lycoris_transformer_blocks_7_attn_to_q", query.clone(), "lycoris_"),
            ("lora_unet_transformer_blocks_7_attn_to_q_", query.clone(), "lora_unet_"),
            ("transformer.double_blocks.7.img_attn.qkv.0", query, "transformer."),
            ("lora_unet_double_blocks_7_img_attn_qkv", all.clone(), "lora_unet_"),
            ("model.diffusion_model.double_blocks.7.img_attn.qkv", all.clone(), "model.diffusion_model."),
            ("base_model.model.double_blocks.7.img_attn.qkv", all.clone(), "base_model.model."),
            ("diffusion_model.double_blocks.7.processor.qkv_lora1", all, "diffusion_model."),
            ("single_transformer_blocks.37.proj_mlp", mlp.clone(), ""),
            ("transformer.single_blocks.37.linear1.3", mlp, "transformer."),
            ("single_blocks.0.processor.qkv_lora", ("single_blocks.0.linear1", 0..9216), ""),
            ("single_blocks.0.processor.proj_lora", ("single_blocks.0.linear2", 0..3072), ""),
            ("double_blocks.0.processor.proj_lora2", ("double_blocks.0.txt_attn.proj", 0..3072), ""),
            ("lora_unet_context_embedder_", ("txt_in", 0..3072), "lora_unet_"),
            ("lora_unet_final_layer_adaLN_modulation_1", ("final_layer.adaLN_modulation.1", 0..6144), "lora_unet_"),
        ] {
            assert_eq!(found(name), Some((module.to_owned(), rows, prefix)), "{name}");
        }
    }

    #[test]
    fn text_encoders_are_found_under_their_prefixes_alone() {
        let clip = Some("text_model.encoder.layers.11.mlp.fc1");
        let t5 = Some("encoder.block.23.layer.1.DenseReluDense.wi_0");
        for (name, module) in [
            ("lora_te1_text_model_encoder_layers_11_mlp_fc1", clip),
            ("text_encoder.text_model.encoder.layers.11.mlp.fc1", clip),
            ("text_encoders.clip_l.transformer.text_model.encoder.layers.11.mlp.fc1", clip),
            ("lora_te3_encoder_block_23_layer_1_DenseReluDense_wi_0", t5),
            ("lora_te2_encoder_block_23_layer_1_DenseReluDense_wi_0", t5),
            ("text_encoder_2.encoder.block.23.layer.1.DenseReluDense.wi_0", t5),
            ("lora_te1_encoder_block_23_layer_1_DenseReluDense_wi_0", None),
            ("lora_te2_text_model_encoder_layers_11_mlp_fc1", None),
            ("lora_unet_text_model_encoder_layers_11_mlp_fc1", None),
            ("text_encoder_2.shared", None),
            ("text_encoder.text_model.embeddings.token_embedding", None),
        ] {
            assert_eq!(found(name).map(|(module, ..)| module).as_deref(), module, "{name}");
        }
    }

    #[test]
    fn halves_are_swapped_in_diffusers_names_alone() {
        let modules = AdaptedModules::flux_dev();
        for (name, is_swapped) in [("norm_out.linear", true), ("final_layer.adaLN_modulation.1", false)] {
            let found = modules.find(name).expect("a module");
            assert_eq!(
                (found.module.name.as_str(), found.module.inputs),
                ("final_layer.adaLN_modulation.1", Some(3072))
            );
            assert_eq!(found.place.are_halves_swapped, is_swapped, "{name}");
        }
    }

    #[test]
    fn all_matrices_of_flux_dev_are_counted() {
        let modules = AdaptedModules::flux_dev();
        assert_eq!(modules.matrices(Component::Transformer), 314);
        assert_eq!(modules.matrices(Component::Clip), 72);
        assert_eq!(modules.matrices(Component::T5), 24 * 7);
        let norm = modules.find("double_blocks.0.img_attn.norm.query_norm").expect("a norm");
        assert_eq!((norm.module.outputs, norm.module.inputs), (128, None));
        assert_eq!(norm.module.name, "double_blocks.0.img_attn.norm.query_norm.scale");
    }
}
