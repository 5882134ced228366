//! The configuration of a ControlNet, and the rules by which it fits a model.

use serde::Deserialize;

use super::{TransformerConfig, WIDTH_MAX};
use crate::engine::storage::LinearCount;

/// `config.json` of a ControlNet, as diffusers' `FluxControlNetModel` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlNetConfig {
    /// Of its embedders and blocks, which are those of a transformer. It has no final layer.
    pub(crate) trunk: TransformerConfig,
    /// How many kinds of control images it tells apart, if it is a union.
    pub(crate) modes: Option<u32>,
}

impl ControlNetConfig {
    /// Reads the text of the file. What it lacks has the default of its class, which is that of the transformer's.
    ///
    /// # Errors
    /// When it is not of this form.
    pub(crate) fn parse(text: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Own {
            num_mode: Option<u32>,
        }
        let Own { num_mode } = serde_json::from_str(text)?;
        Ok(Self { trunk: serde_json::from_str(text)?, modes: num_mode })
    }

    /// How many blocks it has, each of which gives a residual: those with two streams, and those on the joint stream.
    pub(crate) fn blocks(&self) -> [usize; 2] {
        [self.trunk.num_layers, self.trunk.num_single_layers]
    }

    /// The linear layers that a lossy precision is for, if it quantizes nothing: those of the blocks, and behind each.
    pub(crate) fn linears(&self) -> impl Iterator<Item = LinearCount> {
        let (blocks, hidden) = (self.blocks().iter().sum(), self.trunk.hidden_size());
        self.trunk.block_linears().into_iter().chain([(blocks, [hidden, hidden])])
    }

    /// The rules that it breaks by itself.
    pub(crate) fn broken_rules(&self) -> Vec<String> {
        let mut broken: Vec<String> = self.trunk.excesses().into_iter().map(|(_, rule)| rule).collect();
        if self.blocks() == [0, 0] {
            broken.push("num_layers and num_single_layers are 0: it has no blocks".to_owned());
        }
        if self.modes.is_some_and(|modes| !(1..=WIDTH_MAX).contains(&(modes as usize))) {
            broken.push(format!("num_mode must be from 1 to {WIDTH_MAX}, or null"));
        }
        broken
    }

    /// Why it is for another model than the one with this transformer, if it is.
    pub(crate) fn misfits(&self, model: &TransformerConfig) -> Vec<String> {
        let net = &self.trunk;
        let sizes = [
            ("attention_head_dim", net.attention_head_dim, model.attention_head_dim),
            ("num_attention_heads", net.num_attention_heads, model.num_attention_heads),
            ("joint_attention_dim", net.joint_attention_dim, model.joint_attention_dim),
            ("pooled_projection_dim", net.pooled_projection_dim, model.pooled_projection_dim),
            ("in_channels", net.in_channels, model.in_channels),
        ];
        let sizes = sizes.into_iter().filter(|(_, net, model)| net != model);
        let sizes = sizes.map(|(name, net, model)| format!("{name} is {net}, the model's is {model}"));
        let (own, models) = (net.axes_dims_rope, model.axes_dims_rope);
        let axes = (own != models).then(|| format!("axes_dims_rope is {own:?}, the model's is {models:?}"));
        sizes.chain(axes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of InstantX' union.
    const UNION: &str = r#"{
        "_class_name": "FluxControlNetModel", "_diffusers_version": "0.30.0.dev0", "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56], "guidance_embeds": true, "in_channels": 64, "joint_attention_dim": 4096,
        "num_attention_heads": 24, "num_layers": 5, "num_mode": 10, "num_single_layers": 10, "patch_size": 1,
        "pooled_projection_dim": 768
    }"#;

    #[test]
    fn a_published_file_fits_the_published_model() {
        let config = ControlNetConfig::parse(UNION).expect("a configuration");
        assert_eq!((config.blocks(), config.modes, config.trunk.guidance_embeds), ([5, 10], Some(10), true));
        assert!(config.broken_rules().is_empty() && config.misfits(&TransformerConfig::flux_dev()).is_empty());
        let plain = ControlNetConfig::parse(&UNION.replace("\"num_mode\": 10", "\"num_mode\": null")).expect("reads");
        assert_eq!(plain.modes, None);
        assert_eq!(ControlNetConfig::parse("{}").expect("reads").blocks(), [19, 38], "as in diffusers");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let of = |from: &str, to: &str| ControlNetConfig::parse(&UNION.replace(from, to)).expect("a configuration");
        let model = TransformerConfig::flux_dev();
        for (from, to, name) in [
            (
                "\"num_attention_heads\": 24",
                "\"num_attention_heads\": 12",
                "num_attention_heads is 12, the model's is 24",
            ),
            ("\"joint_attention_dim\": 4096", "\"joint_attention_dim\": 2048", "joint_attention_dim is 2048"),
            ("\"in_channels\": 64", "\"in_channels\": 128", "in_channels is 128, the model's is 64"),
            ("[16, 56, 56]", "[32, 48, 48]", "axes_dims_rope is [32, 48, 48]"),
        ] {
            let misfits = of(from, to).misfits(&model);
            assert!(misfits.len() == 1 && misfits[0].contains(name), "{misfits:?}");
        }
        for (from, to, name) in [
            ("\"num_mode\": 10", "\"num_mode\": 0", "num_mode must be from 1"),
            ("\"num_layers\": 5", "\"num_layers\": 5000", "at most 1000 layers"),
        ] {
            let broken = of(from, to).broken_rules();
            assert!(broken.len() == 1 && broken[0].contains(name), "{broken:?}");
        }
        let none = of("\"num_layers\": 5", "\"num_layers\": 0").trunk;
        let none = ControlNetConfig { trunk: TransformerConfig { num_single_layers: 0, ..none }, modes: None };
        assert!(none.broken_rules()[0].contains("it has no blocks"));
    }
}
