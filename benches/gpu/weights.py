"""The weights of a run: made in the background while correctness is looked at, smaller where the real depth does not fit."""

import shutil
from pathlib import Path
from typing import Callable

import environment
import make_weights
from processes import Command, Limits

# Seconds for the smaller ones, once those of the real depth have failed.
SMALLER_SECONDS = 60.0
# Real widths, few blocks.
SMALLER = "shallow"
# Keeps the processor for the stages that run meanwhile.
NICE = ["nice", "-n", "5"]


class Weights:
    """A checkpoint in the making."""

    def __init__(self, preset: str, given: Path | None, memory: float, say: Callable[[str], None]) -> None:
        self.preset, self.given, self.memory, self.say = preset, given, memory, say
        self.place: environment.Place | None = None
        self.command: Command | None = None
        self.outcome = ""
        self.was_started = False

    @property
    def folder(self) -> Path:
        if self.place is None:
            raise ValueError("there is no place for weights")
        return self.place.folder

    def has_a_smaller_one(self) -> bool:
        return environment.bytes_of(self.preset) > environment.bytes_of(SMALLER)

    def start(self, variables: dict[str, str]) -> None:
        """Chooses the place, and begins."""
        self.outcome, self.was_started = "", True
        needed = environment.bytes_of(self.preset)
        self.place = environment.Place(self.given, False) if self.given else None
        self.place = self.place or environment.place_of_weights(needed, self.memory)
        if self.place is None and self.has_a_smaller_one():
            self.say(f"weights: the {needed / 1e9:.0f} GB of `{self.preset}` fit nowhere, so `{SMALLER}` is made")
            self.preset = SMALLER
            return self.start(variables)
        if self.place is None:
            self.outcome = f"failed: {needed / 1e9:.0f} GB fit nowhere: name a folder with --weights"
            return None
        words = [*NICE, *environment.python("make_weights.py"), str(self.folder), "--preset", self.preset]
        self.say(f"weights, in the background: {' '.join(words)}")
        try:
            self.command = Command(words, lambda line: self.say(f"weights: {line}"), variables, environment.ROOT)
        except OSError as error:
            self.outcome = f"failed: {error}"
        return None

    def wait(self, seconds: float, variables: dict[str, str], limits: Limits) -> str:
        """How it went. Where those of the real depth failed, the smaller ones are made instead."""
        if self.command:
            ended = self.command.wait(seconds)
            code = self.command.end(limits).code
            self.command = None
            self.outcome = "done" if ended and code == 0 else f"failed with exit code {code}"
            if not ended:
                self.outcome = f"stopped after {seconds:.0f} s"
        if self.outcome == "done" or self.given or not self.has_a_smaller_one():
            return self.outcome
        self.say(f"weights: {self.outcome}, so `{SMALLER}` is made instead")
        self.remove()
        first, self.preset = self.outcome, SMALLER
        self.start(variables)
        return f"{self.wait(SMALLER_SECONDS, variables, limits)}, but not with the real depth, which {first}"

    def are_ready(self) -> bool:
        return self.outcome.startswith("done")

    def stop(self, limits: Limits) -> None:
        if self.command:
            self.command.end(limits)
            self.command = None

    def remove(self) -> None:
        """Only what was made here."""
        if self.place is None:
            return
        if make_weights.is_ours(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.place.mounted:
            environment.unmount(self.folder.parent)
            shutil.rmtree(self.folder.parent, ignore_errors=True)
