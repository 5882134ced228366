#!/usr/bin/env python3
"""Measures fluxserve on this machine's GPU, in two calls: whether it is right, then how fast it is, with diffusers in the
same run.

    benches/gpu/run.sh --call one --binary PATH/TO/fluxserve --out FOLDER [--commit "HASH DATE"]
    benches/gpu/run.sh --call two --binary PATH/TO/fluxserve --out FOLDER [--commit "HASH DATE"]
    benches/gpu/run.sh --dry-run     # both calls with tiny weights on the CPU: their times mean nothing

Stages come in order of worth, each by itself: one that fails, hangs or runs out of time is ended with all that it has
started, and the others go on. After each stage FOLDER has what is known so far: all.json, results.md and run.log. The table
is printed last, also on SIGTERM. The exit code is 0 when every stage was done and all was right.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, NoReturn

import checkpoint
import environment
import operations
from processes import DEAD_SECONDS, GRACE_SECONDS, Command, Limits, adopt_orphans, kill_all
from results import Results
from stages import HOPPER, Plan, Stage
from watch import Watch
from weights import Weights

# Seconds for a whole call, if not given: what is left of the time of a lent machine is for its start and for the copies.
BUDGETS = {"one": 225.0, "two": 500.0}
# Reserved for the table, and for ending what does not end.
RESERVE_SECONDS = 10.0
LOOK_SECONDS = 0.1
# Of a stage's output; what is more is read and forgotten.
STAGE_CHARACTERS_MAX = 1 << 19
# The exit code of a run that was ended by a signal or a fault of its own.
STOPPED_CODE = 143


class Stopped(BaseException):
    """The run is to end now."""


def stop(number: int, _frame: object) -> NoReturn:
    on_signals(signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


def on_signals(action: Callable | signal.Handlers) -> None:
    for number in [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]:
        signal.signal(number, action)


class Run:
    """The stages of one call, their outcomes, and the time that is left."""

    def __init__(self, arguments: argparse.Namespace, call: str, scratch: Path) -> None:
        self.arguments, self.call, self.scratch = arguments, call, scratch
        self.deadline = time.monotonic() + (arguments.budget_seconds or BUDGETS[call]) - RESERVE_SECONDS
        self.limits = Limits(arguments.grace_seconds, arguments.dead_seconds)
        self.results = Results(arguments.out, scratch)
        self.say = self.results.say
        self.watch = Watch(environment.gpu_of(arguments.device), self.limits)
        self.weights = Weights(
            arguments.preset or preset_of(call, arguments.dry_run),
            arguments.weights,
            environment.memory_bytes(arguments.memory_gb),
            self.say,
        )
        self.kernels = arguments.kernels
        self.records: list[dict] = []
        self.command: Command | None = None
        self.heard = 0
        self.variables: dict[str, str] = {}

    def go(self) -> int:
        stopped = ""
        on_signals(stop)
        try:
            for stage in self.prepare():
                self.do(stage)
            on_signals(signal.SIG_IGN)
        except Stopped as error:
            stopped = f"ended by {error}"
            kill_all()
        except Exception as error:  # whatever it is, what is known is shown
            stopped = f"ended by {type(error).__name__}: {error}"
        on_signals(signal.SIG_IGN)
        return self.close(stopped)

    def prepare(self) -> list[Stage]:
        scratch, arguments = self.scratch, self.arguments
        self.watch.begin()
        program = environment.unpacked(arguments.binary, scratch)
        self.variables = environment.environment(scratch, environment.unpacked_wheels(arguments.wheel, scratch))
        self.results.parts["about"] = environment.about(arguments, self.call)
        plan = Plan(arguments, program, scratch, self.results.parts["about"]["capability"])
        self.results.save()
        found = plan.call_one() if self.call == "one" else plan.call_two()
        if any(stage.needs_weights and self.is_wanted(stage) for stage in found):
            self.weights.start(self.variables)
        return found

    def is_wanted(self, stage: Stage) -> bool:
        """The weights are, if a stage that needs them is."""
        if not stage.command and self.weights.was_started:
            return True
        return not self.arguments.only or stage.name in self.arguments.only

    def do(self, stage: Stage) -> None:
        started, self.heard = time.monotonic(), 0
        record = {"stage": stage.name, "outcome": "did not end before the run was ended", "seconds": 0.0}
        self.records.append(record)
        try:
            if reason := self.reason_against(stage):
                record["outcome"] = reason
            else:
                seconds = min(self.limit_of(stage), self.left())
                self.watch.begin()
                record |= self.execute(stage, seconds)
        finally:
            record["seconds"] = round(time.monotonic() - started, 1)
        self.say(f"=== {stage.name}: {record['outcome']}, {record['seconds']} s, {self.left():.0f} s left")
        self.keep()

    def limit_of(self, stage: Stage) -> float:
        return dict(self.arguments.limit).get(stage.name, stage.seconds_max)

    def hear(self, line: str) -> None:
        """A line of a stage."""
        self.heard += len(line) + 1
        if self.heard <= STAGE_CHARACTERS_MAX:
            self.say(line)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def reason_against(self, stage: Stage) -> str:
        if not self.is_wanted(stage):
            return "left out, as was asked for"
        if stage.left_out:
            return stage.left_out
        if stage.is_only_for_hopper and self.kernels == "portable":
            return "left out: the kernels for Hopper are not used"
        if stage.needs_weights and stage.command and not self.weights.are_ready():
            return "skipped: there are no weights"
        needed = min(stage.seconds_min, self.limit_of(stage))
        return "" if self.left() >= needed else f"skipped: {max(self.left(), 0):.0f} s were left, it needs {needed:.0f}"

    def execute(self, stage: Stage, seconds: float) -> dict:
        if not stage.command:
            outcome = self.weights.wait(seconds, self.variables, self.limits)
            return {"outcome": outcome}
        filled = {"{kernels}": self.kernels, "{seconds}": f"{max(seconds - self.limits.grace_seconds, 1):.0f}"}
        filled["{weights}"] = str(self.weights.folder) if stage.needs_weights else ""
        words = stage.command
        for name, value in filled.items():
            words = [word.replace(name, value) for word in words]
        self.say(f"\n=== {stage.name}: {' '.join(words).splitlines()[0]}")
        if not stage.group:
            return {"outcome": self.outcome_of(words, seconds, self.hear, stage.environment)} | self.watch.reading()
        return self.try_group(stage, words, seconds)

    def outcome_of(
        self, words: list[str], seconds: float, on_line: Callable[[str], None], variables: dict[str, str]
    ) -> str:
        """How a command went. Ends all that it has started."""
        try:
            self.command = command = Command(words, on_line, self.variables | variables, environment.ROOT)
        except OSError as error:
            return f"failed: {error}"
        deadline = time.monotonic() + seconds
        while not (ended := command.wait(LOOK_SECONDS)) and time.monotonic() < deadline:
            self.watch.look_at(command.pid)
        code, left = command.end(self.limits)
        self.command = None
        outcome = "done" if code == 0 else f"failed with exit code {code}"
        if not ended:
            outcome = f"stopped after {seconds:.0f} s"
        return f"{outcome}; could not be ended: {left}" if left else outcome

    def try_group(self, stage: Stage, words: list[str], seconds: float) -> dict:
        """One group of operations. What comes before a fault counts."""
        group = operations.Group([], [], [])

        def read(line: str) -> None:
            self.hear(line)
            group.read(line)

        groups = self.results.parts.setdefault("operations", {})
        groups[stage.group] = group.record("was running")
        how = self.outcome_of(words, seconds, read, stage.environment)
        groups[stage.group] = record = group.record(how)
        outcome = operations.outcome_of(group, how)
        if operations.is_faulty(record) or outcome.startswith("failed"):
            if stage.group in HOPPER and self.kernels != "portable":
                self.kernels = "portable"
                outcome += "; from here on the portable kernels are used"
            if how.startswith("failed") and group.operations and shutil.which(operations.SANITIZER):
                record["sanitizer"] = self.sanitize(words)
        return {"outcome": outcome} | self.watch.reading()

    def sanitize(self, words: list[str]) -> list[str]:
        seconds = min(operations.SANITIZER_SECONDS, self.left() / 4)
        lines: list[str] = []
        outcome = self.outcome_of(operations.sanitized(words), seconds, lines.append, {})
        found = [*operations.first_lines(lines), outcome]
        for line in found:
            self.say(line)
        return found

    def keep(self) -> None:
        parts = self.results.parts
        parts["stages"] = {"stages": self.records}
        parts.setdefault("about", {})["kernels"] = self.kernels
        parts["about"]["preset"] = self.weights.preset
        if self.weights.are_ready():
            parts["about"]["transformer"] = environment.transformer_of(self.weights.folder, self.weights.preset)
        self.results.save()

    def close(self, stopped: str) -> int:
        """Shows the table first, since there may be no time for more. Then ends what still runs."""
        if stopped:
            self.records.append({"stage": "the run", "outcome": stopped, "seconds": 0.0})
        self.keep()
        text = self.results.table()
        self.say("\n" + text)
        hurry = Limits(0.0, self.limits.dead_seconds) if stopped else self.limits
        if self.command:
            self.command.end(hurry)
        self.watch.limits = hurry
        self.watch.stop()
        self.weights.stop(hurry)
        if not self.arguments.keep_weights:
            self.weights.remove()
        self.results.close()
        if stopped:
            return STOPPED_CODE
        outcomes = [record["outcome"] for record in self.records]
        was_done = all(outcome == "done" or outcome.startswith(("left out", "skipped by the program")) for outcome in outcomes)
        return 0 if was_done and "**" not in text else 1


def limit(text: str) -> tuple[str, float]:
    name, _, seconds = text.rpartition("=")
    return name, float(seconds)


def preset_of(call: str, is_dry: bool) -> str:
    return "tiny" if is_dry else {"one": "shallow", "two": "dev"}[call]


def built_program() -> Path:
    places = [environment.ROOT / "target" / profile / "fluxserve" for profile in ["release", "debug"]]
    return next((place for place in places if place.exists()), places[0])


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--call", choices=list(BUDGETS), help="one: is it right? two: how fast is it? [default with --dry-run: both]")
    add("--binary", type=Path, default=built_program(), help="the program, or it as .xz [default: as cargo built it]")
    add("--wheel", type=Path, action="append", default=[], help="a pure Python package that is missing; can be repeated")
    add("--out", type=Path, default=environment.ROOT / "target/gpu", help="for log and results [default: target/gpu]")
    add("--commit", help="hash and date of what was built, where git cannot say")
    add("--weights", type=Path, help="for the weights, 34 GB, or a checkpoint [default: in memory, else in $TMPDIR]")
    add("--keep-weights", action="store_true", help="for another run, which then finds them")
    add("--memory-gb", type=float, help="the machine's memory, where it grows with use [default: what the kernel says]")
    add("--preset", choices=sorted(checkpoint.PRESETS), help="[default: shallow in call one, dev in call two]")
    add("--device", help="[default: cuda:0]")
    add("--kernels", choices=["auto", "portable"], default="auto", help="portable: without those for Hopper")
    add("--budget-seconds", type=float, help="for all of a call [default: 225 for one, 500 for two]")
    add("--only", action="append", help="do this stage; can be repeated")
    add("--dry-run", action="store_true", help="with tiny weights on the CPU")
    add("--limit", type=limit, action="append", default=[], help="STAGE=SECONDS instead of its own; can be repeated")
    add("--grace-seconds", type=float, default=GRACE_SECONDS, help="between SIGTERM and SIGKILL [default: 5]")
    add("--dead-seconds", type=float, default=DEAD_SECONDS, help="after SIGKILL [default: 10]")
    arguments = parser.parse_args(words)
    if not arguments.call and not arguments.dry_run:
        parser.error("name a call: --call one, then --call two")
    arguments.device = arguments.device or ("cpu" if arguments.dry_run else "cuda:0")
    arguments.binary, arguments.out = arguments.binary.resolve(), arguments.out.resolve()
    arguments.weights = arguments.weights.resolve() if arguments.weights else None
    if not arguments.binary.is_file():
        parser.error(f"{arguments.binary} is not there: build it, or name it with --binary")
    return arguments


def main(words: list[str]) -> int:
    arguments = parse_arguments(words)
    adopt_orphans()
    codes, out = [], arguments.out
    for call in [arguments.call] if arguments.call else list(BUDGETS):
        arguments.out = out if arguments.call else out / call
        scratch = Path(tempfile.mkdtemp(prefix="fluxserve-gpu-"))
        try:
            codes.append(Run(arguments, call, scratch).go())
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if codes[-1] == STOPPED_CODE:
            break
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
