"""Which tensors a FLUX.1-dev checkpoint has in the diffusers layout, for the published dimensions and for tiny ones."""

from math import prod
from typing import Iterator, NamedTuple

# The presets of `make_weights.py`. Each entry is a component's configuration; `configurations` adds the published values of
# missing keys.
PRESETS: dict[str, dict[str, dict]] = {
    "dev": {
        "transformer": {
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "num_layers": 19,
            "num_single_layers": 38,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": [16, 56, 56],
        },
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "vocab_size": 49408,
        },
        "text_encoder_2": {
            "d_model": 4096,
            "d_ff": 10240,
            "d_kv": 64,
            "num_heads": 64,
            "num_layers": 24,
            "vocab_size": 32128,
        },
        "vae": {"block_out_channels": [128, 256, 512, 512]},
    },
    "tiny": {
        "transformer": {
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "num_layers": 2,
            "num_single_layers": 3,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 48,
            "axes_dims_rope": [8, 12, 12],
        },
        "text_encoder": {
            "hidden_size": 48,
            "intermediate_size": 192,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "vocab_size": 1024,
        },
        "text_encoder_2": {
            "d_model": 64,
            "d_ff": 128,
            "d_kv": 16,
            "num_heads": 4,
            "num_layers": 2,
            "vocab_size": 512,
        },
        "vae": {"block_out_channels": [32, 64, 64, 64]},
    },
}

# The widths of `dev` with few blocks: every kernel and every shape of a layer, in a sixth of the bytes.
PRESETS["shallow"] = PRESETS["dev"] | {
    "transformer": PRESETS["dev"]["transformer"] | {"num_layers": 3, "num_single_layers": 6},
    "text_encoder_2": PRESETS["dev"]["text_encoder_2"] | {"num_layers": 4},
}

# A step of the real width that a processor computes in seconds. Its text encoders are the tiny ones.
PRESETS["wide"] = PRESETS["tiny"] | {
    "transformer": PRESETS["dev"]["transformer"]
    | {"num_layers": 1, "num_single_layers": 2, "joint_attention_dim": 64, "pooled_projection_dim": 48},
}

TIME_SINUSOID = 256
# Pixels along a side of an image token, and CLIP's tokens.
PATCH_PIXELS = 16
CLIP_LENGTH = 77

# How large scales, shifts and gates are, which decides what the blocks add to their streams. With this the streams are
# half as large again after 57 blocks, and a step in bf16 is 1.5 % away from one in f32; from 0.1 to 1 that hardly
# changes.
MODULATION = 0.5


class Tensor(NamedTuple):
    """Values are uniform around `mean` with this standard deviation."""

    name: str
    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0

    def elements(self) -> int:
        return prod(self.shape)


def configurations(preset: str) -> dict[str, dict]:
    """The four components' config.json."""
    own = PRESETS[preset]
    transformer = {
        "_class_name": "FluxTransformer2DModel",
        "_diffusers_version": "0.30.0.dev0",
        "guidance_embeds": True,
        "in_channels": 64,
        "patch_size": 1,
    }
    clip = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "projection_dim": own["text_encoder"]["hidden_size"],
        "torch_dtype": "bfloat16",
    }
    t5 = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "classifier_dropout": 0.0,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "num_decoder_layers": own["text_encoder_2"]["num_layers"],
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    vae = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.30.0.dev0",
        "act_fn": "silu",
        "force_upcast": True,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": 2,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }
    published = {"transformer": transformer, "text_encoder": clip, "text_encoder_2": t5, "vae": vae}
    return {component: published[component] | own[component] for component in published}


def linear(name: str, outputs: int, inputs: int, gain: float = 1.0, bias: bool = True) -> Iterator[Tensor]:
    """Keeps the deviation of its input, but for the gain."""
    yield Tensor(f"{name}.weight", (outputs, inputs), gain * inputs**-0.5)
    if bias:
        yield Tensor(f"{name}.bias", (outputs,), 0.05 * gain)


def norm(name: str, width: int, bias: bool = True) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (width,), 0.1, mean=1.0)
    if bias:
        yield Tensor(f"{name}.bias", (width,), 0.05)


def transformer(config: dict) -> Iterator[Tensor]:
    head = config["attention_head_dim"]
    hidden = head * config["num_attention_heads"]
    yield from linear("x_embedder", hidden, config["in_channels"])
    yield from linear("context_embedder", hidden, config["joint_attention_dim"])
    embedders = {
        "timestep": TIME_SINUSOID,
        "guidance": TIME_SINUSOID,
        "text": config["pooled_projection_dim"],
    }
    for embedder, inputs in embedders.items():
        yield from linear(f"time_text_embed.{embedder}_embedder.linear_1", hidden, inputs)
        yield from linear(f"time_text_embed.{embedder}_embedder.linear_2", hidden, hidden)
    for index in range(config["num_layers"]):
        block = f"transformer_blocks.{index}"
        for modulation in ["norm1", "norm1_context"]:
            yield from linear(f"{block}.{modulation}.linear", 6 * hidden, hidden, gain=MODULATION)
        for layer in ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]:
            yield from linear(f"{block}.attn.{layer}", hidden, hidden)
        for layer in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]:
            yield from norm(f"{block}.attn.{layer}", head, bias=False)
        for layer in ["ff", "ff_context"]:
            yield from linear(f"{block}.{layer}.net.0.proj", 4 * hidden, hidden)
            yield from linear(f"{block}.{layer}.net.2", hidden, 4 * hidden)
    for index in range(config["num_single_layers"]):
        block = f"single_transformer_blocks.{index}"
        yield from linear(f"{block}.norm.linear", 3 * hidden, hidden, gain=MODULATION)
        for layer in ["to_q", "to_k", "to_v"]:
            yield from linear(f"{block}.attn.{layer}", hidden, hidden)
        for layer in ["norm_q", "norm_k"]:
            yield from norm(f"{block}.attn.{layer}", head, bias=False)
        yield from linear(f"{block}.proj_mlp", 4 * hidden, hidden)
        yield from linear(f"{block}.proj_out", hidden, 5 * hidden)
    yield from linear("norm_out.linear", 2 * hidden, hidden, gain=MODULATION)
    yield from linear("proj_out", config["in_channels"], hidden)


def text_encoder(config: dict) -> Iterator[Tensor]:
    width, wide = config["hidden_size"], config["intermediate_size"]
    rows = {"token": config["vocab_size"], "position": config["max_position_embeddings"]}
    for name, count in rows.items():
        yield Tensor(f"text_model.embeddings.{name}_embedding.weight", (count, width), 0.5)
    for index in range(config["num_hidden_layers"]):
        layer = f"text_model.encoder.layers.{index}"
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"]:
            yield from linear(f"{layer}.self_attn.{projection}", width, width)
        yield from linear(f"{layer}.mlp.fc1", wide, width)
        yield from linear(f"{layer}.mlp.fc2", width, wide)
        yield from norm(f"{layer}.layer_norm1", width)
        yield from norm(f"{layer}.layer_norm2", width)
    yield from norm("text_model.final_layer_norm", width)


def text_encoder_2(config: dict) -> Iterator[Tensor]:
    width, wide, inner = config["d_model"], config["d_ff"], config["d_kv"] * config["num_heads"]
    yield Tensor("shared.weight", (config["vocab_size"], width), 1.0)
    for index in range(config["num_layers"]):
        layer = f"encoder.block.{index}.layer"
        # T5 does not divide its scores by the root of a head's width: the queries have to be that much smaller.
        yield from linear(f"{layer}.0.SelfAttention.q", inner, width, gain=config["d_kv"] ** -0.5, bias=False)
        yield from linear(f"{layer}.0.SelfAttention.k", inner, width, bias=False)
        yield from linear(f"{layer}.0.SelfAttention.v", inner, width, bias=False)
        yield from linear(f"{layer}.0.SelfAttention.o", width, inner, bias=False)
        if index == 0:
            shape = (config["relative_attention_num_buckets"], config["num_heads"])
            yield Tensor(f"{layer}.0.SelfAttention.relative_attention_bias.weight", shape, 0.5)
        yield from linear(f"{layer}.1.DenseReluDense.wi_0", wide, width, bias=False)
        yield from linear(f"{layer}.1.DenseReluDense.wi_1", wide, width, bias=False)
        yield from linear(f"{layer}.1.DenseReluDense.wo", width, wide, bias=False)
        yield from norm(f"{layer}.0.layer_norm", width, bias=False)
        yield from norm(f"{layer}.1.layer_norm", width, bias=False)
    yield from norm("encoder.final_layer_norm", width, bias=False)


def convolution(name: str, outputs: int, inputs: int, side: int = 3) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (outputs, inputs, side, side), (inputs * side * side) ** -0.5)
    yield Tensor(f"{name}.bias", (outputs,), 0.05)


def resnet(name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
    yield from norm(f"{name}.norm1", inputs)
    yield from convolution(f"{name}.conv1", outputs, inputs)
    yield from norm(f"{name}.norm2", outputs)
    yield from convolution(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from convolution(f"{name}.conv_shortcut", outputs, inputs, side=1)


def middle(name: str, width: int) -> Iterator[Tensor]:
    yield from resnet(f"{name}.resnets.0", width, width)
    yield from norm(f"{name}.attentions.0.group_norm", width)
    for layer in ["to_q", "to_k", "to_v", "to_out.0"]:
        yield from linear(f"{name}.attentions.0.{layer}", width, width)
    yield from resnet(f"{name}.resnets.1", width, width)


def vae(config: dict) -> Iterator[Tensor]:
    widths, latents, layers = config["block_out_channels"], config["latent_channels"], config["layers_per_block"]
    yield from convolution("encoder.conv_in", widths[0], config["in_channels"])
    inputs = widths[0]
    for level, width in enumerate(widths):
        for layer in range(layers):
            yield from resnet(f"encoder.down_blocks.{level}.resnets.{layer}", width, inputs)
            inputs = width
        if level + 1 < len(widths):
            yield from convolution(f"encoder.down_blocks.{level}.downsamplers.0.conv", width, width)
    yield from middle("encoder.mid_block", inputs)
    yield from norm("encoder.conv_norm_out", inputs)
    yield from convolution("encoder.conv_out", 2 * latents, inputs)
    yield from convolution("decoder.conv_in", inputs, latents)
    yield from middle("decoder.mid_block", inputs)
    for level, width in enumerate(reversed(widths)):
        for layer in range(layers + 1):
            yield from resnet(f"decoder.up_blocks.{level}.resnets.{layer}", width, inputs)
            inputs = width
        if level + 1 < len(widths):
            yield from convolution(f"decoder.up_blocks.{level}.upsamplers.0.conv", width, width)
    yield from norm("decoder.conv_norm_out", inputs)
    yield from convolution("decoder.conv_out", config["out_channels"], inputs)


def tensors(preset: str) -> dict[str, list[Tensor]]:
    """All tensors of each component, in the order in which they are written."""
    configs = configurations(preset)
    return {
        "transformer": list(transformer(configs["transformer"])),
        "text_encoder": list(text_encoder(configs["text_encoder"])),
        "text_encoder_2": list(text_encoder_2(configs["text_encoder_2"])),
        "vae": list(vae(configs["vae"])),
    }
