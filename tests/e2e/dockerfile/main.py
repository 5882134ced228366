"""Builds a Dockerfile without Docker, and checks the image. scripts/dockerfile-test.sh prepares what it needs.

    python3 tests/e2e/dockerfile/main.py --base FOLDER --folder FOLDER [--program PROGRAM] [--libraries]
        [--build-arg NAME=VALUE ...]
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

from build import Builder  # noqa: E402
from checks import Checks, Run  # noqa: E402
from endurance import faults  # noqa: E402
from parse import Fault  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="root folder of the machine's distribution")
    parser.add_argument("--folder", type=Path, required=True, help="where the stages are made; emptied by the caller")
    parser.add_argument("--program", type=Path, help="a program in place of what `cargo build` makes")
    parser.add_argument("--libraries", action="store_true", help="fetch CUDA's libraries, as without --program")
    parser.add_argument("--build-arg", type=lambda text: tuple(text.split("=", 1)), action="append", default=[])
    parser.add_argument("--file", type=Path, default=ROOT / "Dockerfile.cuda")
    parser.add_argument("--context", type=Path, default=ROOT, help="the folder that COPY copies from")
    return parser.parse_args()


def main():
    options, started = arguments(), time.monotonic()
    os.umask(0o022)
    for argument, placeholder in (("SOURCE_COMMIT", "%H"), ("SOURCE_DATE_EPOCH", "%ct")):
        if not any(name == argument for name, _ in options.build_arg):
            git = ["git", "log", "-1", f"--format={placeholder}"]
            said = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            options.build_arg.append((argument, said.strip()))
    builder = Builder(options.file, options.folder, options.base, options)
    try:
        image = builder.build()
        print(f"the image is made, {time.monotonic() - started:.0f} s")
        Checks(builder, image, Run.of(options.file.read_text()), options.folder).all()
    except (Fault, RuntimeError) as error:
        sys.exit(f"error: {options.file.name}: {error}")
    print(f"{len(faults)} faults, {time.monotonic() - started:.0f} s")
    sys.exit(1 if faults else 0)


main()
