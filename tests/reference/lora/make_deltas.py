#!/usr/bin/env python3
"""Writes `deltas.json`: what each adapter of `adapters/` adds to the weights of `../FLUX.1-dev`, by the formulas of the tools that
apply such files (diffusers and PEFT, kohya's scripts, LyCORIS, the code of FLUX.1's authors), in float64. Needs numpy alone.

A change is recorded as its Frobenius norm and three products u.T @ change @ v with fixed vectors: enough to tell a wrong row, sign
or factor. The names are those of the model's authors; `NAME.bias` is what is added to a bias, and of a norm the new value.

    python3 tests/reference/lora/make_deltas.py
"""

import json
import re
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DOUBLE_BLOCKS, SINGLE_BLOCKS, CLIP_LAYERS, T5_BLOCKS = 2, 3, 2, 2

# A module of a block in the authors' names, and diffusers' modules for its rows.
DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}
OTHERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
# XLabs' names for what its adapters change in a block; of `linear1` not the rows of the feed-forward part.
XLABS = {
    "double": {
        "qkv_lora1": "img_attn.qkv",
        "qkv_lora2": "txt_attn.qkv",
        "proj_lora1": "img_attn.proj",
        "proj_lora2": "txt_attn.proj",
    },
    "single": {"qkv_lora": "linear1", "proj_lora": "linear2"},
}
CLIP = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
T5 = [f"0.SelfAttention.{letter}" for letter in "qkvo"] + [f"1.DenseReluDense.{part}" for part in ("wi_0", "wi_1", "wo")]


def f8_e4m3(codes):
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = (codes >> 3) & 15, (codes & 7).astype(np.float64)
    normal = (1 + mantissa / 8) * 2.0 ** (exponent.astype(np.float64) - 7)
    return sign * np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)


def read(path):
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        data = raw[8 + length + begin : 8 + length + end]
        numbers = {
            "F32": lambda: np.frombuffer(data, "<f4"),
            "F16": lambda: np.frombuffer(data, "<f2"),
            "BF16": lambda: (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4"),
            "F8_E4M3": lambda: f8_e4m3(np.frombuffer(data, "u1")),
        }[info["dtype"]]()
        tensors[name] = numbers.astype(np.float64).reshape(info["shape"])
    return tensors, metadata


def modules(base):
    """Every spelling of a module: (the authors' name, first row, rows, whether halves are swapped)."""
    found = {}

    def add(spelling, place):
        found[spelling] = place
        found[spelling.replace(".", "_")] = place

    hidden = base["img_in.weight"].shape[0]
    blocks = [("double_blocks", "transformer_blocks", DOUBLE, DOUBLE_BLOCKS)]
    blocks.append(("single_blocks", "single_transformer_blocks", SINGLE, SINGLE_BLOCKS))
    for ours, theirs, table, count in blocks:
        for block in range(count):
            for module, parts in table.items():
                name = f"{ours}.{block}.{module}"
                rows = base[f"{name}.weight"].shape[0]
                add(name, (name, 0, rows, False))
                for index, part in enumerate(parts):
                    size = rows if len(parts) == 1 else (4 * hidden if part == "proj_mlp" else hidden)
                    add(f"{theirs}.{block}.{part}", (name, index * hidden, size, False))
            for spelling, module in XLABS[ours.split("_")[0]].items():
                name = f"{ours}.{block}.{module}"
                rows = 3 * hidden if "qkv" in spelling else base[f"{name}.weight"].shape[0]
                add(f"{ours}.{block}.processor.{spelling}", (name, 0, rows, False))
    for name, part in OTHERS.items():
        rows = base[f"{name}.weight"].shape[0]
        add(name, (name, 0, rows, False))
        # diffusers has (scale, shift) where the authors have (shift, scale).
        add(part, (name, 0, rows, name.startswith("final_layer.ada")))
    encoders = [f"text_model.encoder.layers.{layer}.{part}" for layer in range(CLIP_LAYERS) for part in CLIP]
    encoders += [f"encoder.block.{block}.layer.{part}" for block in range(T5_BLOCKS) for part in T5]
    for name in encoders:
        add(name, (name, 0, None, False))
    return found


PREFIXES = [r"transformer\.", r"text_encoder\.", r"diffusion_model\.", r"base_model\.model\."]
PREFIXES += ["lora_unet_", "lora_transformer_", "lycoris_", "lora_te[13]_"]
PREFIX = re.compile(f"^({'|'.join(PREFIXES)})")
SUFFIXES = [r"lora_[AB]\.weight", r"lora_B\.bias", r"lora[_.](down|up)\.weight", r"(down|up)\.weight", "alpha", "scale"]
SUFFIXES += ["dora_scale", "lora_magnitude_vector", "hada_w[12]_[ab]", "lokr_w[12](_[ab])?"]
SUFFIX = re.compile(rf"\.({'|'.join(SUFFIXES)})$")
DOWN = (".lora_A.weight", ".lora_down.weight", ".lora.down.weight", ".down.weight")
UP = (".lora_B.weight", ".lora_up.weight", ".lora.up.weight", ".up.weight")


def peft_factor(metadata, name, rank):
    """As PEFT: the first pattern that matches the end of the name, then the alpha of all."""
    if "lora_adapter_metadata" not in metadata:
        return 1.0
    settings = json.loads(metadata["lora_adapter_metadata"])
    settings = {key.removeprefix("transformer."): value for key, value in settings.items()}
    alpha = settings["lora_alpha"]
    for pattern, own in settings.get("alpha_pattern", {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = own
            break
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def update(parts, factor_without_alpha):
    """The matrix that is added."""
    alpha = float(parts[".alpha"].reshape(())) if ".alpha" in parts else None
    if ".hada_w1_a" in parts:
        w1, w2 = (parts[f".hada_w{i}_a"] @ parts[f".hada_w{i}_b"] for i in (1, 2))
        rank = parts[".hada_w1_b"].shape[0]
        return w1 * w2 * (1.0 if alpha is None else alpha / rank)
    if any(name.startswith(".lokr") for name in parts):
        factors, rank = [], None
        for i in (1, 2):
            if f".lokr_w{i}" in parts:
                factors.append(parts[f".lokr_w{i}"])
            else:
                factors.append(parts[f".lokr_w{i}_a"] @ parts[f".lokr_w{i}_b"])
                rank = parts[f".lokr_w{i}_b"].shape[0]
        return np.kron(*factors) * (1.0 if rank is None or alpha is None else alpha / rank)
    down, up = (next(parts[name] for name in names if name in parts) for names in (DOWN, UP))
    rank = down.shape[0]
    return up @ down * (factor_without_alpha(rank) if alpha is None else alpha / rank)


def dora(weight, added, magnitude):
    changed = weight + added
    if magnitude.shape == (1, weight.shape[1]):
        norm = np.linalg.norm(changed, axis=0, keepdims=True)
        return changed * magnitude / norm - weight
    norm = np.linalg.norm(changed, axis=1, keepdims=True)
    return changed * magnitude.reshape(-1, 1) / norm - weight


def wave(count, number):
    return (np.arange(count, dtype=np.int64) * 7919 + number * 104729 + 17) % 65521 / 65521 - 0.5


def recorded(change):
    change = change if change.ndim == 2 else change.reshape(-1, 1)
    products = [wave(change.shape[0], k) @ change @ wave(change.shape[1], k + 10) for k in range(3)]
    return [float(f"{number:.9g}") for number in [np.linalg.norm(change), *products]]


def deltas(path, base, spellings):
    tensors, metadata = read(path)
    groups, changes = {}, {}
    for key, numbers in tensors.items():
        suffix = SUFFIX.search(key).group()
        groups.setdefault(key.removesuffix(suffix), {})[suffix] = numbers
    for path_in_file, parts in groups.items():
        name = PREFIX.sub("", path_in_file)
        if ".scale" in parts:
            changes[f"{name}.scale"] = parts[".scale"]
            continue
        module, first, rows, is_swapped = spellings[name]
        added = update(parts, lambda rank: peft_factor(metadata, name, rank))
        rows = rows or added.shape[0]
        magnitude = parts.get(".dora_scale", parts.get(".lora_magnitude_vector"))
        if magnitude is not None:
            added = dora(base[f"{module}.weight"][first : first + rows], added, magnitude)
        if is_swapped:
            added = np.concatenate([added[rows // 2 :], added[: rows // 2]])
        outputs = base[f"{module}.weight"].shape[0] if f"{module}.weight" in base else rows
        total = changes.setdefault(module, np.zeros((outputs, added.shape[1])))
        total[first : first + rows] += added
        if ".lora_B.bias" in parts:
            changes[f"{module}.bias"] = parts[".lora_B.bias"]
    return {name: recorded(change) for name, change in sorted(changes.items())}


def main():
    base, _ = read(HERE / "../FLUX.1-dev/flux1-dev.safetensors")
    spellings = modules(base)
    paths = sorted((HERE / "adapters").glob("*.safetensors"))
    # Of the broken files, the only one that is none.
    paths = [path for path in paths if not path.name.startswith("j") or path.stem == "j6_known_part"]
    files = []
    for path in paths:
        changes = deltas(path, base, spellings).items()
        rows = [f"    {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in changes]
        files.append(f"  {json.dumps(path.stem)}: {{\n" + ",\n".join(rows) + "\n  }")
    (HERE / "deltas.json").write_text("{\n" + ",\n".join(files) + "\n}\n")


if __name__ == "__main__":
    main()
