#!/usr/bin/env python3
"""One denoising step of a mid-size FLUX on the CPU: this engine and diffusers, same weights, same threads, one run.

Makes a checkpoint of about 300 million random parameters (text encoders and autoencoder are the tiny ones of
tests/reference), then times diffusers' transformer and scheduler in f32 and `cargo bench --bench engine_step` in turn,
several rounds, and prints the ratio of the medians.

    python3 -m venv venv && venv/bin/pip install torch diffusers transformers
    venv/bin/python benches/step_against_diffusers.py [--rounds 3] [--steps 3] [--threads 2] [--side 512]
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


def make_checkpoint(folder: Path):
    import torch
    from diffusers import FluxTransformer2DModel

    for part in ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler"]:
        shutil.copytree(REFERENCE / part, folder / part)
    shutil.copy(REFERENCE / "model_index.json", folder)
    text_width = json.loads((REFERENCE / "text_encoder_2/config.json").read_text())["d_model"]
    pooled_width = json.loads((REFERENCE / "text_encoder/config.json").read_text())["hidden_size"]
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=4, num_single_layers=9, attention_head_dim=128, num_attention_heads=8,
        joint_attention_dim=text_width, pooled_projection_dim=pooled_width, guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    ).eval()
    transformer.save_pretrained(folder / "transformer")
    return transformer, text_width, pooled_width


def diffusers_step_seconds(transformer, text_width: int, pooled_width: int, side: int, steps: int) -> list[float]:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    tokens = side // 16
    latents = torch.randn(1, tokens * tokens, 64)
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
                hidden_states=latents, timestep=timestep.expand(1) / 1000, guidance=torch.tensor([3.5]),
                pooled_projections=torch.zeros(1, pooled_width), encoder_hidden_states=torch.zeros(1, TEXT_TOKENS, text_width),
                txt_ids=torch.zeros(TEXT_TOKENS, 3), img_ids=image_ids.reshape(-1, 3), return_dict=False,
            )[0]
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            seconds.append(time.perf_counter() - start)
    return seconds[1:]  # the first is the warm-up, as for the engine


def engine_step_seconds(checkpoint: Path, side: int, steps: int, threads: int) -> float:
    environment = os.environ | {
        "FLUXSERVE_BENCH_CHECKPOINT": str(checkpoint), "FLUXSERVE_BENCH_SIDE": str(side),
        "FLUXSERVE_BENCH_STEPS": str(steps), "RAYON_NUM_THREADS": str(threads),
    }
    command = ["cargo", "bench", "--quiet", "--bench", "engine_step"]
    output = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"median_seconds=([0-9.]+)", output).group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", type=int, default=512, help="pixels")
    arguments = parser.parse_args()
    import diffusers
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        transformer, text_width, pooled_width = make_checkpoint(Path(folder))
        parameters = sum(parameter.numel() for parameter in transformer.parameters())
        print(f"{parameters / 1e6:.0f} M parameters, {arguments.side}x{arguments.side}, {arguments.threads} threads, "
              f"torch {torch.__version__}, diffusers {diffusers.__version__}")
        theirs, ours = [], []
        for round_number in range(1, arguments.rounds + 1):
            seconds = diffusers_step_seconds(transformer, text_width, pooled_width, arguments.side, arguments.steps)
            theirs.append(statistics.median(seconds))
            ours.append(engine_step_seconds(Path(folder), arguments.side, arguments.steps, arguments.threads))
            print(f"round {round_number}: diffusers {theirs[-1]:.3f} s, fluxserve {ours[-1]:.3f} s per step")
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"median: diffusers {statistics.median(theirs):.3f} s, fluxserve {statistics.median(ours):.3f} s, "
              f"ratio fluxserve / diffusers {ratio:.2f}")


if __name__ == "__main__":
    main()
