"""What the commands of a run are given: the program and the packages unpacked, libraries, caches, and where weights go."""

import importlib.util
import json
import lzma
import os
import re
import shutil
import sys
import tempfile
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import checkpoint
from processes import output_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The driver keeps what it has compiled for the device there. Without, each process pays some 20 s.
CUDA_CACHE = "/tmp/fluxserve-ptx"
CUDA_CACHE_BYTES = 4 << 30
# Beside the weights: the compared tensors, and a reserve.
RESERVE_BYTES = 2_000_000_000
# Of the memory that is there, for weights in it: the page cache and diffusers hold them a second time while they load.
MEMORY_SHARE = 0.5
SECONDS = 10.0
NAMES = ["name", "driver_version", "memory.total"]
CLOCKS = {
    "clocks.sm": "SM clock",
    "clocks.max.sm": "its maximum",
    "clocks.mem": "memory clock",
    "power.limit": "power limit",
    "temperature.gpu": "temperature, °C",
}
FIELDS = [*NAMES, "compute_cap", *CLOCKS]
# Prints the machine; `$1` is the program.
MACHINE = """
command -v nvidia-smi >/dev/null && timeout -k 1 10 nvidia-smi
uname -srm; nproc; free -g; df -h /dev/shm "${TMPDIR:-/tmp}"; ldd --version | head -n 1
env | grep -i -e cuda -e '^LD_' -e '^PYTHON'
command -v compute-sanitizer ncu nvcc gcc cc
ldd "$1"; sha256sum "$1"
true
"""


def unpacked(program: Path, scratch: Path) -> Path:
    """The program itself, where it comes compressed."""
    if program.suffix != ".xz":
        return program
    plain = scratch / program.stem
    with lzma.open(program) as packed, plain.open("wb") as file:
        shutil.copyfileobj(packed, file)
    plain.chmod(0o755)
    return plain


def unpacked_wheels(wheels: list[Path], scratch: Path) -> Path | None:
    """A folder for PYTHONPATH. A wheel without compiled parts is a zip of what pip would install."""
    if not wheels:
        return None
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "site")
    return scratch / "site"


def cuda_library_folders() -> list[str]:
    """CUDA's libraries from pip, for torch. The program searches them first."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return sorted(str(folder) for place in places for folder in place.glob("*/lib") if any(folder.glob("lib*.so*")))


def joined(*folders: str | None) -> str:
    return ":".join(folder for folder in folders if folder)


def environment(scratch: Path, site: Path | None) -> dict[str, str]:
    given = dict(os.environ)
    folders = joined(given.get("FLUXSERVE_CUDA_LIBRARIES"), *cuda_library_folders())
    own = {"FLUXSERVE_CUDA_LIBRARIES": folders} if folders else {}
    own |= {"LD_LIBRARY_PATH": joined(folders, given.get("LD_LIBRARY_PATH"))} if folders else {}
    own |= {"PYTHONPATH": joined(str(site), given.get("PYTHONPATH"))} if site else {}
    default = {
        "CUDA_CACHE_PATH": CUDA_CACHE,
        "CUDA_CACHE_MAXSIZE": str(CUDA_CACHE_BYTES),
        # Which kernels were chosen and why, and what memory was planned with.
        "FLUXSERVE_LOG_FILTER": "fluxserve=info",
        "HOME": str(scratch),
    }
    return default | given | own


def gpu_of(device: str) -> str | None:
    return device.removeprefix("cuda:") if device.startswith("cuda") else None


def commit_of(given: str | None) -> str | None:
    return given or output_of(["git", "-C", str(ROOT), "show", "-s", "--format=%h %cs"], SECONDS)


def gpu_now(gpu: str | None) -> dict[str, str]:
    """What `nvidia-smi` says of it, asked once: a lost device answers late or not at all."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader", "-i", str(gpu)]
    answer = output_of(command, SECONDS) if gpu is not None else None
    return dict(zip(FIELDS, (value.strip() for value in (answer or "").split(","))))


def about(arguments: Namespace, call: str) -> dict:
    """The machine, and what is run on it."""
    gpu = gpu_now(gpu_of(arguments.device))
    clocks = ", ".join(f"{words} {gpu[field]}" for field, words in CLOCKS.items() if field in gpu)
    return {
        "call": call,
        "commit": commit_of(arguments.commit),
        "dry_run": arguments.dry_run,
        "gpu": ", ".join(gpu[field] for field in NAMES) if len(gpu) == len(FIELDS) else None,
        "capability": gpu.get("compute_cap"),
        "clocks": f"before the first stage: {clocks}" if clocks else None,
        "cuda_libraries": cuda_library_folders(),
    }


# Weights


class Place(NamedTuple):
    """A folder for weights, and whether a file system was mounted on it."""

    folder: Path
    mounted: bool


def bytes_of(preset: str) -> int:
    return 2 * sum(tensor.elements() for tensors in checkpoint.tensors(preset).values() for tensor in tensors)


def transformer_of(folder: Path, preset: str) -> dict:
    """The configuration of the transformer that is there."""
    try:
        return json.loads((folder / "transformer/config.json").read_text())
    except (OSError, ValueError):
        return checkpoint.configurations(preset)["transformer"]


def memory_bytes(given_gigabytes: float | None) -> float:
    """The machine's memory; `given` where it grows with use and the kernel reports less."""
    if given_gigabytes:
        return given_gigabytes * 1e9
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return 1024.0 * int(found.group(1)) if found else 0.0
    except OSError:
        return 0.0


def free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def mount(folder: Path, size: int) -> bool:
    """Whether a file system in memory could be mounted: only root may."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return output_of(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], SECONDS) is not None


def unmount(folder: Path) -> None:
    if output_of(["umount", str(folder)], SECONDS) is None:
        output_of(["umount", "-l", str(folder)], SECONDS)


def place_of_weights(size: int, memory: float) -> Place | None:
    """In memory if there is enough, mounted by us if need be, else among the temporary files; none if they fit nowhere."""
    needed = size + RESERVE_BYTES
    shared, temporary = Path("/dev/shm"), Path(tempfile.gettempdir())
    if needed <= MEMORY_SHARE * memory:
        if free_bytes(shared) >= needed:
            return Place(shared / "fluxserve-weights", False)
        own = temporary / "fluxserve-weights-in-memory"
        if os.geteuid() == 0 and mount(own, needed):
            return Place(own / "weights", True)
    return Place(temporary / "fluxserve-weights", False) if free_bytes(temporary) >= needed else None


def python(script: str) -> list[str]:
    return [sys.executable, str(HERE / script)]
