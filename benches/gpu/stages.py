"""The stages of both calls, the most useful ones first. Words in braces are filled in when a stage begins: `{weights}`,
`{kernels}`, and `{seconds}`, the time it has."""

import shutil
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from environment import MACHINE, python

MODEL = "black-forest-labs/FLUX.1-dev"
PROMPT = "a red fox asleep on a stack of books near the window, warm afternoon light"
# In this order: what every device has, then Hopper's kernels, each of which may end its process.
GROUPS = ["portable", "attention-hopper", "convolution-hopper", "doubled-hopper", "products", "autoencoder", "fp8"]
# The kernels that `--kernels portable` does without.
HOPPER = {group for group in GROUPS if group.endswith("-hopper")}
AS_ASKED = "left out: the portable kernels were asked for"
# The oldest devices with the program's fp8 GEMMs.
FP8_CAPABILITY = 8.9
# Kernels of a step; the others are of loading.
KERNELS = "regex:attention|convolution|group|rotate|residual|layer_norm|gelu|quantize|nvjet|gemm|cutlass|softmax|rms"


class Stage(NamedTuple):
    """A command, and what the run has to know of it."""

    name: str
    command: list[str]
    # The most seconds it may take, and the fewest with which to begin it.
    seconds_max: float
    seconds_min: float = 5.0
    # The group of operations that it tries.
    group: str = ""
    # Why it is left out, if so.
    left_out: str = ""
    environment: dict[str, str] = {}
    needs_weights: bool = False
    is_only_for_hopper: bool = False


def options(values: dict[str, object]) -> list[str]:
    return [str(word) for pair in values.items() for word in pair]


class Plan:
    """What the stages have in common."""

    def __init__(self, arguments: Namespace, program: Path, scratch: Path, capability: str | None) -> None:
        self.arguments, self.program, self.scratch = arguments, str(program), scratch
        self.dry = arguments.dry_run
        self.repeat = 1 if self.dry else 3
        self.without_fp8 = reason_without_fp8(capability)

    def json(self, name: str) -> Path:
        return self.scratch / f"{name}.json"

    def bench(self, what: str, values: dict[str, object], kernels: str = "{kernels}") -> list[str]:
        where = {"--model": MODEL + "={weights}", "--device": self.arguments.device, "--kernels": kernels}
        return [self.program, "bench", what, *options(where | values)]

    def time(self, output: str, sizes: str, tiny: str, values: dict[str, object], kernels: str = "{kernels}") -> list[str]:
        common = {"--sizes": tiny if self.dry else sizes, "--repeat": self.repeat, "--budget-seconds": "{seconds}"}
        return self.bench("time", common | values | {"--json": self.json(output)}, kernels)

    def machine(self) -> Stage:
        return Stage("the machine", ["sh", "-c", MACHINE, "sh", self.program], 20)

    def operations(self, first_seconds: float, seconds: float) -> list[Stage]:
        """Each group in a process of its own: a fault ends the process's use of the device."""
        return [
            Stage(
                f"operations: {group}",
                [self.program, "doctor", "--device", self.arguments.device, "--operations", group, "--json"],
                seconds if number else first_seconds,
                group=group,
                left_out=AS_ASKED if self.arguments.kernels == "portable" and group in HOPPER else "",
                # So that a fault is reported where it happens. The first process also fills the driver's cache.
                environment={} if number else {"CUDA_LAUNCH_BLOCKING": "1"},
            )
            for number, group in enumerate(GROUPS)
        ]

    def reference(self, kernels: str) -> Stage:
        is_portable = kernels == "portable"
        name = "reference_portable" if is_portable else "reference"
        values = {"--binary": self.program, "--device": self.arguments.device, "--kernels": kernels, "--count": 3}
        command = python("reference.py") + options(values | {"--out": self.json(name)})
        words = "reference, portable kernels" if is_portable else "reference"
        return Stage(words, command, 40, 10, is_only_for_hopper=not is_portable)

    def weights(self, seconds: float) -> Stage:
        return Stage("weights", [], seconds, needs_weights=True)

    def stages(self) -> Stage:
        # In bf16, diffusers passes a guidance of 3.5 to its model as 3504 thousandths. 4 is exact.
        image = {"--prompt": PROMPT, "--steps": 28, "--guidance": 4, "--seed": 42, "--out": self.laid_open}
        image |= {"--size": "128x128" if self.dry else "1024x1024"}
        return Stage("stages", self.bench("stages", image), 45, 10, needs_weights=True)

    @property
    def laid_open(self) -> Path:
        return self.scratch / "stages.safetensors"

    def compare(self, parts: str, seconds: float) -> Stage:
        values = {"--weights": "{weights}", "--stages": self.laid_open, "--parts": parts}
        values |= {"--dtype": "float32" if self.dry else "bfloat16", "--device": self.arguments.device}
        values |= {"--sizes": "64x64,128x128" if self.dry else "512x512,1024x1024", "--repeat": self.repeat}
        values |= {"--budget-seconds": "{seconds}", "--out": self.json("compare")}
        return Stage("compare", python("compare.py") + options(values), seconds, 25, needs_weights=True)

    def kernels(self) -> list[Stage]:
        device = {"--device": self.arguments.device}
        ours, theirs = self.json("kernels"), self.json("torch_kernels")
        own = [self.program, "bench", "kernels", *options(device | {"--kernels": "{kernels}", "--out": ours})]
        values = {"--like": ours, "--out": theirs, "--budget-seconds": "{seconds}"} | device
        values |= {"--dtype": "float32" if self.dry else "bfloat16", "--tokens": "24,40" if self.dry else "1536,4608"}
        return [Stage("kernels", own, 30, 10), Stage("torch's kernels", python("rates.py") + options(values), 45, 15)]

    def kernel_times(self) -> Stage:
        """A step's kernels one by one, under NVIDIA's profiler."""
        inner = {"--prompt": "a fox", "--steps": 28, "--size": "1024x1024", "--out": self.scratch / "profiled.safetensors"}
        values = {"--kernels": KERNELS, "--out": self.json("kernel_times"), "--seconds": "{seconds}"}
        command = [*python("kernel_times.py"), *options(values), "--", *self.bench("stages", inner)]
        reason = "" if shutil.which("ncu") else "left out: `ncu` is not installed"
        return Stage("kernel times", command, 50, 25, left_out=reason, needs_weights=True)

    def call_one(self) -> list[Stage]:
        """Whether it is right: with few blocks of the real width."""
        step = {"--counts": "1", "--steps": "4"}
        return [
            self.machine(),
            *self.operations(60, 20),
            self.reference("portable"),
            self.reference("{kernels}"),
            self.weights(60),
            self.stages(),
            self.compare("correctness", 70),
            Stage("step", self.time("step", "1024x1024", "128x128", step), 30, 10, needs_weights=True),
        ]

    def call_two(self) -> list[Stage]:
        """How fast it is: at the real depth."""
        many = {"--counts": "1,4,8", "--steps": "28"}
        few = {"--counts": "1", "--steps": "28"}
        lossy = {"--precision": "fp8", "--counts": "1,4", "--steps": "28"}
        large = {"--counts": "1", "--steps": "1"}
        near: dict[str, object] = {"--prompt": PROMPT, "--seeds": "0", "--guidance": 4, "--json": self.json("fidelity")}
        near |= {"--size": "128x128", "--steps": 4} if self.dry else {"--size": "1024x1024", "--steps": 28}
        apart = {"--prompt": PROMPT, "--steps": 28, "--size": "128x128" if self.dry else "1024x1024"}
        apart |= {"--offload": "text", "--out": self.scratch / "offloaded.safetensors"}
        sizes, tiny = "512x512,1024x1024", "64x64,128x128"
        fp8 = self.without_fp8
        return [
            self.machine(),
            *self.operations(40, 15),
            self.weights(120),
            self.stages(),
            Stage("time", [*self.time("time", sizes, tiny, many), "--mixed"], 90, 20, needs_weights=True),
            Stage(
                "time, portable kernels",
                self.time("time_portable", "1024x1024", "128x128", few, "portable"),
                35,
                15,
                needs_weights=True,
                is_only_for_hopper=True,
            ),
            Stage("time, fp8", self.time("time_fp8", sizes, tiny, lossy), 50, 20, left_out=fp8, needs_weights=True),
            Stage("load", self.bench("load", {"--json": self.json("load")}), 35, 15, needs_weights=True),
            *self.kernels(),
            self.compare("correctness,times", 140),
            self.kernel_times(),
            # Alone, since it may not fit.
            Stage("time, 2048", self.time("time_large", "2048x2048", "128x128", large), 40, 20, needs_weights=True),
            Stage("text encoder apart", self.bench("stages", apart), 40, 15, needs_weights=True),
            Stage(
                "fidelity",
                [*self.bench("fidelity", near), "--precision", "fp8"],
                60,
                25,
                left_out=fp8,
                needs_weights=True,
            ),
        ]


def reason_without_fp8(capability: str | None) -> str:
    try:
        has_it = capability is None or float(capability) >= FP8_CAPABILITY
    except ValueError:
        # The program reports it.
        has_it = True
    return "" if has_it else f"left out: compute capability {capability} has no fp8 with a scale for each row"
