"""LoRA files of any size for a model of the family: every linear layer of its blocks, with numbers that change images a little."""

import json
import os
import random
import struct
from array import array

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")
DEMO_MODEL = os.path.join(ROOT, "models", "flux-shapes")
# The values of a file are repeated, because pseudorandom ones take longer to make than to write. No layer's width divides a prime.
VALUES = 65_521
# The product of the two factors has this standard deviation: weights have ten times that and more.
DEVIATION = 0.002
BYTES_PER_VALUE = 4


def layers(checkpoint):
    """Names, inputs and outputs of the linear layers of the blocks, as diffusers calls them."""
    with open(os.path.join(checkpoint, "transformer", "config.json")) as file:
        config = json.load(file)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    wide, found = 4 * width, []
    for number in range(config["num_layers"]):
        names = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        own = [(f"attn.{name}", width, width) for name in names]
        for stream in ("", "_context"):
            own += [(f"ff{stream}.net.0.proj", width, wide), (f"ff{stream}.net.2", wide, width)]
            own.append((f"norm1{stream}.linear", width, 6 * width))
        found += [(f"transformer_blocks.{number}.{name}", *sizes) for name, *sizes in own]
    for number in range(config["num_single_layers"]):
        own = [(f"attn.{name}", width, width) for name in ("to_q", "to_k", "to_v")]
        own += [("proj_mlp", width, wide), ("proj_out", width + wide, width), ("norm.linear", width, 3 * width)]
        found += [(f"single_transformer_blocks.{number}.{name}", *sizes) for name, *sizes in own]
    return found


def rank_of(checkpoint, size):
    """The rank with which a file has about so many bytes."""
    return max(1, size // (BYTES_PER_VALUE * sum(inputs + outputs for _, inputs, outputs in layers(checkpoint))))


def write_lora(path, checkpoint, rank, seed):
    """Writes a file in f32 with a rank for all layers, and returns its size."""
    header, end = {"__metadata__": {"made_for": f"a test, seed {seed}"}}, 0
    for name, inputs, outputs in layers(checkpoint):
        for factor, shape in (("lora_A", [rank, inputs]), ("lora_B", [outputs, rank])):
            start, end = end, end + BYTES_PER_VALUE * shape[0] * shape[1]
            tensor = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
            header[f"transformer.{name}.{factor}.weight"] = tensor
    text = json.dumps(header).encode()
    numbers = random.Random(seed)
    deviation = (DEVIATION / rank**0.5) ** 0.5
    block = array("f", (numbers.gauss(0, deviation) for _ in range(VALUES))).tobytes()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, len(block)):
            file.write(block[: end - start])
    return 8 + len(text) + end
