#!/usr/bin/env python3
"""Denoising steps and decodings of a FLUX on the CPU: this engine and diffusers, same weights, same threads, one run.

Makes a checkpoint of random parameters (text encoders, and without `--decoder` the autoencoder, are the tiny ones of
tests/reference), then times diffusers' transformer and scheduler in f32 and `cargo bench --bench engine_step` in turn,
several rounds for each number of threads and each size, and prints the ratios of the medians. Models: `narrow` has about
300 million parameters, 4 double and 9 single blocks of 8 heads; `wide` has FLUX.1-dev's width, 24 heads, with 1 and 2 blocks.
With `--decoder` it also times an autoencoder of FLUX.1-dev's size. With `--precision bf16` both are asked for bf16: diffusers computes all
of the transformer in it, this engine the products of its blocks.

    python3 -m venv venv && venv/bin/pip install torch diffusers transformers
    venv/bin/python benches/step_against_diffusers.py [--model wide] [--rounds 5] [--steps 3] [--threads 1,2] [--sides 256,512] [--decoder]
        [--precision bf16]
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "tests" / "reference" / "FLUX.1-dev"
TEXT_TOKENS = 512
MODELS = {"narrow": (4, 9, 8), "wide": (1, 2, 24)}  # double blocks, single blocks, heads


def make_transformer(folder: Path, model: str):
    import torch
    from diffusers import FluxTransformer2DModel

    text_width = json.loads((REFERENCE / "text_encoder_2/config.json").read_text())["d_model"]
    pooled_width = json.loads((REFERENCE / "text_encoder/config.json").read_text())["hidden_size"]
    double_blocks, single_blocks, heads = MODELS[model]
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=double_blocks, num_single_layers=single_blocks, attention_head_dim=128,
        num_attention_heads=heads, joint_attention_dim=text_width, pooled_projection_dim=pooled_width,
        guidance_embeds=True, axes_dims_rope=(16, 56, 56),
    ).eval()
    transformer.save_pretrained(folder / "transformer")
    return transformer, text_width, pooled_width


def make_autoencoder(folder: Path):
    """Of FLUX.1-dev's size, with random weights."""
    import torch
    from diffusers import AutoencoderKL

    config = json.loads((REFERENCE / "vae/config.json").read_text())
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    torch.manual_seed(1)
    autoencoder = AutoencoderKL(**config | {"block_out_channels": [128, 256, 512, 512]}).eval()
    autoencoder.save_pretrained(folder / "vae")
    return autoencoder


def diffusers_step_seconds(transformer, text_width: int, pooled_width: int, side: int, steps: int) -> list[float]:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    tokens, dtype = side // 16, transformer.dtype
    latents = torch.randn(1, tokens * tokens, 64, dtype=dtype)
    image_ids = torch.zeros(tokens, tokens, 3)
    image_ids[..., 1] += torch.arange(tokens)[:, None]
    image_ids[..., 2] += torch.arange(tokens)[None, :]
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(REFERENCE / "scheduler")
    scheduler.set_timesteps(sigmas=[1.0 - i / (steps + 1) for i in range(steps + 1)], mu=0.6)
    seconds = []
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            start = time.perf_counter()
            velocity = transformer(
                hidden_states=latents, timestep=timestep.expand(1).to(dtype) / 1000, guidance=torch.tensor([3.5], dtype=dtype),
                pooled_projections=torch.zeros(1, pooled_width, dtype=dtype),
                encoder_hidden_states=torch.zeros(1, TEXT_TOKENS, text_width, dtype=dtype),
                txt_ids=torch.zeros(TEXT_TOKENS, 3), img_ids=image_ids.reshape(-1, 3), return_dict=False,
            )[0]
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            seconds.append(time.perf_counter() - start)
    return seconds[1:]  # the first is the warm-up, as for the engine


def diffusers_decode_seconds(autoencoder, side: int, count: int) -> list[float]:
    import torch

    latents = torch.randn(1, 16, side // 8, side // 8)
    seconds = []
    with torch.inference_mode():
        for _ in range(count):
            start = time.perf_counter()
            autoencoder.decode(latents, return_dict=False)
            seconds.append(time.perf_counter() - start)
    return seconds


def engine_seconds(checkpoint: Path, side: int, decodes: int, threads: int, arguments) -> dict[str, float]:
    """Median seconds by what was timed: `step`, `decode`."""
    environment = os.environ | {
        "FLUXSERVE_BENCH_CHECKPOINT": str(checkpoint), "FLUXSERVE_BENCH_SIDE": str(side),
        "FLUXSERVE_BENCH_STEPS": str(arguments.steps), "FLUXSERVE_BENCH_DECODES": str(decodes),
        "FLUXSERVE_BENCH_PRECISION": arguments.precision, "RAYON_NUM_THREADS": str(threads),
    }
    command = ["cargo", "bench", "--quiet", "--bench", "engine_step"]
    output = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    return {name: float(seconds) for name, seconds in re.findall(r"engine_(\w+) .*median_seconds=([0-9.]+)", output)}


def compare(checkpoint: Path, models, side: int, threads: int, arguments) -> None:
    """Rounds of one size on so many threads, and the ratios of their medians."""
    import torch

    torch.set_num_threads(threads)
    transformer, text_width, pooled_width, autoencoder = models
    decodes = arguments.steps if autoencoder else 0
    theirs, ours = {"step": [], "decode": []}, {"step": [], "decode": []}
    for round_number in range(1, arguments.rounds + 1):
        seconds = diffusers_step_seconds(transformer, text_width, pooled_width, side, arguments.steps)
        theirs["step"].append(statistics.median(seconds))
        if autoencoder:
            theirs["decode"].append(statistics.median(diffusers_decode_seconds(autoencoder, side, decodes)))
        for name, seconds in engine_seconds(checkpoint, side, decodes, threads, arguments).items():
            ours[name].append(seconds)
            print(f"round {round_number}, {name}: diffusers {theirs[name][-1]:.3f} s, fluxserve {seconds:.3f} s")
    for name in theirs:
        if theirs[name]:
            their, our = statistics.median(theirs[name]), statistics.median(ours[name])
            print(f"median {name}, {side}x{side}, {threads} threads: diffusers {their:.3f} s, fluxserve {our:.3f} s, "
                  f"ratio fluxserve / diffusers {our / their:.2f}", flush=True)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="narrow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="and decodings, in each round")
    parser.add_argument("--threads", type=numbers, default=[os.cpu_count()], help="one or more numbers: 1,2")
    parser.add_argument("--sides", type=numbers, default=[512], help="pixels, one or more numbers: 256,512")
    parser.add_argument("--decoder", action="store_true", help="also decode, with an autoencoder of FLUX.1-dev's size")
    parser.add_argument("--precision", choices=["full", "bf16"], default="full")
    arguments = parser.parse_args()
    import diffusers
    import torch

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder)
        for part in ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler"]:
            if part != "vae" or not arguments.decoder:
                shutil.copytree(REFERENCE / part, checkpoint / part)
        shutil.copy(REFERENCE / "model_index.json", checkpoint)
        transformer, text_width, pooled_width = make_transformer(checkpoint, arguments.model)
        autoencoder = make_autoencoder(checkpoint) if arguments.decoder else None
        if arguments.precision == "bf16":
            transformer.to(torch.bfloat16)
        parameters = sum(parameter.numel() for parameter in transformer.parameters())
        print(f"{parameters / 1e6:.0f} M parameters, torch {torch.__version__}, diffusers {diffusers.__version__}")
        for side in arguments.sides:
            for threads in arguments.threads:
                compare(checkpoint, (transformer, text_width, pooled_width, autoencoder), side, threads, arguments)


if __name__ == "__main__":
    main()
