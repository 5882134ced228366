#!/usr/bin/env python3
"""Writes a FLUX.1-dev checkpoint of random weights, in the diffusers layout and bf16.

The same weights wherever they are made: each tensor's values follow from its name. They are sampled on the CPU, so that the
GPU is free for what is tried meanwhile. Nothing is learned: the images of such a model are noise, but take as long as with
published weights.

    python3 benches/gpu/make_weights.py FOLDER [--preset dev|shallow|wide|tiny]
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Iterator

import checkpoint

REFERENCE = Path(__file__).resolve().parents[2] / "tests/reference/FLUX.1-dev"
# Small enough to write several at a time.
SHARD_BYTES_MAX = 2 << 30
BYTES_PER_VALUE = 2
BLOCK_VALUES = 1 << 18
THREADS_MAX = 14
# Marks a folder as made by this script and, at the end, as complete. A folder with anything else in it is not touched.
SEAL = "made_by.json"


def seed_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")


def bounds(tensor: checkpoint.Tensor) -> tuple[float, float]:
    """The bounds of the uniform distribution with this mean and standard deviation."""
    reach = tensor.deviation * 3**0.5
    return tensor.mean - reach, tensor.mean + reach


def samples(tensor: checkpoint.Tensor) -> Iterator[memoryview]:
    """The values in bf16, a block at a time: a block stays in the processor's cache."""
    import numpy

    low, high = bounds(tensor)
    generator = numpy.random.Generator(numpy.random.SFC64(seed_of(tensor.name)))
    block = numpy.empty(min(BLOCK_VALUES, tensor.elements()), numpy.float32)
    for start in range(0, tensor.elements(), BLOCK_VALUES):
        values = block[: tensor.elements() - start]
        generator.random(out=values, dtype=numpy.float32)
        values *= numpy.float32(high - low)
        values += numpy.float32(low)
        bits = values.view(numpy.uint32)
        bits += 0x7FFF + ((bits >> 16) & 1)  # to the nearest bf16, ties to even
        yield memoryview(bits.view(numpy.uint16)[1::2].copy()).cast("B")


def write_shard(path: Path, tensors: list[checkpoint.Tensor]) -> None:
    """The safetensors format: the header's length, the header, all values."""
    header, offset = {}, 0
    for tensor in tensors:
        end = offset + BYTES_PER_VALUE * tensor.elements()
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for block in samples(tensor):
                write_all(file, block)


def write_all(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def shards_of(tensors: list[checkpoint.Tensor]) -> list[list[checkpoint.Tensor]]:
    shards: list[list[checkpoint.Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        added = BYTES_PER_VALUE * tensor.elements()
        if shards[-1] and size + added > SHARD_BYTES_MAX:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += added
    return shards


def write_configuration(folder: Path, preset: str) -> None:
    for component, config in checkpoint.configurations(preset).items():
        (folder / component).mkdir(parents=True, exist_ok=True)
        (folder / component / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # The published values, and tokenizers with a small vocabulary: all their ids are below any vocabulary here.
    for name in ["scheduler", "tokenizer", "tokenizer_2"]:
        shutil.copytree(REFERENCE / name, folder / name, dirs_exist_ok=True)
    shutil.copy(REFERENCE / "model_index.json", folder)


def plan(folder: Path, preset: str) -> list[tuple[Path, list[checkpoint.Tensor]]]:
    """Every weight file with its tensors; writes the indices of sharded ones."""
    files = []
    for component, tensors in checkpoint.tensors(preset).items():
        stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
        shards = shards_of(tensors)
        names = [f"{stem}.safetensors"]
        if len(shards) > 1:
            names = [f"{stem}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
            weight_map = {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}
            size = BYTES_PER_VALUE * sum(tensor.elements() for tensor in tensors)
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (folder / component / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        files += [(folder / component / name, shard) for name, shard in zip(names, shards)]
    return files


def is_ours(folder: Path) -> bool:
    """Whether this script made it, complete or not."""
    return (folder / SEAL).is_file()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=sorted(checkpoint.PRESETS), default="dev")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    seal = {
        "by": Path(__file__).name,
        "whole": True,
        "preset": arguments.preset,
        "modulation": checkpoint.MODULATION,
    }
    if is_ours(folder) and json.loads((folder / SEAL).read_text()) == seal:
        print(f"{folder} has them already")
        return
    if not is_ours(folder) and (folder / "model_index.json").is_file():
        print(f"{folder} has a checkpoint that was not made by this script: it is used as it is")
        return
    if not is_ours(folder) and folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty, and was not made by this script: name another folder")
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SEAL).write_text(json.dumps(seal | {"whole": False}) + "\n")
    write_configuration(folder, arguments.preset)
    files = plan(folder, arguments.preset)
    size = BYTES_PER_VALUE * sum(tensor.elements() for _, shard in files for tensor in shard)
    free = shutil.disk_usage(folder).free
    if size > free:
        sys.exit(
            f"{folder} has {free / 1e9:.1f} GB free, the weights take {size / 1e9:.1f}: name a folder with more space"
        )
    with ThreadPoolExecutor(min(THREADS_MAX, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda file: write_shard(*file), files):
            pass
    (folder / SEAL).write_text(json.dumps(seal) + "\n")
    seconds = time.monotonic() - started
    print(f"{size / 1e9:.2f} GB in {len(files)} files, {seconds:.1f} s")


if __name__ == "__main__":
    main()
