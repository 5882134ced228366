"""Commands with a time limit, each in a session of its own. Nothing here waits without an end: a process that is stuck in a
driver outlives SIGKILL, and the others have to go on. What a command has started ends with it."""

import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Callable, NamedTuple

# Seconds for processes to end after SIGTERM, and after SIGKILL.
GRACE_SECONDS = 5.0
DEAD_SECONDS = 10.0
POLL_SECONDS = 0.02
# Seconds for the last lines of a process that has ended.
READER_SECONDS = 2.0
PR_SET_CHILD_SUBREAPER = 36

# The first processes of all commands that have not been ended yet, and the processes that could not be ended.
LEADERS: set[int] = set()
STUCK: set[int] = set()


class Limits(NamedTuple):
    """How long a process may take to end."""

    grace_seconds: float = GRACE_SECONDS
    dead_seconds: float = DEAD_SECONDS


# For what has nothing to put away.
AT_ONCE = Limits(grace_seconds=0.5, dead_seconds=2.0)


class Ended(NamedTuple):
    """The exit code of a command, negative for a signal and none if it still runs, and its processes that could not be
    ended."""

    code: int | None
    left: list[int]


class Stat(NamedTuple):
    """What `/proc` says of a process. Its memory is not read, since that waits for a process that is stuck."""

    state: str
    parent: int
    group: int
    session: int


def adopt_orphans(adopt: bool = True) -> None:
    """Makes this process the parent of descendants whose own parents have ended, so that they are found in any session."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)
    except (OSError, AttributeError):
        pass  # not Linux


def stat_of(folder: Path) -> Stat | None:
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        return Stat(fields[0], *(int(field) for field in fields[1:4]))
    except (OSError, ValueError, IndexError, TypeError):
        return None


def processes() -> dict[int, Stat]:
    """All that run, without those that have ended and are not yet waited for."""
    found = {int(folder.name): stat_of(folder) for folder in Path("/proc").glob("[0-9]*")}
    return {process: stat for process, stat in found.items() if stat and stat.state not in "ZX"}


class Command:
    """A running command. `on_line` gets each line of its output, from a thread. It has a session of its own, or else a group
    of its own in the caller's session, where whoever ends the caller finds it."""

    def __init__(
        self,
        words: list[str],
        on_line: Callable[[str], None],
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        own_session: bool = True,
    ) -> None:
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=own_session,
            process_group=None if own_session else 0,
        )
        self.pid = self.process.pid
        LEADERS.add(self.pid)
        self.reader = threading.Thread(target=self.read, args=[on_line], daemon=True)
        self.reader.start()

    def read(self, on_line: Callable[[str], None]) -> None:
        for line in self.process.stdout or []:
            on_line(line.rstrip("\n"))

    def has_ended(self) -> bool:
        """Leaves its exit code where it is, so that its number stays its own until all of its group has ended."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def members(self) -> list[int]:
        """Its processes: those of its group and its session, orphans that no other command can have left, and all below."""
        running = {process: stat for process, stat in processes().items() if process not in STUCK}
        found = {process for process, stat in running.items() if self.pid in (process, stat.group, stat.session)}
        found |= {process for process, stat in running.items() if stat.parent == os.getpid() and process not in LEADERS}
        while below := {process for process, stat in running.items() if stat.parent in found} - found:
            found |= below
        return sorted(found)

    def send(self, number: signal.Signals) -> None:
        others = [process for process, stat in processes().items() if stat.group != self.pid]
        send_to(os.killpg, self.pid, number)
        for process in set(others) & set(self.members()):
            send_to(os.kill, process, number)

    def is_gone(self, seconds: float) -> bool:
        """Whether none of its processes runs by then."""
        deadline = time.monotonic() + seconds
        while self.members() or not self.has_ended():
            reap_orphans()
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def end(self, limits: Limits = Limits()) -> Ended:
        """Ends what still runs of it, also after it has ended by itself: it may have left others."""
        left: list[int] = []
        if not self.is_gone(0):
            self.send(signal.SIGTERM)
            if not self.is_gone(limits.grace_seconds):
                self.send(signal.SIGKILL)
                if not self.is_gone(limits.dead_seconds):
                    left = self.members()
                STUCK.update(left)
        code = self.process.poll()
        LEADERS.discard(self.pid)
        reap_orphans()
        self.reader.join(timeout=READER_SECONDS)
        if self.process.stdout and not self.reader.is_alive():
            self.process.stdout.close()
        return Ended(code, left)


def reap_orphans() -> None:
    for folder in Path("/proc").glob("[0-9]*"):
        stat = stat_of(folder)
        if stat and stat.state == "Z" and stat.parent == os.getpid() and int(folder.name) not in LEADERS:
            try:
                os.waitpid(int(folder.name), os.WNOHANG)
            except ChildProcessError:
                pass


def send_to(send: Callable[[int, int], None], process: int, number: signal.Signals) -> None:
    try:
        send(process, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_all() -> None:
    """Without a wait, for when there is no time left."""
    for leader in list(LEADERS):
        send_to(os.killpg, leader, signal.SIGKILL)


def run_for(
    seconds: float, words: list[str], limits: Limits = Limits(), own_session: bool = True
) -> tuple[int | None, list[str]]:
    """The exit code of a command, none if it took longer, and the lines of its output."""
    lines: list[str] = []
    command = Command(words, lines.append, own_session=own_session)
    try:
        ended = command.wait(seconds)
    finally:
        code = command.end(limits).code
    return code if ended else None, lines


def output_of(words: list[str], seconds: float) -> str | None:
    """The output of a command, without outer blanks; none if it fails or takes longer."""
    try:
        code, lines = run_for(seconds, words, AT_ONCE)
    except OSError:
        return None
    return "\n".join(lines).strip() if code == 0 else None
