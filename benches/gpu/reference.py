#!/usr/bin/env python3
"""The tiny reference set (tests/reference) drawn by the program on a device: how far the pictures are from diffusers'
in f32 on the CPU, and for one of them, how far each stage is.

    python3 benches/gpu/reference.py --binary FLUXSERVE --device cuda:0 --out reference.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from PIL import Image
from safetensors.numpy import load_file

REFERENCE = Path(__file__).resolve().parents[2] / "tests/reference"
MODEL = f"reference={REFERENCE / 'FLUX.1-dev'}"
# The one whose stages are compared, too.
STAGES_OF = "a_64x64"
# What the program calls a stage, and what the reference does.
STAGES = {
    "t5_embeds": "t5_embeds",
    "clip_pooled": "clip_pooled",
    "velocity_first": "noise_pred",
    "latents_final": "latents_final_packed",
    "pixels": "vae_output",
}
OPTIONS = {
    "prompt": "--prompt",
    "prompt_2": "--prompt-2",
    "negative_prompt": "--negative-prompt",
    "true_cfg_scale": "--true-cfg-scale",
    "width": "--width",
    "height": "--height",
    "steps": "--steps",
    "guidance": "--guidance",
    "seed": "--seed",
    "max_sequence_length": "--max-sequence-length",
}


def can_be_drawn(case: dict) -> bool:
    """Whether `fluxserve generate` has words for it: one picture, from text."""
    return isinstance(case["prompt"], str) and case.get("num_images_per_prompt", 1) == 1 and not case.get("img2img")


def draw(binary: str, device: str, case: dict, file: Path) -> None:
    command = [binary, "generate", "--model", MODEL, "--device", device, "--output", str(file)]
    for field, option in OPTIONS.items():
        if field in case:
            command += [f"{option}={case[field]}"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


def picture_error(file: Path, name: str) -> dict[str, float]:
    """On the scale from 0 to 1."""
    ours = numpy.asarray(Image.open(file).convert("RGB"), dtype=numpy.float64)
    theirs = numpy.asarray(Image.open(REFERENCE / f"cases/{name}.0.png").convert("RGB"), dtype=numpy.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"the picture has {ours.shape[:2]} pixels, the reference {theirs.shape[:2]}")
    difference = numpy.abs(ours - theirs) / 255
    return {"mean": float(difference.mean()), "max": float(difference.max())}


def stage_errors(binary: str, device: str, case: dict, file: Path) -> dict[str, float]:
    """Relative L2 of each stage."""
    command = [
        binary,
        "bench",
        "stages",
        "--model",
        MODEL,
        "--device",
        device,
        "--whole",
        "--out",
        str(file),
        f"--prompt={case['prompt']}",
        "--size",
        f"{case['width']}x{case['height']}",
        "--steps",
        str(case["steps"]),
        "--guidance",
        str(case["guidance"]),
        "--seed",
        str(case["seed"]),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    ours, theirs = load_file(file), load_file(REFERENCE / case["file"])
    errors = {}
    for name, reference_name in STAGES.items():
        a = ours[name].astype(numpy.float64).ravel()
        b = theirs[reference_name].astype(numpy.float64).ravel()[: a.size]  # of all steps' velocities the first
        errors[name] = float(numpy.linalg.norm(a - b) / numpy.linalg.norm(b))
    return errors


def reason_of(error: Exception) -> str:
    """What the program said last, where it was the program that failed."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or "").strip().splitlines()
        return lines[-1] if lines else f"exit code {error.returncode}"
    return "took too long" if isinstance(error, subprocess.TimeoutExpired) else str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cases = json.loads((REFERENCE / "cases.json").read_text())["cases"]
    results: dict = {"device": arguments.device, "pictures": {}, "stages": {}}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        # The one with stages first: where something is wrong, these say what.
        for case in sorted(filter(can_be_drawn, cases), key=lambda case: case["name"] != STAGES_OF):
            name = case["name"]
            try:
                if name == STAGES_OF:
                    results["stages"] = stage_errors(
                        arguments.binary, arguments.device, case, Path(folder) / "stages.safetensors"
                    )
                file = Path(folder) / f"{name}.png"
                draw(arguments.binary, arguments.device, case, file)
                results["pictures"][name] = picture_error(file, name)
            except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
                failed += 1
                results["pictures"][name] = {"error": reason_of(error)}
            print(name, results["pictures"][name], flush=True)
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print("stages", results["stages"])
    sys.exit(f"{failed} pictures could not be drawn" if failed else 0)


if __name__ == "__main__":
    main()
