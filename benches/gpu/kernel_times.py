#!/usr/bin/env python3
"""The time that each kernel of a command takes, by NVIDIA's profiler: the kernels one by one, so without overlap.

    python3 benches/gpu/kernel_times.py --out kernel_times.json --kernels REGEX -- COMMAND...
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

METRIC = "gpu__time_duration.sum"
MILLISECONDS = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0, "s": 1e3, "second": 1e3}
NAME_CHARACTERS = 90


def totals(lines: list[str]) -> list[dict]:
    """By kernel and grid, the longest in all first."""
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[tuple[str, str], dict] = {}
    for row in csv.DictReader(lines[start:]):
        if row.get("Metric Name") != METRIC:
            continue
        key = (row["Kernel Name"][:NAME_CHARACTERS], row["Grid Size"])
        total = found.setdefault(key, {"kernel": key[0], "grid": key[1], "launches": 0, "milliseconds": 0.0})
        total["launches"] += 1
        total["milliseconds"] += float(row["Metric Value"].replace(",", "")) * MILLISECONDS[row["Metric Unit"]]
    return sorted(found.values(), key=lambda total: -total["milliseconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kernels", required=True, help="a filter, as `ncu -k` has it")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    log = arguments.out.with_suffix(".csv")
    # The clocks stay as they are: the machine may not be ours.
    ncu = ["ncu", "--clock-control", "none", "--metrics", METRIC, "-k", arguments.kernels, "--csv", "--log-file", str(log)]
    try:
        # In this process's group, so that whoever ends this ends it, too.
        code = subprocess.call([*ncu, *arguments.command], timeout=arguments.seconds)
    except subprocess.TimeoutExpired:
        code = f"none within {arguments.seconds:.0f} s"
    found = totals(log.read_text(errors="replace").splitlines() if log.is_file() else [])
    arguments.out.write_text(json.dumps({"exit_code": code, "kernels": found}, indent=1) + "\n")
    for total in found[:20]:
        print(f"{total['milliseconds']:9.3f} ms {total['launches']:5} × {total['kernel']} {total['grid']}")
    sys.exit(0 if code == 0 and found else f"ncu: exit code {code}, {len(found)} kernels")


if __name__ == "__main__":
    main()
