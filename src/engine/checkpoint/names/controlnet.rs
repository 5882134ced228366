//! The modules of a ControlNet, which has one published layout: that of diffusers. Its embedders and blocks are those of a
//! transformer, and have the model's names for them; the model calls the others as diffusers does.

use super::Kind::{Linear, Matrix};
use super::{Module, transformer};
use crate::engine::models::flux1::config::controlnet::ControlNetConfig;

/// Of a transformer without its final layer, and what a ControlNet has beside them.
pub(in crate::engine::checkpoint) fn modules(config: &ControlNetConfig) -> Vec<Module> {
    let (trunk, [double, single]) = (&config.trunk, config.blocks());
    let hidden = trunk.hidden_size();
    let mut modules = transformer::modules(trunk);
    modules.retain(|module| !module.name.starts_with("final_layer."));
    modules.push(Module::same("controlnet_x_embedder", hidden, Linear { inputs: trunk.in_channels }));
    let modes = config.modes.map(|modes| modes as usize);
    modules.extend(modes.map(|modes| Module::same("controlnet_mode_embedder", modes, Matrix { inputs: hidden })));
    let double = (0..double).map(|index| format!("controlnet_blocks.{index}"));
    let single = (0..single).map(|index| format!("controlnet_single_blocks.{index}"));
    modules.extend(double.chain(single).map(|name| Module::same(name, hidden, Linear { inputs: hidden })));
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the published files, by their sizes.
    #[test]
    fn the_published_nets_have_so_many_numbers() {
        use crate::engine::checkpoint::inventory::tensors_of;
        use crate::engine::checkpoint::layout::Layout;
        use crate::engine::models::flux1::config::TransformerConfig;

        for (double, single, modes, bytes) in
            [(5, 10, Some(10), 6_603_913_216_usize), (6, 0, None, 4_281_753_600), (5, 0, None, 3_583_210_496)]
        {
            let dev = TransformerConfig::flux_dev();
            let trunk = TransformerConfig { num_layers: double, num_single_layers: single, ..dev };
            let tensors = tensors_of(&modules(&ControlNetConfig { trunk, modes }), Layout::Diffusers);
            let numbers: usize = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
            assert_eq!(2 * numbers, bytes, "{double} and {single} blocks");
        }
    }
}
