//! Which tensors a configuration calls for: their names in the model, their shapes, and the names under which either
//! published layout keeps them.
//!
//! The model's own names are those of the single files (`flux1-dev.safetensors`, `ae.safetensors`). The diffusers
//! folders cut some of these tensors into parts, and keep the final modulation's halves in the other order.
//!
//! Tensors stand in the order in which the model asks for them when it is loaded: by it is read ahead.

use super::config::{ClipConfig, T5Config, TransformerConfig, VaeConfig};

/// The two published forms of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Folders with a configuration file each, as diffusers writes them.
    Diffusers,
    /// One file per component, as the model's authors publish it.
    SingleFile,
}

/// A tensor as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// A tensor as the model asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    /// The model's name for it.
    pub(super) name: String,
    /// The model's shape for it.
    pub(super) shape: Vec<usize>,
    /// What it is made of, to be concatenated along the first dimension.
    pub(super) parts: Vec<Part>,
    /// Whether the halves of its only part stand in the other order.
    pub(super) swap_halves: bool,
}

/// For components whose every tensor has a use.
pub(super) fn none_ignored(_: &str) -> bool {
    false
}

/// Older CLIP files carry the position numbers as a buffer, and some carry the projection that FLUX does not use.
pub(super) fn clip_ignored(name: &str) -> bool {
    matches!(name, "text_model.embeddings.position_ids" | "text_projection.weight")
}

/// T5 files may carry the shared embedding a second time.
pub(super) fn t5_ignored(name: &str) -> bool {
    name == "encoder.embed_tokens.weight"
}

struct Collector {
    layout: Layout,
    tensors: Vec<Expected>,
}

impl Collector {
    fn new(layout: Layout) -> Self {
        Self { layout, tensors: Vec::new() }
    }

    fn push(&mut self, name: String, shape: Vec<usize>, diffusers: Vec<Part>) {
        let parts = match self.layout {
            Layout::SingleFile => vec![Part { name: name.clone(), shape: shape.clone() }],
            Layout::Diffusers => diffusers,
        };
        self.tensors.push(Expected { name, shape, parts, swap_halves: false });
    }

    /// Weight and bias of a linear layer, which diffusers keeps as the given parts (name, outputs).
    fn linear(&mut self, name: &str, diffusers: &[(&str, usize)], inputs: usize) {
        let outputs: usize = diffusers.iter().map(|(_, outputs)| outputs).sum();
        let parts = |kind: &str, shape: &dyn Fn(usize) -> Vec<usize>| {
            let part =
                |(name, outputs): &(&str, usize)| Part { name: format!("{name}.{kind}"), shape: shape(*outputs) };
            diffusers.iter().map(part).collect::<Vec<_>>()
        };
        let weights = parts("weight", &|outputs| vec![outputs, inputs]);
        let biases = parts("bias", &|outputs| vec![outputs]);
        self.push(format!("{name}.weight"), vec![outputs, inputs], weights);
        self.push(format!("{name}.bias"), vec![outputs], biases);
    }

    /// As `linear`, with the halves in the other order in the diffusers layout.
    fn linear_swapped(&mut self, name: &str, diffusers: (&str, usize), inputs: usize) {
        self.linear(name, &[diffusers], inputs);
        if self.layout == Layout::Diffusers {
            for tensor in self.tensors.iter_mut().rev().take(2) {
                tensor.swap_halves = true;
            }
        }
    }

    /// One vector.
    fn vector(&mut self, name: &str, diffusers: &str, length: usize) {
        let part = Part { name: diffusers.to_owned(), shape: vec![length] };
        self.push(name.to_owned(), vec![length], vec![part]);
    }

    /// Weight and bias of a convolution.
    fn convolution(&mut self, name: &str, diffusers: &str, [outputs, inputs, side]: [usize; 3]) {
        let shape = vec![outputs, inputs, side, side];
        let part = Part { name: format!("{diffusers}.weight"), shape: shape.clone() };
        self.push(format!("{name}.weight"), shape, vec![part]);
        self.vector(&format!("{name}.bias"), &format!("{diffusers}.bias"), outputs);
    }

    /// Weight and bias of a 1×1 convolution, which diffusers keeps as a linear layer.
    fn pointwise(&mut self, name: &str, diffusers: &str, channels: usize) {
        let part = Part { name: format!("{diffusers}.weight"), shape: vec![channels, channels] };
        self.push(format!("{name}.weight"), vec![channels, channels, 1, 1], vec![part]);
        self.vector(&format!("{name}.bias"), &format!("{diffusers}.bias"), channels);
    }

    /// Weight and bias of a normalisation.
    fn norm(&mut self, name: &str, diffusers: &str, channels: usize) {
        self.vector(&format!("{name}.weight"), &format!("{diffusers}.weight"), channels);
        self.vector(&format!("{name}.bias"), &format!("{diffusers}.bias"), channels);
    }
}

/// The transformer's tensors.
pub(super) fn transformer(config: &TransformerConfig, layout: Layout) -> Vec<Expected> {
    let hidden = config.hidden_size();
    let mut collector = Collector::new(layout);
    let embedder = |collector: &mut Collector, name: &str, diffusers: &str, inputs: usize| {
        let (first, second) = (format!("{diffusers}.linear_1"), format!("{diffusers}.linear_2"));
        collector.linear(&format!("{name}.in_layer"), &[(&first, hidden)], inputs);
        collector.linear(&format!("{name}.out_layer"), &[(&second, hidden)], hidden);
    };
    if config.guidance_embeds {
        embedder(&mut collector, "guidance_in", "time_text_embed.guidance_embedder", 256);
    }
    collector.linear("img_in", &[("x_embedder", hidden)], config.in_channels);
    collector.linear("txt_in", &[("context_embedder", hidden)], config.joint_attention_dim);
    embedder(&mut collector, "time_in", "time_text_embed.timestep_embedder", 256);
    embedder(&mut collector, "vector_in", "time_text_embed.text_embedder", config.pooled_projection_dim);
    for index in 0..config.num_layers {
        double_block(&mut collector, config, index);
    }
    for index in 0..config.num_single_layers {
        single_block(&mut collector, config, index);
    }
    collector.linear_swapped("final_layer.adaLN_modulation.1", ("norm_out.linear", 2 * hidden), hidden);
    collector.linear("final_layer.linear", &[("proj_out", config.in_channels)], hidden);
    collector.tensors
}

fn double_block(collector: &mut Collector, config: &TransformerConfig, index: usize) {
    let (hidden, mlp, head) = (config.hidden_size(), config.mlp_size(), config.attention_head_dim);
    let (ours, theirs) = (format!("double_blocks.{index}"), format!("transformer_blocks.{index}"));
    let streams = [
        ("img", "norm1", ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"], "to_out.0", "ff"),
        (
            "txt",
            "norm1_context",
            ["add_q_proj", "add_k_proj", "add_v_proj"],
            ["norm_added_q", "norm_added_k"],
            "to_add_out",
            "ff_context",
        ),
    ];
    for (stream, modulation, projections, norms, out, feed_forward) in streams {
        let name = |rest: &str| format!("{ours}.{stream}_{rest}");
        collector.linear(&name("mod.lin"), &[(&format!("{theirs}.{modulation}.linear"), 6 * hidden)], hidden);
        let parts = projections.map(|part| format!("{theirs}.attn.{part}"));
        let parts = parts.each_ref().map(|part| (part.as_str(), hidden));
        collector.linear(&name("attn.qkv"), &parts, hidden);
        let [query, key] = norms.map(|norm| format!("{theirs}.attn.{norm}.weight"));
        collector.vector(&name("attn.norm.query_norm.scale"), &query, head);
        collector.vector(&name("attn.norm.key_norm.scale"), &key, head);
        collector.linear(&name("attn.proj"), &[(&format!("{theirs}.attn.{out}"), hidden)], hidden);
        collector.linear(&name("mlp.0"), &[(&format!("{theirs}.{feed_forward}.net.0.proj"), mlp)], hidden);
        collector.linear(&name("mlp.2"), &[(&format!("{theirs}.{feed_forward}.net.2"), hidden)], mlp);
    }
}

fn single_block(collector: &mut Collector, config: &TransformerConfig, index: usize) {
    let (hidden, mlp, head) = (config.hidden_size(), config.mlp_size(), config.attention_head_dim);
    let (ours, theirs) = (format!("single_blocks.{index}"), format!("single_transformer_blocks.{index}"));
    let parts = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].map(|part| format!("{theirs}.{part}"));
    let widths = [hidden, hidden, hidden, mlp];
    let parts: Vec<(&str, usize)> = parts.iter().map(String::as_str).zip(widths).collect();
    collector.linear(&format!("{ours}.modulation.lin"), &[(&format!("{theirs}.norm.linear"), 3 * hidden)], hidden);
    collector.linear(&format!("{ours}.linear1"), &parts, hidden);
    collector.linear(&format!("{ours}.linear2"), &[(&format!("{theirs}.proj_out"), hidden)], hidden + mlp);
    collector.vector(&format!("{ours}.norm.query_norm.scale"), &format!("{theirs}.attn.norm_q.weight"), head);
    collector.vector(&format!("{ours}.norm.key_norm.scale"), &format!("{theirs}.attn.norm_k.weight"), head);
}

/// The autoencoder's tensors, both ways.
pub(super) fn vae(config: &VaeConfig, layout: Layout) -> Vec<Expected> {
    let widths = &config.block_out_channels;
    let (narrowest, widest) = (widths[0], widths[widths.len() - 1]);
    let mut collector = Collector::new(layout);
    let mut inputs = narrowest;
    for (level, &width) in widths.iter().enumerate() {
        for block in 0..config.layers_per_block {
            let name = format!("encoder.down.{level}.block.{block}");
            resnet(&mut collector, &name, &format!("encoder.down_blocks.{level}.resnets.{block}"), inputs, width);
            inputs = width;
        }
        if level + 1 < widths.len() {
            let theirs = format!("encoder.down_blocks.{level}.downsamplers.0.conv");
            collector.convolution(&format!("encoder.down.{level}.downsample.conv"), &theirs, [width, width, 3]);
        }
    }
    middle(&mut collector, "encoder", widest);
    collector.convolution("encoder.conv_in", "encoder.conv_in", [narrowest, config.in_channels, 3]);
    collector.norm("encoder.norm_out", "encoder.conv_norm_out", widest);
    collector.convolution("encoder.conv_out", "encoder.conv_out", [2 * config.latent_channels, widest, 3]);
    middle(&mut collector, "decoder", widest);
    let mut inputs = widest;
    for (position, (level, &width)) in widths.iter().enumerate().rev().enumerate() {
        for block in 0..=config.layers_per_block {
            let name = format!("decoder.up.{level}.block.{block}");
            resnet(&mut collector, &name, &format!("decoder.up_blocks.{position}.resnets.{block}"), inputs, width);
            inputs = width;
        }
        if level > 0 {
            let theirs = format!("decoder.up_blocks.{position}.upsamplers.0.conv");
            collector.convolution(&format!("decoder.up.{level}.upsample.conv"), &theirs, [width, width, 3]);
        }
    }
    collector.convolution("decoder.conv_in", "decoder.conv_in", [widest, config.latent_channels, 3]);
    collector.norm("decoder.norm_out", "decoder.conv_norm_out", narrowest);
    collector.convolution("decoder.conv_out", "decoder.conv_out", [config.out_channels, narrowest, 3]);
    collector.tensors
}

fn resnet(collector: &mut Collector, name: &str, diffusers: &str, inputs: usize, outputs: usize) {
    collector.norm(&format!("{name}.norm1"), &format!("{diffusers}.norm1"), inputs);
    collector.convolution(&format!("{name}.conv1"), &format!("{diffusers}.conv1"), [outputs, inputs, 3]);
    collector.norm(&format!("{name}.norm2"), &format!("{diffusers}.norm2"), outputs);
    collector.convolution(&format!("{name}.conv2"), &format!("{diffusers}.conv2"), [outputs, outputs, 3]);
    if inputs != outputs {
        let shortcut = format!("{diffusers}.conv_shortcut");
        collector.convolution(&format!("{name}.nin_shortcut"), &shortcut, [outputs, inputs, 1]);
    }
}

fn middle(collector: &mut Collector, side: &str, channels: usize) {
    let (ours, theirs) = (format!("{side}.mid"), format!("{side}.mid_block"));
    resnet(collector, &format!("{ours}.block_1"), &format!("{theirs}.resnets.0"), channels, channels);
    let attention = format!("{theirs}.attentions.0");
    let pointwise = |collector: &mut Collector, name: &str, diffusers: &str| {
        collector.pointwise(&format!("{ours}.attn_1.{name}"), &format!("{attention}.{diffusers}"), channels);
    };
    for (name, diffusers) in [("q", "to_q"), ("k", "to_k"), ("v", "to_v")] {
        pointwise(collector, name, diffusers);
    }
    collector.norm(&format!("{ours}.attn_1.norm"), &format!("{attention}.group_norm"), channels);
    pointwise(collector, "proj_out", "to_out.0");
    resnet(collector, &format!("{ours}.block_2"), &format!("{theirs}.resnets.1"), channels, channels);
}

/// CLIP's text encoder; both layouts keep it the same way.
pub(super) fn clip(config: &ClipConfig) -> Vec<Expected> {
    let width = config.hidden_size;
    let mut collector = Collector::new(Layout::SingleFile);
    let embeddings = [("token", config.vocab_size), ("position", config.max_position_embeddings)];
    for (name, rows) in embeddings {
        collector.push(format!("text_model.embeddings.{name}_embedding.weight"), vec![rows, width], Vec::new());
    }
    for index in 0..config.num_hidden_layers {
        let name = |rest: &str| format!("text_model.encoder.layers.{index}.{rest}");
        for projection in ["k_proj", "v_proj", "q_proj", "out_proj"] {
            collector.linear(&name(&format!("self_attn.{projection}")), &[("", width)], width);
        }
        collector.norm(&name("layer_norm1"), "", width);
        collector.linear(&name("mlp.fc1"), &[("", config.intermediate_size)], width);
        collector.linear(&name("mlp.fc2"), &[("", width)], config.intermediate_size);
        collector.norm(&name("layer_norm2"), "", width);
    }
    collector.norm("text_model.final_layer_norm", "", width);
    collector.tensors
}

/// T5's encoder; both layouts keep it the same way.
pub(super) fn t5(config: &T5Config) -> Vec<Expected> {
    let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
    let mut collector = Collector::new(Layout::SingleFile);
    let matrix = |collector: &mut Collector, name: String, rows: usize, columns: usize| {
        collector.push(name, vec![rows, columns], Vec::new());
    };
    let name = |index: usize, rest: &str| format!("encoder.block.{index}.layer.{rest}.weight");
    matrix(&mut collector, "shared.weight".to_owned(), config.vocab_size, width);
    let bias = name(0, "0.SelfAttention.relative_attention_bias");
    matrix(&mut collector, bias, config.relative_attention_num_buckets, config.num_heads);
    collector.vector("encoder.final_layer_norm.weight", "", width);
    for index in 0..config.num_layers {
        collector.vector(&name(index, "0.layer_norm"), "", width);
        for projection in ["q", "k", "v"] {
            matrix(&mut collector, name(index, &format!("0.SelfAttention.{projection}")), inner, width);
        }
        matrix(&mut collector, name(index, "0.SelfAttention.o"), width, inner);
        collector.vector(&name(index, "1.layer_norm"), "", width);
        matrix(&mut collector, name(index, "1.DenseReluDense.wi_0"), config.d_ff, width);
        matrix(&mut collector, name(index, "1.DenseReluDense.wi_1"), config.d_ff, width);
        matrix(&mut collector, name(index, "1.DenseReluDense.wo"), width, config.d_ff);
    }
    collector.tensors
}
