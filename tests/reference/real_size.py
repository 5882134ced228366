#!/usr/bin/env python3
"""A proof at the real dimensions, by hand: FLUX.1-dev as Q4_K_S with random weights, its memory, and the velocity of its
steps against torch, which holds one layer at a time, from the same file.

    cargo build --profile dist
    python3.11 -m venv venv && venv/bin/pip install numpy torch gguf
    venv/bin/python tests/reference/real_size.py make DIR                            # 12.3 GB
    venv/bin/python tests/reference/real_size.py generate DIR target/dist/fluxserve
    venv/bin/python tests/reference/real_size.py velocity DIR                        # some minutes
    venv/bin/python tests/reference/real_size.py make DIR --bf16                     # 30 GB
    venv/bin/python tests/reference/real_size.py stream DIR target/dist/fluxserve

`make` writes the transformer, with the types and the length to the byte of the file that people download; T5 as Q8_0 in
llama.cpp's names; and a folder for `--base` with CLIP, the autoencoder, all configurations, and the small tokenizers of this
folder, whose ids are below the vocabularies.
`generate` lets the program record two steps (`bench stages`), and fails where its peak of memory is above 1.15 times the
files and 2 GB. It gives the program the options that it does not know.
`velocity` computes the same two steps, with the weights as the package `gguf` dequantizes them, and fails where a relative
distance is above --bound.
`make --bf16` writes the transformer in bf16, in diffusers' shards, instead: 24 GB, for a machine with less memory.
`stream` generates an image of 256x256 in two steps with its blocks read for each step, and compares the rate at which the
program reads them with the rate at which as many threads read the same files and do nothing else. It fails where the peak of
memory is above --memory, or the rate below --rate of the other.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy

import real_size_files as files

STAGES = "stages.safetensors"
PIXELS_PER_TOKEN_SIDE = 16

# As the program reads: bytes at a time, and threads.
PIECE_BYTES = 4 << 20
READERS_MAX = 8

# `generate` fails above FACTOR × files + MORE_BYTES.
FACTOR = 1.15
MORE_BYTES = 2_000_000_000


def make(folder: Path, t5: str, is_bf16: bool) -> None:
    started = time.monotonic()
    if is_bf16:
        files.write_bf16(folder, t5)
        written = [*files.bf16_shards(folder), files.t5_of(folder)]
    else:
        files.write_all(folder, t5)
        written = files.weight_files(folder)
    size = sum(file.stat().st_size for file in written)
    print(f"{size / 1e9:.2f} GB, {time.monotonic() - started:.0f} s")


def generate(folder: Path, program: str, size: str, options: list[str]) -> None:
    sizes = {file: file.stat().st_size for file in files.weight_files(folder)}
    for file, length in sizes.items():
        print(f"{file.relative_to(folder)}: {length / 1e9:.2f} GB")
    command = [program, "bench", "stages", "--model", f"real-size={folder / files.TRANSFORMER}"]
    command += ["--base", str(folder / "base"), "--text-encoder", str(files.t5_of(folder))]
    command += ["--device", "cpu", "--prompt", "a red fox in the snow"]
    command += ["--size", size, "--steps", "2", "--seed", "7", "--whole", "--out", str(folder / STAGES), *options]
    print(" ".join(command), flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - started
    # Of the largest child, in KiB: the program is the only one.
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    bound = FACTOR * sum(sizes.values()) + MORE_BYTES
    print(f"{seconds:.0f} s, peak {peak / 1e9:.2f} GB of memory, at most {bound / 1e9:.2f} are allowed")
    if peak > bound:
        sys.exit(1)


def readers() -> int:
    return min(max(os.cpu_count() or 1, 2), READERS_MAX)


def read_piece(piece: tuple[Path, int]) -> int:
    path, start = piece
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        return file.readinto(bytearray(PIECE_BYTES))


def plain_rate(shards: list[Path]) -> float:
    """Bytes a second of reading alone, in the order of the files, into memory that is new as the program's is."""
    pieces = [(path, start) for path in shards for start in range(0, path.stat().st_size, PIECE_BYTES)]
    started = time.monotonic()
    with ThreadPoolExecutor(readers()) as pool:
        count = sum(pool.map(read_piece, pieces))
    return count / (time.monotonic() - started)


def block_bytes() -> int:
    """Of the blocks without their modulations, in bf16: what one step reads."""
    is_block = re.compile(r"(double|single)_blocks\.")
    is_modulation = re.compile(r"(_mod|\.modulation)\.lin\.")
    tensors = [t for t in files.transformer() if is_block.match(t.name) and not is_modulation.search(t.name)]
    return sum(2 * tensor.elements() for tensor in tensors)


def full_passes(log: str) -> list[tuple[float, int]]:
    """Of each step that read all blocks: seconds of reading, and how many blocks were in memory at most."""
    log = re.sub(r"\x1b\[[0-9;]*m", "", log)
    lines = [line for line in log.splitlines() if "blocks were read" in line and "read=57" in line]
    number = r"=([0-9.e-]+)"
    found = [(re.search("seconds" + number, line), re.search("held_max" + number, line)) for line in lines]
    return [(float(seconds[1]), int(held[1])) for seconds, held in found if seconds and held]


def stream(folder: Path, program: str, memory: int, share: float, options: list[str]) -> None:
    shards = files.bf16_shards(folder)
    command = [program, "bench", "stages", "--model", f"real-size={folder / 'base'}"]
    command += ["--text-encoder", str(files.t5_of(folder)), "--device", "cpu", "--prompt", "a red fox in the snow"]
    command += ["--size", "256x256", "--steps", "2", "--seed", "7", "--whole", "--out", str(folder / STAGES)]
    command += ["--offload", "blocks", "--memory-budget", "1MB", *options]
    print(" ".join(command), flush=True)
    environment = os.environ | {"FLUXSERVE_LOG_FILTER": "info,fluxserve=debug"}
    started = time.monotonic()
    run = subprocess.run(command, check=True, env=environment, stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - started
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    passes = full_passes(run.stderr)
    if len(passes) != 2:
        sys.exit(f"{len(passes)} steps read all blocks, not 2:\n{run.stderr}")
    plain = plain_rate(shards)
    size = sum(path.stat().st_size for path in shards)
    print(f"{size / 1e9:.1f} GB in {len(shards)} shards, {seconds:.0f} s, peak {peak / 1e9:.2f} GB of memory")
    failed = peak > memory
    for step, (reading, held) in enumerate(passes, 1):
        rate = block_bytes() / reading
        print(
            f"step {step}: {block_bytes() / 1e9:.1f} GB in {reading:.1f} s of reading, {rate / 1e9:.2f} GB/s, alone "
            f"{plain / 1e9:.2f} GB/s: {rate / plain:.0%}; at most {held} blocks in memory"
        )
        failed |= not (rate >= share * plain and held <= 2)
    if failed:
        sys.exit(1)


def read_stages(path: Path) -> tuple[dict, dict[str, numpy.ndarray]]:
    """The request, and the tensors in f32 by name."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    request, arrays = header.pop("__metadata__"), {}
    for name, row in header.items():
        if row["dtype"] == "F32":
            begin = start + row["data_offsets"][0]
            arrays[name] = numpy.frombuffer(data, "<f4", prod(row["shape"]), begin).reshape(row["shape"]).copy()
    return request, arrays


def recorded_steps(arrays: dict[str, numpy.ndarray]) -> list[tuple[numpy.ndarray, float, numpy.ndarray]]:
    """Latents, noise level and velocity of each step that was recorded. The second is the last of two."""
    sigmas = arrays["sigmas"]
    steps = [(arrays["latents_init"], sigmas[0], arrays["velocity_first"])]
    if len(sigmas) == 3 and "latents_final" in arrays:
        velocity = (arrays["latents_final"] - arrays["latents_first"]) / (sigmas[2] - sigmas[1])
        steps.append((arrays["latents_first"], sigmas[1], velocity))
    return steps


def velocity(folder: Path, bound: float) -> None:
    request, arrays = read_stages(folder / STAGES)
    steps = recorded_steps(arrays)
    # Only here: what else this script does needs neither torch nor gguf.
    import torch
    from real_size_flux import Flux

    tensor = torch.from_numpy
    with torch.inference_mode():
        expected = Flux(folder / files.TRANSFORMER).velocities(
            tensor(numpy.stack([latents for latents, _, _ in steps])),
            tensor(arrays["t5_embeds"]),
            tensor(arrays["clip_pooled"]),
            tensor(numpy.array([sigma for _, sigma, _ in steps], numpy.float32)),
            float(request["guidance"]),
            tuple(int(request[side]) // PIXELS_PER_TOKEN_SIDE for side in ["height", "width"]),
        ).numpy()
    failed = False
    for number, (theirs, (_, sigma, ours)) in enumerate(zip(expected.astype(numpy.float64), steps), 1):
        root = float(numpy.sqrt((theirs**2).mean()))
        difference = ours - theirs
        relative = float(numpy.sqrt((difference**2).mean())) / root
        print(
            f"step {number}, sigma {sigma:.4f}: velocity of {root:.3f}, largest difference "
            f"{numpy.abs(difference).max():.2e}, relative {relative:.2e}, at most {bound:.0e} is allowed"
        )
        # Written so that a distance that is no number fails, and so does a velocity that says nothing.
        failed |= not (relative <= bound and root > 1e-3)
    if failed:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ["make", "generate", "velocity", "stream"]:
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.choices["make"].add_argument("--t5", choices=sorted(files.T5), default="Q8_0")
    commands.choices["make"].add_argument("--bf16", action="store_true")
    commands.choices["stream"].add_argument("program")
    commands.choices["stream"].add_argument("--memory", type=int, default=8_000_000_000)
    commands.choices["stream"].add_argument("--rate", type=float, default=0.8)
    commands.choices["generate"].add_argument("program")
    commands.choices["generate"].add_argument("--size", default="256x256")
    commands.choices["velocity"].add_argument("--bound", type=float, default=1e-4)
    arguments, options = parser.parse_known_args()
    if options and arguments.command not in ["generate", "stream"]:
        parser.error(f"unknown arguments: {' '.join(options)}")
    if arguments.command == "make":
        make(arguments.folder, arguments.t5, arguments.bf16)
    elif arguments.command == "stream":
        stream(arguments.folder, arguments.program, arguments.memory, arguments.rate, options)
    elif arguments.command == "generate":
        generate(arguments.folder, arguments.program, arguments.size, options)
    else:
        velocity(arguments.folder, arguments.bound)


if __name__ == "__main__":
    main()
