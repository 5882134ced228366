//! The modules of the autoencoder, encoder and decoder.

use super::Kind::{Convolution, Norm, Pointwise};
use super::Module;
use crate::engine::models::flux1::config::VaeConfig;

/// Of both halves.
pub(in crate::engine::checkpoint) fn modules(config: &VaeConfig) -> Vec<Module> {
    let mut modules = encoder(config);
    modules.extend(decoder(config));
    modules
}

fn encoder(config: &VaeConfig) -> Vec<Module> {
    let widths = &config.block_out_channels;
    let (narrowest, widest) = (widths[0], widths[widths.len() - 1]);
    let mut modules = Vec::new();
    let mut inputs = narrowest;
    for (level, &width) in widths.iter().enumerate() {
        let (ours, theirs) = (format!("encoder.down.{level}"), format!("encoder.down_blocks.{level}"));
        for block in 0..config.layers_per_block {
            let (ours, theirs) = (format!("{ours}.block.{block}"), format!("{theirs}.resnets.{block}"));
            modules.extend(resnet(&ours, &theirs, inputs, width));
            inputs = width;
        }
        if level + 1 < widths.len() {
            let theirs = format!("{theirs}.downsamplers.0.conv");
            modules.push(convolution(format!("{ours}.downsample.conv"), theirs, width, width));
        }
    }
    modules.extend(middle("encoder", widest));
    modules.push(convolution("encoder.conv_in", "encoder.conv_in", narrowest, config.in_channels));
    modules.push(Module::new("encoder.norm_out", "encoder.conv_norm_out", widest, Norm));
    modules.push(convolution("encoder.conv_out", "encoder.conv_out", 2 * config.latent_channels, widest));
    modules
}

fn decoder(config: &VaeConfig) -> Vec<Module> {
    let widths = &config.block_out_channels;
    let (narrowest, widest) = (widths[0], widths[widths.len() - 1]);
    let mut modules = middle("decoder", widest);
    let mut inputs = widest;
    // The model counts levels from pixels to latents, diffusers the other way round.
    for (position, (level, &width)) in widths.iter().enumerate().rev().enumerate() {
        let (ours, theirs) = (format!("decoder.up.{level}"), format!("decoder.up_blocks.{position}"));
        for block in 0..=config.layers_per_block {
            let (ours, theirs) = (format!("{ours}.block.{block}"), format!("{theirs}.resnets.{block}"));
            modules.extend(resnet(&ours, &theirs, inputs, width));
            inputs = width;
        }
        if level > 0 {
            let theirs = format!("{theirs}.upsamplers.0.conv");
            modules.push(convolution(format!("{ours}.upsample.conv"), theirs, width, width));
        }
    }
    modules.push(convolution("decoder.conv_in", "decoder.conv_in", widest, config.latent_channels));
    modules.push(Module::new("decoder.norm_out", "decoder.conv_norm_out", narrowest, Norm));
    modules.push(convolution("decoder.conv_out", "decoder.conv_out", config.out_channels, narrowest));
    modules
}

/// A 3×3 convolution.
fn convolution(name: impl Into<String>, diffusers: impl Into<String>, outputs: usize, inputs: usize) -> Module {
    Module::new(name, diffusers, outputs, Convolution { inputs, side: 3 })
}

fn resnet(ours: &str, theirs: &str, inputs: usize, outputs: usize) -> Vec<Module> {
    let part = |part: &str| (format!("{ours}.{part}"), format!("{theirs}.{part}"));
    let norm = |name: &str, channels| {
        let (ours, theirs) = part(name);
        Module::new(ours, theirs, channels, Norm)
    };
    let convolution = |name: &str, inputs| {
        let (ours, theirs) = part(name);
        convolution(ours, theirs, outputs, inputs)
    };
    let mut modules = vec![
        norm("norm1", inputs),
        convolution("conv1", inputs),
        norm("norm2", outputs),
        convolution("conv2", outputs),
    ];
    if inputs != outputs {
        let (ours, theirs) = (format!("{ours}.nin_shortcut"), format!("{theirs}.conv_shortcut"));
        modules.push(Module::new(ours, theirs, outputs, Convolution { inputs, side: 1 }));
    }
    modules
}

fn middle(side: &str, channels: usize) -> Vec<Module> {
    let (ours, theirs) = (format!("{side}.mid"), format!("{side}.mid_block"));
    let attention = [
        ("q", "to_q", Pointwise { inputs: channels }),
        ("k", "to_k", Pointwise { inputs: channels }),
        ("v", "to_v", Pointwise { inputs: channels }),
        ("norm", "group_norm", Norm),
        ("proj_out", "to_out.0", Pointwise { inputs: channels }),
    ];
    let attention = attention.map(|(name, diffusers, kind)| {
        let (ours, theirs) = (format!("{ours}.attn_1.{name}"), format!("{theirs}.attentions.0.{diffusers}"));
        Module::new(ours, theirs, channels, kind)
    });
    let mut modules = resnet(&format!("{ours}.block_1"), &format!("{theirs}.resnets.0"), channels, channels);
    modules.extend(attention);
    modules.extend(resnet(&format!("{ours}.block_2"), &format!("{theirs}.resnets.1"), channels, channels));
    modules
}
