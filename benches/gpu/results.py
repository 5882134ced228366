"""What a run has found out so far: merged into one file and a table after each stage, so that nothing is lost when the run is
ended, and few files come back. A full disk costs the files, not the run: the table is also printed."""

import json
import threading
from pathlib import Path
from typing import TextIO

import table

LOG_BYTES_MAX = 4 << 20
# What stages write into the scratch folder, each as `NAME.json`.
WRITTEN = [
    "reference",
    "reference_portable",
    "step",
    "time",
    "time_portable",
    "time_fp8",
    "time_large",
    "load",
    "kernels",
    "torch_kernels",
    "kernel_times",
    "compare",
    "fidelity",
]


def opened(file: Path) -> TextIO:
    return file.open("w", buffering=1)


def parsed(text: str) -> dict | list | None:
    """JSON, or one record a line."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()] or None
    except ValueError:
        return None


class Results:
    """The parts of the table, and the log."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        self.parts: dict = {}
        self.complaint = ""
        self.lock = threading.Lock()
        self.log: TextIO | None = None
        self.log_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in ["all.json", "results.md"]:
                (folder / old).unlink(missing_ok=True)
            self.log = opened(folder / "run.log")
        except OSError as error:
            self.say(f"{folder}: {error}")

    def say(self, line: str) -> None:
        """Prints a line, and keeps it in the log."""
        with self.lock:
            try:
                print(line, flush=True)
            except (OSError, ValueError):
                pass  # nobody reads it
            self.log_bytes += len(line) + 1
            if self.log and self.log_bytes <= LOG_BYTES_MAX:
                try:
                    self.log.write(line + "\n")
                except (OSError, ValueError):
                    self.log_bytes = LOG_BYTES_MAX + 1

    def collect(self) -> None:
        """Merges what the stages have written. One that is half written leaves what was there."""
        for name in WRITTEN:
            try:
                content = parsed((self.scratch / f"{name}.json").read_text())
            except OSError:
                continue
            if content is not None:
                self.parts[name] = content

    def save(self) -> None:
        self.collect()
        try:
            replace(self.folder / "all.json", json.dumps(self.parts, indent=1) + "\n")
            replace(self.folder / "results.md", self.table())
        except OSError as error:
            if str(error) != self.complaint:
                self.complaint = str(error)
                self.say(f"the results are not in {self.folder}: {error}")

    def table(self) -> str:
        """Whatever a stage has written, the run goes on."""
        try:
            return table.document(self.parts)
        except Exception as error:
            return f"**no table**: {type(error).__name__}: {error}\n"

    def close(self) -> None:
        if self.log:
            try:
                self.log.close()
            except (OSError, ValueError):
                pass
            self.log = None


def replace(file: Path, text: str) -> None:
    """In one step: the file that was there, or the new one."""
    new = file.with_name(file.name + ".new")
    try:
        with opened(new) as output:
            output.write(text)
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)
        raise
