"""`Flux.forward` of black-forest-labs/flux in torch, with the weights of one layer at a time, from a GGUF file."""

import time
from pathlib import Path

import numpy
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch.nn import functional

from real_size_files import CONFIG, HEAD, HIDDEN

EPSILON = 1e-6
SINUSOID = 256
THETA = 10_000.0


class Flux:
    """In f32. Tensors are `[steps, tokens, width]`, of several steps of one image."""

    def __init__(self, path: Path) -> None:
        self.tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}

    def weight(self, name: str):
        tensor = self.tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(numpy.require(values, numpy.float32, ["C", "W", "E"]))

    def linear(self, name: str, x):
        return functional.linear(x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))

    def embedder(self, name: str, x):
        return self.linear(f"{name}.out_layer", functional.silu(self.linear(f"{name}.in_layer", x)))

    def sinusoid(self, values):
        """Cosines, then sines, of frequencies from 1 down to 1 / THETA."""
        half = SINUSOID // 2
        frequencies = torch.exp(-torch.log(torch.tensor(THETA)) * torch.arange(half, dtype=torch.float32) / half)
        angles = values[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], -1)

    def rotary(self, words: int, rows: int, columns: int):
        """Cosines and sines `[tokens, head / 2]`; text stands at position zero."""
        positions = numpy.zeros((words + rows * columns, 3))
        positions[words:, 1] = numpy.repeat(numpy.arange(rows), columns)
        positions[words:, 2] = numpy.tile(numpy.arange(columns), rows)
        angles = [
            positions[:, axis : axis + 1] / THETA ** (numpy.arange(0, width, 2) / width)
            for axis, width in enumerate(CONFIG["axes_dims_rope"])
        ]
        angles = torch.from_numpy(numpy.concatenate(angles, -1))
        return angles.cos().float(), angles.sin().float()

    def modulation(self, name: str, parts: int, vector) -> list:
        return [part[:, None] for part in self.linear(name, vector).chunk(parts, -1)]

    def modulated(self, x, shift, scaling):
        return (1 + scaling) * functional.layer_norm(x, (HIDDEN,), eps=EPSILON) + shift

    def heads(self, qkv, norm: str) -> list:
        """Queries, keys and values `[steps, heads, tokens, head]`; the first two normalized."""
        steps, tokens, _ = qkv.shape
        query, key, value = qkv.reshape(steps, tokens, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
        return [self.normalized(query, f"{norm}.query_norm"), self.normalized(key, f"{norm}.key_norm"), value]

    def normalized(self, x, name: str):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * self.weight(f"{name}.scale")

    def attention(self, heads: list, rotary):
        query, key, value = heads
        query, key = self.rotated(query, rotary), self.rotated(key, rotary)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).flatten(2)

    def rotated(self, x, rotary):
        cos, sin = rotary
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2)

    def double(self, block: str, words, image, vector, rotary):
        """Text and image streams with weights of their own, and joint attention."""
        streams, parts, joint = {"txt": words, "img": image}, {}, []
        for stream, x in streams.items():
            parts[stream] = self.modulation(f"{block}.{stream}_mod.lin", 6, vector)
            shift, scaling = parts[stream][:2]
            qkv = self.linear(f"{block}.{stream}_attn.qkv", self.modulated(x, shift, scaling))
            joint.append(self.heads(qkv, f"{block}.{stream}_attn.norm"))
        attended = self.attention([torch.cat(pair, 2) for pair in zip(*joint)], rotary)
        attended = dict(zip(streams, attended.split([words.shape[1], image.shape[1]], 1)))
        for stream, x in streams.items():
            _, _, gate, shift, scaling, last_gate = parts[stream]
            x = x + gate * self.linear(f"{block}.{stream}_attn.proj", attended[stream])
            inner = self.linear(f"{block}.{stream}_mlp.0", self.modulated(x, shift, scaling))
            inner = functional.gelu(inner, approximate="tanh")
            streams[stream] = x + last_gate * self.linear(f"{block}.{stream}_mlp.2", inner)
        return streams["txt"], streams["img"]

    def single(self, block: str, joint, vector, rotary):
        """Attention and feed-forward side by side."""
        shift, scaling, gate = self.modulation(f"{block}.modulation.lin", 3, vector)
        wide = self.linear(f"{block}.linear1", self.modulated(joint, shift, scaling))
        qkv, inner = wide.split([3 * HIDDEN, 4 * HIDDEN], -1)
        attended = self.attention(self.heads(qkv, f"{block}.norm"), rotary)
        inner = functional.gelu(inner, approximate="tanh")
        return joint + gate * self.linear(f"{block}.linear2", torch.cat([attended, inner], -1))

    def velocities(self, latents, words, pooled, sigmas, guidance: float, grid: tuple[int, int]):
        """From `latents [steps, tokens, 64]`, `words [text tokens, 4096]`, `pooled [1, 768]` and `sigmas [steps]`."""
        started = time.monotonic()
        # As the scheduler, the pipeline and the model do, each in f32.
        times = self.sinusoid(sigmas * 1000 / 1000 * 1000)
        guidances = self.sinusoid(torch.tensor([guidance]) * 1000)
        vector = self.embedder("time_in", times) + self.embedder("guidance_in", guidances)
        vector = functional.silu(vector + self.embedder("vector_in", pooled))
        image = self.linear("img_in", latents)
        words = self.linear("txt_in", words).expand(len(latents), -1, -1)
        rotary = self.rotary(words.shape[1], *grid)
        for index in range(CONFIG["num_layers"]):
            words, image = self.double(f"double_blocks.{index}", words, image, vector, rotary)
            print(f"double block {index}: {time.monotonic() - started:.0f} s", flush=True)
        joint = torch.cat([words, image], 1)
        for index in range(CONFIG["num_single_layers"]):
            joint = self.single(f"single_blocks.{index}", joint, vector, rotary)
            print(f"single block {index}: {time.monotonic() - started:.0f} s", flush=True)
        shift, scaling = self.modulation("final_layer.adaLN_modulation.1", 2, vector)
        return self.linear("final_layer.linear", self.modulated(joint[:, words.shape[1] :], shift, scaling))
