"""The files of the proof at the real dimensions: random weights in the types of the files that people download."""

import shutil
import struct
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy

ROOT = Path(__file__).resolve().parents[2]
# Shapes and sizes of random weights that keep 57 blocks finite.
sys.path.insert(0, str(ROOT / "benches/gpu"))
import checkpoint  # noqa: E402
import make_weights  # noqa: E402

DEV = checkpoint.configurations("dev")
CONFIG = DEV["transformer"]
HEAD = CONFIG["attention_head_dim"]
HIDDEN = HEAD * CONFIG["num_attention_heads"]

TRANSFORMER = "flux1-dev-Q4_K_S.gguf"
T5 = {"Q8_0": "t5-v1_1-xxl-encoder-Q8_0.gguf", "Q4_K": "t5-v1_1-xxl-encoder-Q4_K_S.gguf"}
# Of city96/FLUX.1-dev-gguf.
PUBLISHED_BYTES = 6_805_988_640

# GGML's number, numbers in a block, bytes of a block.
KINDS = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}
# llama.cpp's numbers for a file's mix of types.
FILE_TYPES = {"Q8_0": 7, "Q4_K": 14}
ALIGNMENT = 32
CHUNK_BLOCKS = 1 << 16

# What city96's tools leave in full, and what of that is small enough to be F32.
UNQUANTIZED = ("img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")
SMALL = ("img_in.", "final_layer.linear.", "time_in.in_layer.", "guidance_in.in_layer.", "vector_in.in_layer.")


class Tensor(NamedTuple):
    """A tensor in one of KINDS."""

    kind: str
    values: checkpoint.Tensor

    def bytes(self) -> int:
        _, numbers, size = KINDS[self.kind]
        return self.values.elements() // numbers * size


def scale(name: str) -> checkpoint.Tensor:
    return checkpoint.Tensor(f"{name}.scale", (HEAD,), 0.1, mean=1.0)


def transformer() -> Iterator[checkpoint.Tensor]:
    """The tensors by their authors' names."""
    linear, gain = checkpoint.linear, checkpoint.MODULATION
    for index in range(CONFIG["num_layers"]):
        for stream in ["img", "txt"]:
            half = f"double_blocks.{index}.{stream}"
            yield from linear(f"{half}_mod.lin", 6 * HIDDEN, HIDDEN, gain=gain)
            yield from linear(f"{half}_attn.qkv", 3 * HIDDEN, HIDDEN)
            yield scale(f"{half}_attn.norm.query_norm")
            yield scale(f"{half}_attn.norm.key_norm")
            yield from linear(f"{half}_attn.proj", HIDDEN, HIDDEN)
            yield from linear(f"{half}_mlp.0", 4 * HIDDEN, HIDDEN)
            yield from linear(f"{half}_mlp.2", HIDDEN, 4 * HIDDEN)
    for index in range(CONFIG["num_single_layers"]):
        block = f"single_blocks.{index}"
        yield from linear(f"{block}.modulation.lin", 3 * HIDDEN, HIDDEN, gain=gain)
        yield from linear(f"{block}.linear1", 7 * HIDDEN, HIDDEN)
        yield from linear(f"{block}.linear2", HIDDEN, 5 * HIDDEN)
        yield scale(f"{block}.norm.query_norm")
        yield scale(f"{block}.norm.key_norm")
    yield from linear("img_in", HIDDEN, CONFIG["in_channels"])
    yield from linear("txt_in", HIDDEN, CONFIG["joint_attention_dim"])
    sinusoid = checkpoint.TIME_SINUSOID
    inputs = {"time_in": sinusoid, "guidance_in": sinusoid, "vector_in": CONFIG["pooled_projection_dim"]}
    for name, width in inputs.items():
        yield from linear(f"{name}.in_layer", HIDDEN, width)
        yield from linear(f"{name}.out_layer", HIDDEN, HIDDEN)
    yield from linear("final_layer.adaLN_modulation.1", 2 * HIDDEN, HIDDEN, gain=gain)
    yield from linear("final_layer.linear", CONFIG["in_channels"], HIDDEN)


def quantized_transformer() -> list[Tensor]:
    def kind(tensor: checkpoint.Tensor) -> str:
        if len(tensor.shape) == 1 or tensor.name.startswith(SMALL):
            return "F32"
        return "F16" if tensor.name.startswith(UNQUANTIZED) else "Q4_K"

    return [Tensor(kind(tensor), tensor) for tensor in transformer()]


def llama_name(name: str) -> str:
    """llama.cpp's name of a tensor of T5's."""
    parts = {
        "shared": "token_embd",
        "encoder.final_layer_norm": "enc.output_norm",
        "encoder.block.": "enc.blk.",
        ".layer.0.layer_norm": ".attn_norm",
        ".layer.0.SelfAttention.relative_attention_bias": ".attn_rel_b",
        ".layer.0.SelfAttention.": ".attn_",
        ".layer.1.layer_norm": ".ffn_norm",
        ".layer.1.DenseReluDense.wi_0": ".ffn_gate",
        ".layer.1.DenseReluDense.wi_1": ".ffn_up",
        ".layer.1.DenseReluDense.wo": ".ffn_down",
    }
    for theirs, llama in parts.items():
        name = name.replace(theirs, llama)
    return name


def quantized_t5(kind: str) -> list[Tensor]:
    tensors = []
    for tensor in checkpoint.text_encoder_2(DEV["text_encoder_2"]):
        is_full = len(tensor.shape) == 1 or "relative_attention_bias" in tensor.name
        tensors.append(Tensor("F32" if is_full else kind, tensor._replace(name=llama_name(tensor.name))))
    return tensors


def random_bytes(generator: numpy.random.Generator, blocks: int, size: int) -> numpy.ndarray:
    words = generator.integers(0, (1 << 64) - 1, -(-blocks * size // 8), dtype=numpy.uint64, endpoint=True)
    return words.view(numpy.uint8)[: blocks * size].reshape(blocks, size)


def half_bytes(values: numpy.ndarray) -> numpy.ndarray:
    return values.astype("<f2").view(numpy.uint8).reshape(-1, 2)


def factors(generator: numpy.random.Generator, blocks: int) -> numpy.ndarray:
    """Of the blocks' scales, which differ as those of real weights. Their squares are 1 on average."""
    return generator.uniform(0.5, 1.5, blocks) / (13 / 12) ** 0.5


def q4_k(generator: numpy.random.Generator, blocks: int, deviation: float) -> numpy.ndarray:
    """Blocks of d, dmin, eight scales and eight minima of 6 bits, and 256 codes of 4 bits: d·scale·code - dmin·minimum.

    With all of these random and dmin = 7.5 d the mean is 0, and the variance
    d² (E[scale²] E[code²] + 7.5² E[minimum²] - 2 · 7.5² E[scale] E[minimum])
    = d² (1333.5 · 77.5 + 56.25 · 1333.5 - 112.5 · 992.25) = 66,727.5 d².
    """
    raw = random_bytes(generator, blocks, 144)
    d = deviation / 66_727.5**0.5 * factors(generator, blocks)
    raw[:, 0:2], raw[:, 2:4] = half_bytes(d), half_bytes(7.5 * d)
    return raw


def q8_0(generator: numpy.random.Generator, blocks: int, deviation: float) -> numpy.ndarray:
    """Blocks of d and 32 codes from -128 to 127."""
    raw = random_bytes(generator, blocks, 34)
    raw[:, 0:2] = half_bytes(deviation / ((256**2 - 1) / 12) ** 0.5 * factors(generator, blocks))
    return raw


def chunks(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, which follow from its name."""
    values, (_, numbers, _) = tensor.values, KINDS[tensor.kind]
    generator = numpy.random.Generator(numpy.random.SFC64(make_weights.seed_of(values.name)))
    total = values.elements() // numbers
    for start in range(0, total, CHUNK_BLOCKS):
        blocks = min(CHUNK_BLOCKS, total - start)
        if tensor.kind == "Q4_K":
            raw = q4_k(generator, blocks, values.deviation)
        elif tensor.kind == "Q8_0":
            raw = q8_0(generator, blocks, values.deviation)
        else:
            low, high = make_weights.bounds(values)
            raw = generator.uniform(low, high, blocks).astype("<f4" if tensor.kind == "F32" else "<f2")
        yield memoryview(numpy.ascontiguousarray(raw).view(numpy.uint8).reshape(-1))


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def write_gguf(path: Path, architecture: str, file_type: int, tensors: list[Tensor]) -> None:
    numbers = {"general.quantization_version": 2, "general.file_type": file_type}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1 + len(numbers))
    header += gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text(architecture)
    for key, number in numbers.items():
        header += gguf_text(key) + struct.pack("<II", 4, number)
    offset = 0
    for tensor in tensors:
        shape = tensor.values.shape
        header += gguf_text(tensor.values.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += struct.pack("<IQ", KINDS[tensor.kind][0], offset)
        offset += tensor.bytes() + -tensor.bytes() % ALIGNMENT
    with path.open("wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for tensor in tensors:
            for chunk in chunks(tensor):
                make_weights.write_all(file, chunk)
            file.write(bytes(-tensor.bytes() % ALIGNMENT))


def bf16_plan(base: Path) -> list[tuple[Path, list[checkpoint.Tensor]]]:
    """The shards of the transformer in bf16, as diffusers writes them; writes their index."""
    return [row for row in make_weights.plan(base, "dev") if row[0].parent.name == "transformer"]


def write_bf16(folder: Path, t5: str) -> None:
    """The transformer in bf16, and what `write_all` writes beside its own."""
    base = folder / "base"
    write_others(folder, t5, 2 * sum(tensor.elements() for tensor in transformer()))
    # The index of T5 would ask for its shards: T5 is a file of its own.
    shards = bf16_plan(base)
    for index in (base / "text_encoder_2").glob("*.index.json"):
        index.unlink()
    for path, tensors in shards:
        make_weights.write_shard(path, tensors)


def bf16_shards(folder: Path) -> list[Path]:
    shards = sorted((folder / "base" / "transformer").glob("*.safetensors"))
    if not shards:
        sys.exit(f"{folder} has no transformer in bf16: run `make DIR --bf16` first")
    return shards


def write_all(folder: Path, t5: str) -> None:
    """The transformer, T5, and what `--base` has."""
    write_others(folder, t5, PUBLISHED_BYTES)
    write_gguf(folder / TRANSFORMER, "flux", FILE_TYPES["Q4_K"], quantized_transformer())
    size = (folder / TRANSFORMER).stat().st_size
    if size != PUBLISHED_BYTES:
        sys.exit(f"{TRANSFORMER} has {size} bytes, the published file {PUBLISHED_BYTES}")


def write_others(folder: Path, t5: str, transformer_bytes: int) -> None:
    """T5, and what `--base` has; exits where the disk has no room for them and the transformer."""
    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    needed = transformer_bytes + sum(tensor.bytes() for tensor in quantized_t5(t5)) + 500_000_000
    if free < needed:
        sys.exit(f"{folder} has {free / 1e9:.1f} GB free, the files take {needed / 1e9:.1f}: name another folder")
    make_weights.write_configuration(base, "dev")
    own = checkpoint.tensors("dev")
    for component, file in {"text_encoder": "model", "vae": "diffusion_pytorch_model"}.items():
        make_weights.write_shard(base / component / f"{file}.safetensors", own[component])
    for old in T5.values():
        (folder / old).unlink(missing_ok=True)
    write_gguf(folder / T5[t5], "t5encoder", FILE_TYPES[t5], quantized_t5(t5))


def t5_of(folder: Path) -> Path:
    for name in T5.values():
        if (folder / name).is_file():
            return folder / name
    sys.exit(f"{folder} has no T5: run `make` first")


def weight_files(folder: Path) -> list[Path]:
    return [folder / TRANSFORMER, t5_of(folder), *sorted((folder / "base").glob("*/*.safetensors"))]
