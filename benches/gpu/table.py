#!/usr/bin/env python3
"""Makes the table of what `run.py` has measured, from its `all.json`: `table.py all.json`.

Ratios are ours to theirs. The floor is the arithmetic of a step (its matrix products and attention, counted from the
model's configuration) at the highest rate that torch reached for any of a step's GEMMs on the same machine; the
share is the floor over what was taken.
"""

import argparse
import json
from pathlib import Path

import kernel_tables
from checkpoint import PATCH_PIXELS
from kernel_tables import row

# Relative L2. In bf16, the precision on a GPU, rounding moves 57 blocks of random weights 1.5 % away from f32; in f32 only
# the order of sums differs.
TOLERANCES = {
    "bfloat16": {
        "sigmas": 1e-5,
        "clip_pooled": 0.02,
        "t5_embeds": 0.02,
        "velocity_first": 0.02,
        "latents_first": 0.002,
        "pixels": 0.02,
    },
    "float32": {
        "sigmas": 1e-5,
        "clip_pooled": 1e-4,
        "t5_embeds": 1e-4,
        "velocity_first": 1e-4,
        "latents_first": 1e-5,
        "pixels": 1e-4,
    },
}
# Mean error of an image of the tiny reference set, on the scale from 0 to 1.
IMAGE_TOLERANCE = 0.03
# Multiplications and additions per token and layer: 12 × width² weights in either kind of block, two for each.
LINEAR_FLOPS = 24
BLOCKS = ["num_layers", "num_single_layers"]
NAMES = {
    "sigmas": "noise levels",
    "clip_pooled": "CLIP, pooled",
    "t5_embeds": "T5",
    "velocity_first": "first step, velocity",
    "latents_first": "latents after it",
    "pixels": "decoder",
}


def step_flops(transformer: dict, sizes: list[list[int]], text_tokens: int) -> float:
    """Of one step of images of these sizes, batched: attention stays within each image."""
    hidden = transformer["attention_head_dim"] * transformer["num_attention_heads"]
    layers = transformer["num_layers"] + transformer["num_single_layers"]
    total = 0
    for width, height in sizes:
        tokens = (width // PATCH_PIXELS) * (height // PATCH_PIXELS) + text_tokens
        total += layers * (LINEAR_FLOPS * hidden**2 * tokens + 4 * hidden * tokens**2)
    return float(total)


def verdict(value: float | None, tolerance: float) -> str:
    """NaN is beyond any tolerance."""
    if value is None:
        return "not measured"
    return "right" if value <= tolerance else "**WRONG**"


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}" if value < 1e-3 else f"{100 * value:.2f} %"


def correctness(references: dict[str, dict], compare: dict) -> list[str]:
    lines = [
        "| what | away from diffusers | from diffusers in f32 | diffusers itself from f32 | at most | |",
        "|---|---|---|---|---|---|",
    ]
    for kernels, reference in references.items():
        images = reference.get("pictures", {})
        means = [image["mean"] for image in images.values() if "mean" in image]
        if images:
            broken = len(images) - len(means)
            worst = max(means, default=None)
            word = f"**{broken} NOT GENERATED**" if broken else verdict(worst, IMAGE_TOLERANCE)
            name = f"{len(means)} tiny images{kernels}, worst mean error"
            lines.append(row(name, "–", shown(worst), "–", shown(IMAGE_TOLERANCE), word))
    tolerances = TOLERANCES[compare.get("dtype", "bfloat16")]
    for name, tolerance in tolerances.items():
        distances = compare.get("distances", {}).get(name, {})
        values = [
            distances.get(key, {}).get("relative_l2") for key in ["from_diffusers", "from_f32", "diffusers_from_f32"]
        ]
        # Two rounded results are further from each other than either is from the exact one.
        decisive = values[0] if values[1] is None else values[1]
        lines.append(row(NAMES[name], *map(shown, values), shown(tolerance), verdict(decisive, tolerance)))
    same = compare.get("same_tokens")
    if same is not None:
        lines.append(row("token ids", *["–"] * 4, "right" if all(same.values()) else "**WRONG**"))
    return lines


def key_of(timing: dict) -> tuple:
    return timing["part"], json.dumps(timing["pictures"]), timing.get("steps")


def name_of(timing: dict) -> str:
    sizes = [f"{width}×{height}" for width, height in timing["pictures"]]
    if len(set(sizes)) > 1:
        images = " + ".join(sizes)
    else:
        images = (f"{len(sizes)} images " if len(sizes) > 1 else "") + "".join(sizes[:1])
    words = {
        "text": "text encoders",
        "admit": "all before the first step,",
        "step": "step",
        "decoder": "decoder",
        "finish": "decoder, to bytes,",
        "picture": "complete image",
    }
    steps = f", {timing['steps']} steps" if timing.get("steps") else ""
    return f"{words[timing['part']]} {images}{steps}".strip()


def milliseconds(timing: dict | None) -> str:
    if timing is None:
        return "–"
    if timing["outcome"] != "measured":
        return {"does_not_fit": "does not fit", "no_time": "no time", "failed": "failed"}[timing["outcome"]]
    return f"{1000 * timing['median_seconds']:.1f}"


def ratio(ours: dict | None, theirs: dict | None) -> str:
    both = [timing.get("median_seconds") for timing in [ours or {}, theirs or {}]]
    return f"{both[0] / both[1]:.2f}" if all(both) else "–"


def one_by_one(timing: dict, theirs: dict[tuple, dict]) -> dict | None:
    """The time of diffusers for images of several sizes one after the other, since it cannot batch them."""
    single = [theirs.get(("step", json.dumps([size]), None), {}).get("median_seconds") for size in timing["pictures"]]
    return {"outcome": "measured", "median_seconds": sum(single)} if single and all(single) else None


def times(about: dict, ours: dict, compare: dict, ceiling: float | None) -> list[str]:
    theirs = {key_of(timing): timing for timing in compare.get("timings", [])}
    compiled = {key_of(timing): timing for timing in compare.get("compiled", [])}
    cudnn = {key_of(timing): timing for timing in compare.get("cudnn", [])}
    lines = [
        "| ms (median) | fluxserve | diffusers | ratio | its cuDNN attention | ratio | compiled | ratio | floor | share |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    mine = {key_of(timing): timing for timing in ours.get("timings", [])}
    timings = list(mine.values()) or list(theirs.values())
    for timing in timings:
        key = key_of(timing)
        other = theirs.get(key)
        if other is None and timing["part"] == "step" and len({tuple(size) for size in timing["pictures"]}) > 1:
            other = one_by_one(timing, theirs)
        floor = share = None
        if timing["part"] in ["step", "picture"] and ceiling and about.get("transformer"):
            text_tokens = ours.get("text_tokens", 512)
            floor = (
                step_flops(about["transformer"], timing["pictures"], text_tokens) * (timing.get("steps") or 1) / ceiling
            )
            taken = mine.get(key, {}).get("median_seconds")
            share = floor / taken if taken else None
        cells = [
            name_of(timing),
            milliseconds(mine.get(key)),
            milliseconds(other),
            ratio(mine.get(key), other),
            milliseconds(cudnn.get(key)),
            ratio(mine.get(key), cudnn.get(key)),
            milliseconds(compiled.get(key)),
            ratio(mine.get(key), compiled.get(key)),
            f"{1000 * floor:.1f}" if floor else "–",
            f"{100 * share:.0f} %" if share else "–",
        ]
        lines.append(row(*cells))
    load = [f"{report['load_seconds']:.1f} s" if "load_seconds" in report else "–" for report in [ours, compare]]
    lines.append(row("load, files as they were in the page cache", *load, *["–"] * 7))
    return lines


def beside(ours: dict, other: dict, words: tuple[str, str], parts: list[str]) -> list[str]:
    """Timings of two modes of the program."""
    mine = {key_of(timing): timing for timing in ours.get("timings", [])}
    timings = [timing for timing in other.get("timings", []) if timing["part"] in parts]
    if not timings:
        return []
    lines = [row("ms (median)", *words, "ratio"), "|---|---|---|---|"]
    for timing in timings:
        own = mine.get(key_of(timing))
        lines.append(row(name_of(timing), milliseconds(own), milliseconds(timing), ratio(timing, own)))
    return lines


def loading(load: dict) -> list[str]:
    """The throughput of loading, and the parts of the time to the first image."""
    if "weights" not in load:
        return []
    rates = [
        f"{what} {load[name]['gigabytes_per_second']:.1f} GB/s"
        for name, what in [("reading_before", "reading alone"), ("weights", "loading"), ("reading_after", "reading again")]
        if load.get(name)
    ]
    parts = [f"{part['name']} {part['seconds']:.2f} s" for part in load["parts"]]
    return [
        f"{' · '.join(rates)}: {100 * load['share_of_reading']:.0f} % of reading alone",
        f"until the first image {load['seconds']:.2f} s: {', '.join(parts)}",
    ]


def lossy(ours: dict, fp8: dict, fidelity: dict) -> list[str]:
    """What fp8 saves and what it costs."""
    lines = beside(ours, fp8, ("full precision", "fp8, lossy"), ["step", "picture"])
    if fidelity.get("pictures"):
        what = f"{fidelity['width']}×{fidelity['height']}, {fidelity['steps']} steps"
        if lines:
            lines.append("")
        lines += [
            f"| fp8 away from full precision, {what} | first velocity | last latents | PSNR |",
            "|---|---|---|---|",
        ]
        for image in fidelity["pictures"]:
            decibels = image["psnr_db"]
            lines.append(
                row(
                    f"seed {image['seed']}",
                    shown(image["velocity_first"]),
                    shown(image["latents_final"]),
                    "–" if decibels is None else f"{decibels:.1f} dB",
                )
            )
    return lines


def ceilings(compare: dict, torch_kernels: dict | list | None) -> list[str]:
    lines = []
    if "picture_peak_mebibytes" in compare:
        lines.append(f"diffusers reserves {compare['picture_peak_mebibytes']:,} MiB for a complete image")
    for kind, word in [("product", "matrix products"), ("fp8", "fp8 matrix products"), ("attention", "attention")]:
        rates = kernel_tables.rates_of(torch_kernels, kind)
        if rates:
            lines.append(
                f"torch's {word} at a step's shapes: {min(rates) / 1e12:.3g} to {max(rates) / 1e12:.3g} TFLOP/s"
            )
    return [" · ".join(lines)] if lines else []


def stages(records: dict, compare: dict) -> list[str]:
    words = []
    for record in records.get("stages", []):
        memory = (
            f", {record['peak_mebibytes']:,} MiB on the {record['peak_on']} at most"
            if record.get("peak_mebibytes")
            else ""
        )
        clock = f", SM clock {record['busy_sm_clock_mhz']} MHz while busy" if "busy_sm_clock_mhz" in record else ""
        words.append(f"- {record['stage']}: {record['outcome']}, {record['seconds']:.0f} s{memory}{clock}")
    missing = [(name, part["outcome"]) for name, part in compare.get("parts", {}).items() if part["outcome"] != "done"]
    return words + [f"- compare, {name}: {outcome}" for name, outcome in missing]


def heading(about: dict, ours: dict, compare: dict) -> list[str]:
    gpu = about.get("gpu") or "no GPU"
    software = [f"{name} {compare[name]}" for name in ["torch", "diffusers", "transformers"] if name in compare]
    blocks = [f"{about['transformer'][name]}" for name in BLOCKS if name in about.get("transformer", {})]
    run = (
        "a dry run with tiny weights, which says nothing about speed"
        if about.get("dry_run")
        else f"random weights, {' + '.join(blocks) or 'no'} blocks"
    )
    words = [run, f"generated on {ours.get('device', 'nothing')}", f"kernels {about.get('kernels', 'unknown')}"]
    lines = [
        f"## {about.get('commit') or 'unknown commit'} on {gpu}",
        "",
        "; ".join(filter(None, [f"call {about.get('call', 'unknown')}", *words, ", ".join(software)])),
    ]
    return lines + [line for line in [about.get("clocks")] if line]


def merged(*reports: dict) -> dict:
    """The timings of several processes of the program as one report."""
    found = [report for report in reports if report]
    return (found[0] | {"timings": [timing for report in found for timing in report.get("timings", [])]}) if found else {}


def document(parts: dict) -> str:
    """Of what is there: every part may be missing."""

    def part(name: str) -> dict:
        content = parts.get(name)
        return content if isinstance(content, dict) else {}

    about, compare = part("about"), part("compare")
    ours = merged(part("time") or part("step"), part("time_large"))
    references = {" (portable kernels)": part("reference_portable"), "": part("reference")}
    torch_kernels = parts.get("torch_kernels")
    blocks = [
        heading(about, ours, compare),
        kernel_tables.operations(part("operations")),
        correctness(references, compare),
        times(about, ours, compare, kernel_tables.best_rate(torch_kernels, "product")),
        beside(ours, part("time_portable"), ("all kernels", "portable ones"), ["step", "decoder", "picture"]),
        lossy(ours, part("time_fp8"), part("fidelity")),
        loading(part("load")),
        ceilings(compare, torch_kernels),
        kernel_tables.kernels(parts.get("kernels"), torch_kernels),
        kernel_tables.profiled(part("kernel_times")),
        stages(part("stages"), compare),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(document(json.loads(parser.parse_args().file.read_text())))


if __name__ == "__main__":
    main()
