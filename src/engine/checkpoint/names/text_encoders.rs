//! The modules of CLIP's and T5's text encoders, which both layouts name alike.

use super::Kind::{Linear, Matrix, Norm, Vector};
use super::Module;
use crate::engine::models::flux1::config::{ClipConfig, T5Config};

/// Of CLIP's text encoder.
pub(in crate::engine::checkpoint) fn clip(config: &ClipConfig) -> Vec<Module> {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let embedding = |name: &str, rows| {
        Module::same(format!("text_model.embeddings.{name}_embedding"), rows, Matrix { inputs: width })
    };
    let mut modules =
        vec![embedding("token", config.vocab_size), embedding("position", config.max_position_embeddings)];
    for index in 0..config.num_hidden_layers {
        let layer = [
            ("self_attn.k_proj", width, Linear { inputs: width }),
            ("self_attn.v_proj", width, Linear { inputs: width }),
            ("self_attn.q_proj", width, Linear { inputs: width }),
            ("self_attn.out_proj", width, Linear { inputs: width }),
            ("layer_norm1", width, Norm),
            ("mlp.fc1", inner, Linear { inputs: width }),
            ("mlp.fc2", width, Linear { inputs: inner }),
            ("layer_norm2", width, Norm),
        ];
        modules.extend(layer.map(|(name, outputs, kind)| {
            Module::same(format!("text_model.encoder.layers.{index}.{name}"), outputs, kind)
        }));
    }
    modules.push(Module::same("text_model.final_layer_norm", width, Norm));
    modules
}

/// Tensors of CLIP files that FLUX does not use: older ones have the position numbers as a buffer, some the projection and
/// its scale, and some all of CLIP.
pub(in crate::engine::checkpoint) fn is_ignored_of_clip(tensor: &str) -> bool {
    matches!(tensor, "text_model.embeddings.position_ids" | "text_projection.weight" | "logit_scale")
        || tensor.starts_with("vision_model.")
        || tensor == "visual_projection.weight"
}

/// Whether rows of a module are looked up: no linear layer.
pub(super) fn is_table(module: &str) -> bool {
    module == "shared" || module.contains(".embeddings.") || module.ends_with(".relative_attention_bias")
}

/// Of T5's encoder.
pub(in crate::engine::checkpoint) fn t5(config: &T5Config) -> Vec<Module> {
    let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
    let matrix = |name: &str, outputs, inputs| Module::same(name, outputs, Matrix { inputs });
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias";
    let mut modules = vec![
        matrix("shared", config.vocab_size, width),
        matrix(bias, config.relative_attention_num_buckets, config.num_heads),
        Module::same("encoder.final_layer_norm.weight", width, Vector),
    ];
    for index in 0..config.num_layers {
        let layer = [
            ("0.layer_norm.weight", width, Vector),
            ("0.SelfAttention.q", inner, Matrix { inputs: width }),
            ("0.SelfAttention.k", inner, Matrix { inputs: width }),
            ("0.SelfAttention.v", inner, Matrix { inputs: width }),
            ("0.SelfAttention.o", width, Matrix { inputs: inner }),
            ("1.layer_norm.weight", width, Vector),
            ("1.DenseReluDense.wi_0", config.d_ff, Matrix { inputs: width }),
            ("1.DenseReluDense.wi_1", config.d_ff, Matrix { inputs: width }),
            ("1.DenseReluDense.wo", width, Matrix { inputs: config.d_ff }),
        ];
        modules.extend(
            layer.map(|(name, outputs, kind)| {
                Module::same(format!("encoder.block.{index}.layer.{name}"), outputs, kind)
            }),
        );
    }
    modules
}

/// Tensors of T5 files that FLUX does not use: some have the shared embedding a second time, ComfyUI's a scale and the
/// tokenizer, and some all of T5.
pub(in crate::engine::checkpoint) fn is_ignored_of_t5(tensor: &str) -> bool {
    matches!(tensor, "encoder.embed_tokens.weight" | "logit_scale" | "spiece_model" | "lm_head.weight")
        || tensor.starts_with("decoder.")
}
