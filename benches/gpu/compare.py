#!/usr/bin/env python3
"""diffusers with the same weights: whether it computes what `bench stages` has written, and how long it takes.

    python3 benches/gpu/compare.py --weights DIR --stages FILE --out compare.json [--device cuda:0]

Every part is on its own: what goes wrong in one is written down, and the others go on. Parts come in order of worth;
one that would not end in time is left out.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, NamedTuple

import torch
from checkpoint import CLIP_LENGTH
from safetensors import safe_open

if TYPE_CHECKING:
    from diffusers_flux import Flux

# diffusers' name of torch's attention by cuDNN.
CUDNN = "_native_cudnn"
# Seconds after which no further repetition begins.
PART_SECONDS_MAX = 8.0
# Fewest seconds for compiling one double and one single block for one size.
COMPILE_SECONDS = 45.0
PICTURE_STEPS = [28]
COUNTS = [4, 8]
MEGAPIXEL = 1024 * 1024
PARTS = ["correctness", "times"]
# Token ids for a prompt, where the program wrote none.
TEXT_TOKENS = 512


class Given(NamedTuple):
    """The tensors that the program wrote."""

    tensors: dict[str, torch.Tensor]
    prompt: str
    width: int
    height: int
    steps: int
    guidance: float


def read_stages(file: Path, device: str) -> Given:
    with safe_open(file, "pt", device=device) as stages:
        tensors = {name: stages.get_tensor(name) for name in stages.keys()}
        data = stages.metadata()
    return Given(
        tensors, data["prompt"], int(data["width"]), int(data["height"]), int(data["steps"]), float(data["guidance"])
    )


def distance(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """The distance of a from b."""
    a, b = a.double().flatten(), b.double().flatten()
    return {"relative_l2": float((a - b).norm() / b.norm()), "max": float((a - b).abs().max())}


class Comparison:
    """The parts, their outcomes, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.deadline = time.monotonic() + arguments.budget_seconds
        self.flux: Flux
        self.dtype = getattr(torch, arguments.dtype)
        self.read: Given | None = None
        self.results: dict = {
            "torch": torch.__version__,
            "device": arguments.device,
            "dtype": arguments.dtype,
            "parts": {},
            "distances": {},
            "timings": [],
            "compiled": [],
            "cudnn": [],
        }

    def part(self, name: str, run: Callable[[], None], seconds: float = 0.0) -> None:
        """Runs a part that takes at least so long."""
        started = time.monotonic()
        outcome = "done"
        if not self.has_time_for(seconds):
            outcome = "no time"
        else:
            try:
                with torch.no_grad():
                    run()
            except Exception as error:  # the other parts run all the same
                outcome = f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        elapsed = time.monotonic() - started
        self.results["parts"][name] = {"outcome": outcome, "seconds": round(elapsed, 2)}
        print(f"{name}: {outcome}, {elapsed:.1f} s", flush=True)
        self.save()

    def wait(self) -> None:
        if self.arguments.device != "cpu":
            torch.cuda.synchronize()

    def has_time_for(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self.deadline

    def save(self) -> None:
        self.arguments.out.write_text(json.dumps(self.results, indent=2) + "\n")

    # Correctness

    def load(self) -> None:
        # Imported here, so that torch can be measured without diffusers.
        import diffusers
        import transformers
        from diffusers_flux import Flux

        self.results |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
        started = time.monotonic()
        self.flux = Flux(self.arguments.weights, self.arguments.device, self.dtype)
        self.wait()
        self.results["load_seconds"] = time.monotonic() - started

    def read_stages(self) -> None:
        self.read = read_stages(self.arguments.stages, self.arguments.device)

    @property
    def given(self) -> Given:
        if self.read is None:
            raise ValueError(f"{self.arguments.stages} could not be read")
        return self.read

    def compare(self, name: str, module: torch.nn.Module, run: Callable[[], torch.Tensor]) -> None:
        """Ours from theirs, and both from theirs in f32, the exact result."""
        ours = self.given.tensors[name].float()
        theirs = run().float().reshape(ours.shape)
        distances = {"from_diffusers": distance(ours, theirs)}
        if self.dtype != torch.float32:
            exact = self.flux.in_f32(module, run)
            if exact is not None:
                exact = exact.reshape(ours.shape)
                distances["from_f32"] = distance(ours, exact)
                distances["diffusers_from_f32"] = distance(theirs, exact)
        self.results["distances"][name] = distances
        words = [f"{key} {value['relative_l2']:.2e}" for key, value in distances.items()]
        print(f"  {name}: {', '.join(words)}", flush=True)

    def tokens(self) -> None:
        from diffusers_flux import tokenize

        clip, t5 = (self.given.tensors[name].tolist() for name in ["clip_ids", "t5_ids"])
        theirs = tokenize(self.arguments.weights, self.given.prompt, len(t5))
        self.results["same_tokens"] = {"clip": clip == theirs[0], "t5": t5 == theirs[1]}
        print(f"  the same token ids: {self.results['same_tokens']}")

    def text(self) -> None:
        clip, t5 = (self.given.tensors[name].tolist() for name in ["clip_ids", "t5_ids"])
        pipeline = self.flux.pipeline
        self.compare("clip_pooled", pipeline.text_encoder, lambda: self.flux.pooled(clip))
        self.compare("t5_embeds", pipeline.text_encoder_2, lambda: self.flux.sequence(t5))

    def step(self) -> None:
        """From our noise and our embeddings, so that only the transformer is compared."""
        given = self.given
        inputs = {
            "latents": given.tensors["latents_init"][None],
            "sequence": given.tensors["t5_embeds"][None],
            "pooled": given.tensors["clip_pooled"],
            "image_ids": self.flux.image_ids(given.width, given.height),
        }
        tokens = inputs["latents"].shape[1]
        sigmas = self.flux.sigmas(tokens, given.steps)
        self.results["distances"]["sigmas"] = {"from_diffusers": distance(given.tensors["sigmas"], sigmas)}
        scheduler = self.flux.pipeline.scheduler

        def velocity() -> torch.Tensor:
            return self.flux.velocity(inputs, float(sigmas[0]), given.guidance)

        def stepped() -> torch.Tensor:
            self.flux.sigmas(tokens, given.steps)  # the scheduler counts its steps
            return scheduler.step(velocity().float(), scheduler.timesteps[0], inputs["latents"], return_dict=False)[0]

        self.compare("velocity_first", self.flux.pipeline.transformer, velocity)
        self.compare("latents_first", self.flux.pipeline.transformer, stepped)

    def decoder(self) -> None:
        latents = self.given.tensors["decoded_latents"][None]
        self.compare("pixels", self.flux.pipeline.vae, lambda: self.flux.pixels(latents))

    # Speed

    def seconds(self, run: Callable[[], object], warm_up: Callable[[], object] | None = None) -> dict:
        """Once to warm up, then several times."""
        (warm_up or run)()
        self.wait()
        taken: list[float] = []
        while len(taken) < self.arguments.repeat and (
            not taken or sum(taken) < PART_SECONDS_MAX and self.has_time_for(taken[-1])
        ):
            started = time.perf_counter()
            run()
            self.wait()
            taken.append(time.perf_counter() - started)
        return {
            "median_seconds": statistics.median(taken),
            "min_seconds": min(taken),
            "max_seconds": max(taken),
            "repeats": len(taken),
        }

    def time(self, part: str, sizes: list[list[int]], run: Callable[[], object], steps: int | None = None) -> None:
        timing = {"part": part, "pictures": sizes, "steps": steps}
        try:
            # The parts of a complete image are warmed up by then.
            timing |= {"outcome": "measured"} | self.seconds(run, (lambda: None) if steps else None)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            timing |= {"outcome": "does_not_fit", "reason": str(error).splitlines()[0]}
        self.results["timings"].append(timing)
        print(f"  {part} {sizes} {steps or ''}: {timing.get('median_seconds', timing['outcome'])}", flush=True)

    def text_tokens(self) -> int:
        return len(self.ids()[1])

    def ids(self) -> tuple[list[int], list[int]]:
        """CLIP's and T5's; any suit for timing."""
        if self.read is None:
            return [1] * CLIP_LENGTH, [1] * TEXT_TOKENS
        return self.given.tensors["clip_ids"].tolist(), self.given.tensors["t5_ids"].tolist()

    def time_text(self) -> None:
        clip, t5 = self.ids()
        self.time("text", [], lambda: (self.flux.pooled(clip), self.flux.sequence(t5)))

    def time_step(self, size: list[int], count: int = 1) -> None:
        inputs = self.flux.random_inputs(*size, count, self.text_tokens())
        self.time("step", [size] * count, lambda: self.flux.velocity(inputs, 0.5, 4.0))

    def time_decoder(self, size: list[int]) -> None:
        width, height = size
        channels = self.flux.pipeline.vae.config.latent_channels
        latents = torch.randn(1, channels, height // 8, width // 8, device=self.arguments.device)
        postprocess = self.flux.pipeline.image_processor.postprocess
        self.time("decoder", [size], lambda: self.flux.pixels(latents))
        self.time("finish", [size], lambda: postprocess(self.flux.pixels(latents).detach(), output_type="pil"))

    def time_image(self, size: list[int], steps: int) -> None:
        self.flux.image(*size, 1, self.ids())
        on_gpu = self.arguments.device != "cpu"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.time("picture", [size], lambda: self.flux.image(*size, steps, self.ids()), steps)
        if on_gpu:
            self.results["picture_peak_mebibytes"] = torch.cuda.max_memory_reserved() >> 20

    def time_variant(self, name: str, size: list[int]) -> None:
        inputs = self.flux.random_inputs(*size, 1, self.text_tokens())
        timing = {"part": "step", "pictures": [size], "steps": None, "outcome": "measured"}
        timing |= self.seconds(lambda: self.flux.velocity(inputs, 0.5, 4.0))
        self.results[name].append(timing)
        print(f"  {name} step {size}: {timing['median_seconds']}", flush=True)

    def time_compiled(self, size: list[int]) -> None:
        """Block by block, which takes a fraction of the time and gives nearly the same speed."""
        self.flux.pipeline.transformer.compile_repeated_blocks(fullgraph=True)
        self.time_variant("compiled", size)

    def time_with_cudnn(self, size: list[int]) -> None:
        """By default torch takes FlashAttention 2, and on Hopper cuDNN's attention is faster."""
        transformer = self.flux.pipeline.transformer
        if not hasattr(transformer, "set_attention_backend"):
            raise NotImplementedError("this version of diffusers cannot choose its attention")
        transformer.set_attention_backend(CUDNN)
        try:
            self.time_variant("cudnn", size)
        finally:
            transformer.set_attention_backend("native")


def largest_size(sizes: list[list[int]]) -> list[int]:
    """Up to a megapixel, as the program chooses it."""
    up_to_a_megapixel = [size for size in sizes if size[0] * size[1] <= MEGAPIXEL]
    return max(up_to_a_megapixel or sizes, key=lambda size: size[0] * size[1])


def parse_size(text: str) -> list[int]:
    return [int(side) for side in text.split("x")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--stages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=PARTS, help=f"[default: {','.join(PARTS)}]"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--sizes",
        type=lambda text: [parse_size(size) for size in text.split(",")],
        default=[[512, 512], [768, 768], [1024, 1024], [2048, 2048]],
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--budget-seconds", type=float, default=300.0)
    return parser.parse_args()


def look_at_correctness(comparison: Comparison) -> None:
    comparison.part("read stages", comparison.read_stages)
    comparison.part("step", comparison.step)
    comparison.part("text", comparison.text)
    comparison.part("decoder", comparison.decoder)
    comparison.part("tokens", comparison.tokens)


def look_at_times(comparison: Comparison, sizes: list[list[int]]) -> None:
    by_pixels = sorted(sizes, key=lambda size: size[0] * size[1])
    largest = largest_size(sizes)
    for size in by_pixels:
        comparison.part(f"time step {size}", lambda: comparison.time_step(size))
    comparison.part("time text", comparison.time_text)
    for size in by_pixels:
        comparison.part(f"time decoder {size}", lambda: comparison.time_decoder(size))
    if comparison.arguments.device != "cpu":
        comparison.part("time with cuDNN's attention", lambda: comparison.time_with_cudnn(largest))
    for steps in PICTURE_STEPS:
        comparison.part(f"time image, {steps} steps", lambda: comparison.time_image(largest, steps), seconds=10)
    for count in COUNTS:
        for size in [size for size in by_pixels if size[0] * size[1] <= MEGAPIXEL]:
            comparison.part(f"time {count} × {size}", lambda: comparison.time_step(size, count), seconds=5)
    comparison.part("time compiled", lambda: comparison.time_compiled(largest), COMPILE_SECONDS)


def main() -> None:
    arguments = parse_arguments()
    comparison = Comparison(arguments)
    comparison.part("load", comparison.load)
    if comparison.results["parts"]["load"]["outcome"] != "done":
        sys.exit("without the pipeline there is nothing to compare")
    if "correctness" in arguments.parts:
        look_at_correctness(comparison)
    if "times" in arguments.parts:
        look_at_times(comparison, arguments.sizes)
    failed = [name for name, part in comparison.results["parts"].items() if part["outcome"].startswith("failed")]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
