#!/usr/bin/env python3
"""Measures fluxserve on this machine's GPU: whether it is right, how fast it is, and diffusers in the same run.

    benches/gpu/run.sh --binary PATH/TO/fluxserve --out FOLDER [--commit "HASH DATE"]
    benches/gpu/run.sh --dry-run     # every stage with tiny weights on the CPU: its times mean nothing

Stages come in order of worth, each by itself: one that fails or runs out of time is reported, and the others go on.
The table is printed last and written to FOLDER/results.md. The exit code is 0 when every stage was done and all was
right.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import checkpoint
import make_weights
import table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODEL = "black-forest-labs/FLUX.1-dev"
PROMPT = "a red fox asleep on a stack of books near the window, warm afternoon light"
STAGES = ["the machine", "reference", "weights", "stages", "time", "time fp8", "compare", "load", "time portable", "fidelity"]
# The oldest devices with the program's fp8 GEMMs.
FP8_CAPABILITY = 9.0
# Reserved for the table.
RESERVE_SECONDS = 10.0
# Weights, compared tensors, and a reserve.
WEIGHTS_BYTES = 36e9
# Seconds for a process to end on request.
GRACE_SECONDS = 5.0
WATCH_MILLISECONDS = 100
BUSY_PERCENT = 50
# Placeholder in a command for the seconds of its stage.
SECONDS = "SECONDS"


class Stage(NamedTuple):
    name: str
    command: list[str]
    # The most seconds it may take, and the fewest with which to begin it.
    seconds_max: float
    seconds_min: float


class Watch:
    """A stage's use of the machine: peak memory, on the GPU or else of the process, and the GPU's clock while it was busy."""

    def __init__(self, process: subprocess.Popen, gpu: str | None) -> None:
        self.process, self.peak, self.clocks = process, 0, []
        self.stopped = threading.Event()
        self.smi = follow_gpu(gpu) if gpu is not None else None
        follow = self.follow_process if gpu is None else self.follow_gpu
        self.thread = threading.Thread(target=follow, daemon=True)
        self.thread.start()

    def follow_gpu(self) -> None:
        for line in self.smi.stdout if self.smi else []:
            try:
                used, clock, busy = (int(value) for value in line.split(","))
            except ValueError:
                continue
            self.peak = max(self.peak, used)
            if busy >= BUSY_PERCENT:
                self.clocks.append(clock)

    def follow_process(self) -> None:
        while not self.stopped.wait(WATCH_MILLISECONDS / 1000):
            try:
                status = Path(f"/proc/{self.process.pid}/status").read_text()
            except OSError:
                return
            lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
            self.peak = max([self.peak] + [int(line.split()[1]) // 1024 for line in lines])

    def stop(self) -> dict:
        self.stopped.set()
        if self.smi:
            self.smi.terminate()
            self.smi.wait()
        self.thread.join(timeout=GRACE_SECONDS)
        clock = {"busy_sm_clock_mhz": int(statistics.median(self.clocks))} if self.clocks else {}
        return {"peak_mebibytes": self.peak, "peak_on": "GPU" if self.smi else "CPU"} | clock


def follow_gpu(gpu: str) -> subprocess.Popen | None:
    """One line each time: MiB in use, MHz, percent busy."""
    command = [
        "nvidia-smi",
        "--query-gpu=memory.used,clocks.sm,utilization.gpu",
        "--format=csv,noheader,nounits",
        "-i",
        gpu,
        "-lms",
        str(WATCH_MILLISECONDS),
    ]
    if shutil.which("stdbuf"):
        command = ["stdbuf", "-oL", *command]
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def nvidia_smi(fields: str, gpu: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", gpu]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def cuda_library_folders() -> list[str]:
    """CUDA's libraries from pip, for torch. The program searches them first."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return sorted(str(folder) for place in places for folder in place.glob("*/lib") if any(folder.glob("lib*.so*")))


def environment() -> dict[str, str]:
    folders = [folder for folder in [os.environ.get("FLUXSERVE_CUDA_LIBRARIES"), *cuda_library_folders()] if folder]
    own = {"FLUXSERVE_CUDA_LIBRARIES": ":".join(folders)} if folders else {}
    return os.environ | own


def commit_of(arguments: argparse.Namespace) -> str | None:
    if arguments.commit:
        return arguments.commit
    command = ["git", "-C", str(ROOT), "show", "-s", "--format=%h %cs"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def about(arguments: argparse.Namespace) -> dict:
    """The machine, and the versions of what was run on it."""
    gpu = None if arguments.dry_run else arguments.device.removeprefix("cuda:")
    clocks = (
        nvidia_smi("clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu", gpu) if gpu is not None else None
    )
    fields = ["SM clock", "its maximum", "memory clock", "power limit", "temperature, °C"]
    words = ", ".join(f"{field} {value.strip()}" for field, value in zip(fields, (clocks or "").split(",")) if clocks)
    return {
        "commit": commit_of(arguments),
        "dry_run": arguments.dry_run,
        "gpu": nvidia_smi("name,driver_version,memory.total", gpu) if gpu is not None else None,
        "clocks": f"before the first stage: {words}" if words else None,
        "transformer": checkpoint.configurations(arguments.preset)["transformer"],
        "cuda_libraries": cuda_library_folders(),
    }


class Run:
    """The stages, their outcomes, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.deadline = time.monotonic() + arguments.budget_seconds - RESERVE_SECONDS
        self.records: list[dict] = []
        self.log = (arguments.out / "run.log").open("w", buffering=1)
        self.environment = environment()

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.log.write(line + "\n")

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def do(self, stage: Stage) -> None:
        record = {"stage": stage.name, "outcome": "", "seconds": 0.0}
        if self.arguments.only and stage.name not in self.arguments.only:
            record["outcome"] = "left out, as was asked for"
        elif stage.name in ["time fp8", "fidelity"] and (reason := without_fp8(self.arguments)):
            record["outcome"] = reason
        elif self.left() < stage.seconds_min:
            record["outcome"] = f"skipped: {max(self.left(), 0):.0f} s were left, it needs {stage.seconds_min:.0f}"
        else:
            seconds = min(stage.seconds_max, self.left())
            command = [str(int(seconds - GRACE_SECONDS)) if word == SECONDS else word for word in stage.command]
            self.say(f"\n=== {stage.name}: {' '.join(command)}")
            started = time.monotonic()
            record |= self.execute(command, seconds)
            record["seconds"] = round(time.monotonic() - started, 1)
        self.say(f"=== {stage.name}: {record['outcome']}, {record['seconds']} s, {self.left():.0f} s left")
        self.records.append(record)
        (self.arguments.out / "stages.json").write_text(json.dumps({"stages": self.records}, indent=2) + "\n")

    def execute(self, command: list[str], seconds: float) -> dict:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            return {"outcome": f"failed: {error}"}
        gpu = None if self.arguments.dry_run else self.arguments.device.removeprefix("cuda:")
        watch = Watch(process, gpu)
        reader = threading.Thread(target=self.copy_output, args=[process], daemon=True)
        reader.start()
        try:
            code = process.wait(timeout=seconds)
            outcome = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {seconds:.0f} s"
            self.end(process)
        reader.join(timeout=GRACE_SECONDS)
        return {"outcome": outcome} | watch.stop()

    def copy_output(self, process: subprocess.Popen) -> None:
        for line in process.stdout or []:
            self.say(line.rstrip("\n"))

    def end(self, process: subprocess.Popen) -> None:
        process.terminate()
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def options(values: dict[str, object]) -> list[str]:
    return [str(word) for pair in values.items() for word in pair]


def stages(arguments: argparse.Namespace, left: float) -> list[Stage]:
    """The most useful ones first; `left` is the time for all of them."""
    dry, out = arguments.dry_run, arguments.out
    program = [str(arguments.binary), "bench"]
    where = options({"--model": f"{MODEL}={arguments.weights}", "--device": arguments.device})
    laid_open = arguments.scratch / "stages.safetensors"
    # In bf16, diffusers passes a guidance of 3.5 to its model as 3504 thousandths. 4 is exact.
    image = {"--prompt": PROMPT, "--steps": 28, "--guidance": 4, "--seed": 42}
    image |= {"--size": "128x128" if dry else "1024x1024", "--out": laid_open}
    timing: dict[str, object] = {"--repeat": 1 if dry else 3, "--budget-seconds": SECONDS}
    timing |= {"--sizes": "64x64,96x64,128x128" if dry else "512x512,768x768,1024x1024,2048x2048"}
    timed = timing | {"--json": out / "time.json"}
    compared = {"--weights": arguments.weights, "--stages": laid_open, "--dtype": "float32" if dry else "bfloat16"}
    compared |= timing | {"--device": arguments.device, "--out": out / "compare.json"}
    portable: dict[str, object] = {"--kernels": "portable", "--repeat": 1 if dry else 3, "--budget-seconds": SECONDS}
    portable |= {"--sizes": "128x128" if dry else "1024x1024", "--counts": "1", "--steps": "28"}
    portable |= {"--json": out / "time_portable.json"}
    lossy: dict[str, object] = {"--precision": "fp8", "--repeat": 1 if dry else 3, "--budget-seconds": SECONDS}
    lossy |= {"--sizes": "64x64,128x128" if dry else "512x512,1024x1024", "--counts": "1,4", "--steps": "28"}
    lossy |= {"--json": out / "time_fp8.json"}
    near: dict[str, object] = {"--prompt": PROMPT, "--seeds": "0,1", "--guidance": 4, "--json": out / "fidelity.json"}
    near |= {"--size": "128x128", "--steps": 4} if dry else {"--size": "1024x1024", "--steps": 28}
    generated = {"--binary": arguments.binary, "--device": arguments.device, "--out": out / "reference.json"}
    made = [str(arguments.weights), "--preset", arguments.preset]
    return [
        Stage("the machine", ["uname", "-srm"] if dry else ["nvidia-smi"], 15, 0),
        Stage("reference", script("reference.py") + options(generated), 90, 10),
        Stage("weights", script("make_weights.py") + made, 200, 10),
        Stage("stages", [*program, "stages", *where, *options(image)], 100, 15),
        Stage("time", [*program, "time", *where, *options(timed), "--mixed"], min(200, left / 2), 20),
        Stage("time fp8", [*program, "time", *where, *options(lossy)], min(60, left / 4), 20),
        # Mostly for the compiler; the stages after it are short.
        Stage("compare", script("compare.py") + options(compared), min(200, left / 2), 20),
        Stage("load", [*program, "load", *where, "--json", str(out / "load.json")], 60, 15),
        Stage("time portable", [*program, "time", *where, *options(portable)], min(60, left / 6), 15),
        Stage("fidelity", [*program, "fidelity", *where, *options(near), "--precision", "fp8"], 80, 20),
    ]


def without_fp8(arguments: argparse.Namespace) -> str | None:
    """Why fp8 cannot be measured, if so."""
    if arguments.dry_run:
        return None
    capability = nvidia_smi("compute_cap", arguments.device.removeprefix("cuda:"))
    try:
        has_it = float(capability or "") >= FP8_CAPABILITY
    except ValueError:
        # The program reports it.
        has_it = True
    return None if has_it else f"left out: compute capability {capability} has no fp8 with a scale for each row"


def script(name: str) -> list[str]:
    return [sys.executable, str(HERE / name)]


def weights_folder() -> Path:
    """In memory if twice as much is free, else among the temporary files."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > WEIGHTS_BYTES and available_memory() > 2 * WEIGHTS_BYTES:
        return memory / "fluxserve-weights"
    return Path(tempfile.gettempdir()) / "fluxserve-weights"


def available_memory() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0.0


def built_program() -> Path:
    places = [ROOT / "target" / profile / "fluxserve" for profile in ["release", "debug"]]
    return next((place for place in places if place.exists()), places[0])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=built_program(), help="the program [default: as cargo built it]")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "target/gpu", help="for logs and results [default: target/gpu]"
    )
    parser.add_argument(
        "--weights", type=Path, help="for the weights, 34 GB [default: /dev/shm if it has the space, else $TMPDIR]"
    )
    parser.add_argument("--keep-weights", action="store_true", help="for another run, which then finds them")
    parser.add_argument("--device", help="[default: cuda:0]")
    parser.add_argument("--commit", help="hash and date of what was built, where git cannot say")
    parser.add_argument("--budget-seconds", type=float, default=540.0, help="for all of it [default: 540]")
    parser.add_argument("--only", action="append", choices=STAGES, help="do this stage; can be repeated")
    parser.add_argument("--dry-run", action="store_true", help="with tiny weights on the CPU")
    arguments = parser.parse_args()
    arguments.preset = "tiny" if arguments.dry_run else "dev"
    arguments.device = arguments.device or ("cpu" if arguments.dry_run else "cuda:0")
    arguments.binary, arguments.out = arguments.binary.resolve(), arguments.out.resolve()
    arguments.weights = (
        arguments.weights or (arguments.out / "weights" if arguments.dry_run else weights_folder())
    ).resolve()
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if not arguments.binary.is_file():
        sys.exit(f"{arguments.binary} is not there: build it, or name it with --binary")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ["about", "reference", "time", "load", "time_portable", "time_fp8", "fidelity", "compare", "stages"]:
        (arguments.out / f"{name}.json").unlink(missing_ok=True)
    run = Run(arguments)
    (arguments.out / "about.json").write_text(json.dumps(about(arguments), indent=2) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        arguments.scratch = Path(scratch)
        for stage in stages(arguments, run.left()):
            run.do(stage)
    if make_weights.is_ours(arguments.weights) and not arguments.keep_weights:
        shutil.rmtree(arguments.weights, ignore_errors=True)
    text = table.document(arguments.out)
    (arguments.out / "results.md").write_text(text)
    run.say("\n" + text)
    was_done = all(record["outcome"] == "done" or record["outcome"].startswith("left out") for record in run.records)
    sys.exit(0 if was_done and "**" not in text else 1)


if __name__ == "__main__":
    main()
