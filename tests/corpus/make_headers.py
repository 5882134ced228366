#!/usr/bin/env python3
"""Writes the seeds of the header tests: a small sound file of each kind that the readers know, with zeros for data.

    python3 tests/corpus/make_headers.py

`src/engine/checkpoint/formats/tests/` reads them, unchanged and mutated. A file that once broke a reader is added here.
"""

import json
import struct
from math import prod
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "headers"
ALIGNMENT = 32

# GGML's number, numbers in a block and bytes of a block.
GGML = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ4_XS": (23, 256, 136),
    "BF16": (30, 1, 2),
}
# GGUF's number and the `struct` code of each type of scalar.
SCALARS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
# Bits of a number in safetensors.
BITS = {
    "BOOL": 8,
    "F4": 4,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: str, value) -> bytes:
    """A key with a scalar, a text or, for `[TYPE]`, an array."""
    if kind == "text":
        return text(key) + struct.pack("<I", 8) + text(value)
    if kind == "[text]":
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    if kind.startswith("["):
        number, code = SCALARS[kind[1:-1]]
        return text(key) + struct.pack("<IIQ", 9, number, len(value)) + struct.pack(f"<{len(value)}{code}", *value)
    number, code = SCALARS[kind]
    return text(key) + struct.pack(f"<I{code}", number, value)


def gguf(entries: list, tensors: list, version: int = 3, alignment: int = ALIGNMENT) -> bytes:
    """`tensors`: name, shape with the slowest dimension first, type."""
    rows, offset = b"", 0
    for name, shape, kind in tensors:
        number, numbers, size = GGML[kind]
        offset += -offset % alignment
        rows += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        rows += struct.pack("<IQ", number, offset)
        offset += prod(shape) // numbers * size
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    header += b"".join(entry(*given) for given in entries) + rows
    return header + bytes(-len(header) % alignment) + bytes(offset)


def safetensors(tensors: dict, metadata: dict | None = None, padding: int = 0) -> bytes:
    """`tensors`: dtype and shape by name."""
    header, offset = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode() + b" " * padding
    return struct.pack("<Q", len(encoded)) + encoded + bytes(offset)


FLUX = [("general.architecture", "text", "flux"), ("general.quantization_version", "u32", 2)]
TOKENS = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581fox"]
TOKENIZER = [
    ("tokenizer.ggml.model", "text", "t5"),
    ("tokenizer.ggml.tokens", "[text]", TOKENS),
    ("tokenizer.ggml.scores", "[f32]", [0.0, 0.0, 0.0, -2.0, -9.5]),
    ("tokenizer.ggml.token_type", "[i32]", [3, 3, 2, 1, 1]),
    ("tokenizer.ggml.precompiled_charsmap", "[u8]", [0, 16, 0, 0, 255]),
    ("tokenizer.ggml.add_space_prefix", "bool", True),
    ("tokenizer.ggml.eos_token_id", "u32", 1),
]
NF4_STATE = "double_blocks.0.img_attn.proj.weight.quant_state.bitsandbytes__nf4"


def seeds() -> dict[str, bytes]:
    every_type = [(f"{kind.lower()}.weight", [1, max(numbers, 2)], kind) for kind, (_, numbers, _) in GGML.items()]
    every_scalar = [(f"a.{kind}", kind, 1) for kind in SCALARS]
    flux = [("img_in.weight", [2, 4], "F32"), ("img_in.bias", [2], "F32"), ("txt_in.weight", [1, 32], "Q8_0")]
    return {
        "every-type.gguf": gguf(FLUX, every_type),
        "every-scalar.gguf": gguf(every_scalar + [("a.text", "text", "\u00e9")], [("a", [1], "F32")]),
        "version-2.gguf": gguf(FLUX, flux, version=2),
        "alignment-1.gguf": gguf([("general.alignment", "u32", 1), *FLUX], flux, alignment=1),
        "alignment-64.gguf": gguf([("general.alignment", "u32", 64), *FLUX], flux, alignment=64),
        "without-keys.gguf": gguf([], [("model.diffusion_model.img_in.weight", [2, 4], "F16")]),
        "reshaped.gguf": gguf(
            [*FLUX, ("comfy.gguf.orig_shape.img_in.weight", "[i32]", [8, 64])], [("img_in.weight", [2, 256], "Q4_K")]
        ),
        "t5.gguf": gguf(
            [("general.architecture", "text", "t5encoder"), *TOKENIZER],
            [("token_embd.weight", [5, 32], "Q8_0"), ("enc.blk.0.attn_rel_b.weight", [4, 2], "F32")],
        ),
        "scalar-and-deep.gguf": gguf([], [("logit_scale", [], "F32"), ("conv.weight", [2, 1, 1, 2], "BF16")]),
        "empty.gguf": gguf([], []),
        "every-dtype.safetensors": safetensors({dtype.lower(): (dtype, [2, 2]) for dtype in BITS}),
        "bf16.safetensors": safetensors(
            {"img_in.weight": ("BF16", [2, 4]), "img_in.bias": ("BF16", [2])}, {"format": "pt"}
        ),
        "scaled-fp8.safetensors": safetensors(
            {
                "model.diffusion_model.img_in.weight": ("F8_E4M3", [2, 4]),
                "model.diffusion_model.img_in.scale_weight": ("F32", []),
                "scaled_fp8": ("F8_E4M3", [0]),
            }
        ),
        "comfy-quant.safetensors": safetensors(
            {"a.weight": ("F8_E4M3", [2, 4]), "a.weight_scale": ("F32", []), "a.comfy_quant": ("U8", [27])},
            {"_quantization_metadata": json.dumps({"layers": {"a": {"format": "float8_e4m3fn"}}})},
        ),
        "nf4.safetensors": safetensors(
            {
                "double_blocks.0.img_attn.proj.weight": ("U8", [32, 1]),
                "double_blocks.0.img_attn.proj.weight.absmax": ("F32", [1]),
                "double_blocks.0.img_attn.proj.weight.quant_map": ("F32", [16]),
                NF4_STATE: ("U8", [40]),
            }
        ),
        "texts.safetensors": safetensors(
            {"a": ("F32", [1])}, {"escaped": '"\\\n\u2581\U0001f98a', "tags": '{"a":{"b":1}}', "empty": "", "": "-"}
        ),
        "padded.safetensors": safetensors({"a": ("F16", [1, 1, 1, 1, 2])}, padding=21),
        "empty.safetensors": safetensors({}),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, data in seeds().items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
