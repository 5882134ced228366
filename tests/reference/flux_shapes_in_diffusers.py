#!/usr/bin/env python3
"""The demo model in Hugging Face diffusers: loads models/flux-shapes with FluxPipeline, generates the same prompts and
seeds as `fluxserve generate`, and compares the images. Fails if a channel differs by more than 1/255.

    cargo build --release
    python3 -m venv venv && venv/bin/pip install torch diffusers transformers pillow numpy
    venv/bin/python tests/reference/flux_shapes_in_diffusers.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from diffusers import FluxPipeline
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = ROOT / "target/release/fluxserve"
MODEL = ROOT / "models/flux-shapes"
# As in training, and so part of the model: FLUX has no text mask.
SEQUENCE_LENGTH = 24
# Width, height, steps, guidance, seed, prompt.
CASES = [
    (128, 128, 20, 3.5, 1, "a red circle on a blue background"),
    (128, 128, 20, 3.5, 2, "a yellow star left of a purple heart on a white background"),
    (96, 64, 12, 1.0, 3, "Three green crosses, black background."),
    (192, 128, 8, 6.0, 4, "an orange ring at the top right on a gray background"),
    (128, 128, 20, 3.5, 5, "a turquoise hexagon, whatever that is"),
]


def generated_by_fluxserve(folder, width, height, steps, guidance, seed, prompt):
    file = folder / f"{seed}.png"
    subprocess.run(
        [PROGRAM, "generate", "--model", f"fluxserve/flux-shapes={MODEL}", "--device", "cpu", "--max-sequence-length",
         str(SEQUENCE_LENGTH), "--width", str(width), "--height", str(height), "--steps", str(steps), "--guidance", str(guidance), "--seed", str(seed), "--prompt", prompt,
         "--output", file], check=True)
    return numpy.asarray(Image.open(file).convert("RGB")).astype(int)


def main():
    pipeline = FluxPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        for width, height, steps, guidance, seed, prompt in CASES:
            theirs = pipeline(
                prompt, width=width, height=height, num_inference_steps=steps, guidance_scale=guidance,
                max_sequence_length=SEQUENCE_LENGTH, generator=torch.Generator("cpu").manual_seed(seed), output_type="pil").images[0]
            theirs = numpy.asarray(theirs.convert("RGB")).astype(int)
            ours = generated_by_fluxserve(Path(folder), width, height, steps, guidance, seed, prompt)
            apart = numpy.abs(ours - theirs)
            worst = max(worst, apart.max())
            print(f"{width}x{height} steps={steps} guidance={guidance} seed={seed}: at most {apart.max()}/255, "
                  f"{100 * (apart > 0).mean():.3f} % of the channels off; {prompt}")
    print(f"worst: {worst}/255")
    sys.exit(worst > 1)


if __name__ == "__main__":
    main()
