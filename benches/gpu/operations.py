"""The program's test of its operations against the CPU: what a process has printed before it ended, or was ended."""

import json
import math
from typing import NamedTuple

SANITIZER = "compute-sanitizer"
SANITIZER_SECONDS = 30.0
SANITIZER_LINES = 30


class Group(NamedTuple):
    """The records of one group, in the order in which they came."""

    operations: list[dict]
    skipped: list[str]
    # Why the others were not tried.
    stopped: list[str]

    def read(self, line: str) -> None:
        """Keeps a line if it is a record."""
        if not line.startswith("{"):
            return
        try:
            record = json.loads(line)
        except ValueError:
            return
        if "stopped" in record:
            left = record.get("not_tested") or []
            self.stopped.append(f"{record['stopped']}; {len(left)} operations were not tried")
        elif "skipped" in record:
            self.skipped.append(str(record["skipped"]))
        elif "operation" in record:
            self.operations.append(record)

    def record(self, outcome: str) -> dict:
        return {"outcome": outcome, "operations": self.operations, "skipped": self.skipped, "stopped": self.stopped}


def is_wrong(operation: dict) -> bool:
    """NaN is beyond any tolerance."""
    error, tolerance = (number(operation.get(key)) for key in ["error", "tolerance"])
    return bool(operation.get("failure")) or not error <= tolerance


def number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def is_faulty(group: dict) -> bool:
    return group["outcome"] != "done" or bool(group["stopped"]) or any(map(is_wrong, group["operations"]))


def outcome_of(group: Group, outcome: str) -> str:
    """How the stage went. The exit code is the number of faults."""
    wrong = sum(map(is_wrong, group.operations))
    if group.stopped and not outcome.startswith("stopped after"):
        return f"failed: {group.stopped[0]}"
    last = group.operations[-1]["operation"] if group.operations else "the start"
    if wrong and outcome in ["done", f"failed with exit code {wrong}"]:
        return f"failed: {wrong} of {len(group.operations)} operations are wrong"
    if outcome != "done":
        return f"{outcome}, after {last}"
    if not group.operations and not group.skipped:
        return "failed: no operation was tried"
    return f"skipped by the program: {group.skipped[0]}" if group.skipped else outcome


def sanitized(command: list[str]) -> list[str]:
    return [SANITIZER, "--tool", "memcheck", "--print-limit", "10", *command]


def first_lines(lines: list[str]) -> list[str]:
    """The sanitizer's own."""
    return [line for line in lines if line.startswith("=========")][:SANITIZER_LINES]
