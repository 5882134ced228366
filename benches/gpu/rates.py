#!/usr/bin/env python3
"""What torch reaches at the shapes of a step: its matrix products in bf16 and fp8, and its attention by FlashAttention 2 and by
cuDNN. The ceiling of all that consists of them, beside `fluxserve bench kernels`.

    python3 benches/gpu/rates.py --out torch_kernels.json [--like kernels.json] [--device cuda:0]
"""

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, HEAD = 24, 128
HIDDEN = HEADS * HEAD
# Inputs and outputs of a step's linear layers: q/k/v, both of the feed-forward, both of a single block.
LAYERS = [
    (HIDDEN, 3 * HIDDEN),
    (HIDDEN, 4 * HIDDEN),
    (4 * HIDDEN, HIDDEN),
    (HIDDEN, 7 * HIDDEN),
    (5 * HIDDEN, HIDDEN),
]
# In a row, so that launching is not timed.
LAUNCHES = 20
REPEATS = 3
E4M3_MAX = 448.0
BACKENDS = {"FlashAttention 2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


class Shape(NamedTuple):
    """Of a matrix product: rows, inputs, outputs; of attention: images, heads, tokens, width of a head."""

    kind: str
    numbers: tuple[int, ...]

    def flops(self) -> float:
        if self.kind == "attention":
            images, heads, tokens, head = self.numbers
            return 4.0 * images * heads * tokens * tokens * head
        rows, inputs, outputs = self.numbers
        return 2.0 * rows * inputs * outputs


def shapes(tokens: list[int]) -> list[Shape]:
    """Of one image of the largest size, and of eight of the smallest."""
    attention = [Shape("attention", (1, HEADS, max(tokens), HEAD)), Shape("attention", (8, HEADS, min(tokens), HEAD))]
    products = [Shape(kind, (max(tokens), *layer)) for kind in ["product", "fp8"] for layer in LAYERS]
    return attention + products


def like(file: Path) -> list[Shape]:
    """The shapes that the program has timed."""
    try:
        records = json.loads(file.read_text())
    except (OSError, ValueError):
        return []
    if isinstance(records, dict):
        records = records.get("kernels", [])
    return [shape for record in records if (shape := shape_of(record))]


def shape_of(record: dict) -> Shape | None:
    """Of `N × TOKENS tokens, HEADS heads of WIDTH` and of `ROWS rows, INPUTS to OUTPUTS`."""
    name = str(record.get("kernel", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", str(record.get("shape", ""))))
    if name.startswith("attention") and len(numbers) == 4:
        images, tokens, heads, head = numbers
        return Shape("attention", (images, heads, tokens, head))
    if name.startswith("linear") and len(numbers) == 3:
        return Shape("fp8" if "e4m3" in name else "product", numbers)
    return None


class Rates:
    """The records, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.deadline = time.monotonic() + arguments.budget_seconds
        self.dtype = getattr(torch, arguments.dtype)
        self.records: list[dict] = []

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.arguments.device, dtype=self.dtype)

    def wait(self) -> None:
        if self.arguments.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], flops: float) -> float:
        """Of one launch; the median of several rows of launches, after a row that is not counted."""
        launches = LAUNCHES if flops > 1e9 and self.arguments.device != "cpu" else 2
        taken = []
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            for _ in range(launches):
                run()
            self.wait()
            taken.append((time.perf_counter() - started) / launches)
        return statistics.median(taken[1:])

    def measure(self, shape: Shape, by: str, make: Callable[[], Callable[[], object]]) -> None:
        """Times what `make` prepares, unless there is no time or torch refuses it."""
        record: dict = {"kernel": f"{shape.kind}, {by}", "by": by, "kind": shape.kind, "shape": list(shape.numbers)}
        if time.monotonic() > self.deadline:
            record["failure"] = "no time"
        else:
            try:
                with torch.no_grad():
                    seconds = self.seconds(make(), shape.flops())
                record |= {"milliseconds": 1e3 * seconds, "tflops": shape.flops() / seconds / 1e12}
            except Exception as error:  # the others are measured all the same
                record["failure"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        self.records.append(record)
        print(f"{record['kernel']} {record['shape']}: {record.get('tflops', record.get('failure'))}", flush=True)
        self.arguments.out.write_text(json.dumps({"torch": torch.__version__, "kernels": self.records}, indent=1) + "\n")

    def attention(self, shape: Shape, backend: SDPBackend) -> Callable[[], object]:
        query, key, value = (self.random(*shape.numbers) for _ in range(3))

        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(query, key, value)

        return run

    def product(self, shape: Shape) -> Callable[[], object]:
        rows, inputs, outputs = shape.numbers
        x, weight = self.random(rows, inputs), self.random(outputs, inputs)
        return lambda: torch.nn.functional.linear(x, weight)

    def fp8(self, shape: Shape) -> Callable[[], object]:
        """With a scale for each row of both sides, already rounded."""
        rows, inputs, outputs = shape.numbers
        x, weight = (self.random(count, inputs).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn) for count in [rows, outputs])
        scales = [torch.ones(*size, device=self.arguments.device) for size in [(rows, 1), (1, outputs)]]
        return lambda: torch._scaled_mm(x, weight.t(), *scales, out_dtype=torch.bfloat16, use_fast_accum=True)

    def all_of(self, shape: Shape) -> None:
        if shape.kind == "attention":
            for by, backend in BACKENDS.items():
                self.measure(shape, by, lambda: self.attention(shape, backend))
        elif shape.kind == "product":
            self.measure(shape, "cuBLAS", lambda: self.product(shape))
        elif self.arguments.device != "cpu":
            self.measure(shape, "torch", lambda: self.fp8(shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--like", type=Path, help="what `fluxserve bench kernels` has written, for its shapes")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--tokens", type=lambda text: [int(count) for count in text.split(",")], default=[1536, 4608])
    parser.add_argument("--budget-seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    rates = Rates(arguments)
    given = like(arguments.like) if arguments.like else []
    for shape in dict.fromkeys(given or shapes(arguments.tokens)):
        rates.all_of(shape)
    # Not every device has every way.
    sys.exit(0 if any("tflops" in record for record in rates.records) else "nothing could be measured")


if __name__ == "__main__":
    main()
