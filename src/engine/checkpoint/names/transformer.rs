//! The modules of FLUX.1's transformer.

use super::Kind::{Linear, LinearHalvesSwapped, Vector};
use super::Module;
use crate::engine::models::flux1::config::TransformerConfig;

/// What XLabs' adapters change: the blocks, the module in a block, XLabs' name for it there, and how many of its parts the name
/// stands for.
pub(super) const XLABS: [(&str, &str, &str, usize); 6] = [
    ("double_blocks", "img_attn.qkv", "processor.qkv_lora1", 3),
    ("double_blocks", "txt_attn.qkv", "processor.qkv_lora2", 3),
    ("double_blocks", "img_attn.proj", "processor.proj_lora1", 1),
    ("double_blocks", "txt_attn.proj", "processor.proj_lora2", 1),
    // Without the rows of the feed-forward part.
    ("single_blocks", "linear1", "processor.qkv_lora", 3),
    ("single_blocks", "linear2", "processor.proj_lora", 1),
];

/// Of all blocks, embedders and the final layer.
pub(in crate::engine::checkpoint) fn modules(config: &TransformerConfig) -> Vec<Module> {
    let hidden = config.hidden_size();
    let linear = |name: &str, diffusers: &str, inputs| Module::new(name, diffusers, hidden, Linear { inputs });
    let embedder = |name: &str, diffusers: &str, inputs| {
        [
            linear(&format!("{name}.in_layer"), &format!("time_text_embed.{diffusers}.linear_1"), inputs),
            linear(&format!("{name}.out_layer"), &format!("time_text_embed.{diffusers}.linear_2"), hidden),
        ]
    };
    let mut modules = Vec::new();
    if config.guidance_embeds {
        modules.extend(embedder("guidance_in", "guidance_embedder", 256));
    }
    modules.push(linear("img_in", "x_embedder", config.in_channels));
    modules.push(linear("txt_in", "context_embedder", config.joint_attention_dim));
    modules.extend(embedder("time_in", "timestep_embedder", 256));
    modules.extend(embedder("vector_in", "text_embedder", config.pooled_projection_dim));
    modules.extend((0..config.num_layers).flat_map(|index| double_block(config, index)));
    modules.extend((0..config.num_single_layers).flat_map(|index| single_block(config, index)));
    let swapped = LinearHalvesSwapped { inputs: hidden };
    modules.push(Module::new("final_layer.adaLN_modulation.1", "norm_out.linear", 2 * hidden, swapped));
    modules.push(Module::new("final_layer.linear", "proj_out", config.latent_width(), Linear { inputs: hidden }));
    modules
}

/// Whether a tensor is the weight of a linear layer of the blocks, for which a lossy precision is. The modulations of the blocks
/// are not.
pub(in crate::engine::checkpoint) fn is_block_linear(name: &str) -> bool {
    let is_in_block = name.starts_with("double_blocks.") || name.starts_with("single_blocks.");
    is_in_block && name.ends_with(".weight") && !name.ends_with(".lin.weight")
}

/// A row: the model's name, diffusers' parts with their outputs, the kind.
type Row<'a> = (&'a str, &'a [(&'a str, usize)], super::Kind);

fn block(ours: &str, theirs: &str, rows: &[Row]) -> Vec<Module> {
    let module = |(name, parts, kind): &Row| Module {
        name: format!("{ours}.{name}"),
        parts: parts.iter().map(|(part, outputs)| (format!("{theirs}.{part}"), *outputs)).collect(),
        kind: *kind,
    };
    rows.iter().map(module).collect()
}

#[rustfmt::skip]
fn double_block(config: &TransformerConfig, index: usize) -> Vec<Module> {
    let (hidden, mlp, head) = (config.hidden_size(), config.mlp_size(), config.attention_head_dim);
    let (narrow, wide) = (Linear { inputs: hidden }, Linear { inputs: mlp });
    block(&format!("double_blocks.{index}"), &format!("transformer_blocks.{index}"), &[
        ("img_mod.lin", &[("norm1.linear", 6 * hidden)], narrow),
        ("img_attn.qkv", &[("attn.to_q", hidden), ("attn.to_k", hidden), ("attn.to_v", hidden)], narrow),
        ("img_attn.norm.query_norm.scale", &[("attn.norm_q.weight", head)], Vector),
        ("img_attn.norm.key_norm.scale", &[("attn.norm_k.weight", head)], Vector),
        ("img_attn.proj", &[("attn.to_out.0", hidden)], narrow),
        ("img_mlp.0", &[("ff.net.0.proj", mlp)], narrow),
        ("img_mlp.2", &[("ff.net.2", hidden)], wide),
        ("txt_mod.lin", &[("norm1_context.linear", 6 * hidden)], narrow),
        ("txt_attn.qkv", &[("attn.add_q_proj", hidden), ("attn.add_k_proj", hidden), ("attn.add_v_proj", hidden)], narrow),
        ("txt_attn.norm.query_norm.scale", &[("attn.norm_added_q.weight", head)], Vector),
        ("txt_attn.norm.key_norm.scale", &[("attn.norm_added_k.weight", head)], Vector),
        ("txt_attn.proj", &[("attn.to_add_out", hidden)], narrow),
        ("txt_mlp.0", &[("ff_context.net.0.proj", mlp)], narrow),
        ("txt_mlp.2", &[("ff_context.net.2", hidden)], wide),
    ])
}

#[rustfmt::skip]
fn single_block(config: &TransformerConfig, index: usize) -> Vec<Module> {
    let (hidden, mlp, head) = (config.hidden_size(), config.mlp_size(), config.attention_head_dim);
    let (narrow, wide) = (Linear { inputs: hidden }, Linear { inputs: hidden + mlp });
    block(&format!("single_blocks.{index}"), &format!("single_transformer_blocks.{index}"), &[
        ("modulation.lin", &[("norm.linear", 3 * hidden)], narrow),
        ("linear1", &[("attn.to_q", hidden), ("attn.to_k", hidden), ("attn.to_v", hidden), ("proj_mlp", mlp)], narrow),
        ("linear2", &[("proj_out", hidden)], wide),
        ("norm.query_norm.scale", &[("attn.norm_q.weight", head)], Vector),
        ("norm.key_norm.scale", &[("attn.norm_k.weight", head)], Vector),
    ])
}
