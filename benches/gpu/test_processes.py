"""Ending processes: those that do not want to end, those that others have left, those that cannot be ended."""

import os
import signal
import sys
import time
import unittest
from pathlib import Path
from unittest import mock

import processes
from processes import Command, Limits

QUICK = Limits(grace_seconds=0.3, dead_seconds=2.0)
# Longer than any test.
FOREVER = "sleep 86399"


def is_running(process: int) -> bool:
    stat = processes.stat_of(Path(f"/proc/{process}"))
    return stat is not None and stat.state not in "ZX"


class Ending(unittest.TestCase):
    def setUp(self) -> None:
        processes.adopt_orphans()
        self.lines: list[str] = []

    def start(self, script: str) -> Command:
        command = Command(["sh", "-c", script], self.lines.append)
        self.addCleanup(self.kill, command)
        return command

    def kill(self, command: Command) -> None:
        command.end(Limits(0.0, 2.0))

    def wait_for_lines(self, count: int) -> list[int]:
        """The numbers of processes that the script has printed."""
        deadline = time.monotonic() + 10
        while len(self.lines) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertGreaterEqual(len(self.lines), count, "the script has not begun")
        return [int(line) for line in self.lines]

    def test_a_command_that_ends_has_its_code_and_its_lines(self) -> None:
        command = self.start("echo one; echo two >&2; read word; exit 3")
        self.assertEqual(os.getsid(command.pid), command.pid, "the terminal's signals are not for it")
        self.assertTrue(command.wait(10))
        self.assertEqual(command.end(QUICK), processes.Ended(3, []))
        self.assertEqual(self.lines, ["one", "two"])

    def test_what_a_command_leaves_is_ended_in_whatever_group_or_session_it_is(self) -> None:
        setsid = f"{sys.executable} -c 'import os; os.setsid(); os.execvp(\"sleep\", [\"sleep\", \"86399\"])'"
        group = f"{sys.executable} -c 'import os; os.setpgid(0, 0); os.execvp(\"sleep\", [\"sleep\", \"86399\"])'"
        command = self.start(f"{FOREVER} & echo $!; {group} & echo $!; {setsid} & echo $!; exec >/dev/null; sleep 0.3")
        left = self.wait_for_lines(3)
        self.assertTrue(command.wait(10))
        self.assertEqual(command.end(QUICK), processes.Ended(0, []))
        self.assertEqual([process for process in left if is_running(process)], [])

    def test_who_ignores_sigterm_is_killed_with_all_below(self) -> None:
        command = self.start(f"trap '' TERM; {FOREVER} & echo $!; echo $$; while :; do sleep 1; done")
        started = self.wait_for_lines(2)
        self.assertFalse(command.wait(0))
        ended = command.end(QUICK)
        self.assertEqual((ended.code, ended.left), (-signal.SIGKILL, []))
        self.assertEqual([process for process in started if is_running(process)], [])

    def test_who_puts_something_away_on_sigterm_has_the_time_for_it(self) -> None:
        command = self.start("trap 'echo 7; exit 5' TERM; echo 1; while :; do sleep 0.05; done")
        self.wait_for_lines(1)
        self.assertEqual(command.end(Limits(10.0, 2.0)).code, 5)
        self.assertEqual((self.lines[0], self.lines[-1]), ("1", "7"))

    def test_a_process_that_cannot_be_ended_is_given_up_and_holds_up_no_other(self) -> None:
        command = self.start(f"echo $$; exec {FOREVER}")
        stuck = self.wait_for_lines(1)
        with mock.patch.object(Command, "send", lambda *_: None):
            ended = command.end(Limits(0.1, 0.1))
        self.assertEqual((ended.code, ended.left), (None, stuck))
        other = self.start("true")
        self.assertTrue(other.wait(10))
        self.assertEqual(other.members(), [], "what is stuck does not count as the next one's")
        self.assertEqual(other.end(QUICK).left, [])
        os.kill(stuck[0], signal.SIGKILL)
        processes.STUCK.clear()
        command.process.wait(10)

    def test_a_program_that_is_started_by_a_stage_ends_with_it(self) -> None:
        """As `reference.py` starts it, which is killed before it can end it."""
        script = (
            "import signal, sys; sys.path.insert(0, sys.argv[1]); from processes import run_for\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print(1, flush=True)\n"
            "run_for(60, ['sh', '-c', 'echo $$ >&2; exec sleep 86399'], own_session=False)"
        )
        command = Command([sys.executable, "-c", script, str(Path(__file__).parent)], self.lines.append)
        self.addCleanup(self.kill, command)
        # Where the kernel does not know how.
        processes.adopt_orphans(False)
        self.addCleanup(processes.adopt_orphans)
        self.wait_for_lines(1)
        deadline = time.monotonic() + 10
        while len(command.members()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        members = command.members()
        self.assertEqual(len(members), 2)
        self.assertEqual(command.end(QUICK).left, [])
        self.assertEqual([process for process in members if is_running(process)], [])

    def test_a_program_that_takes_too_long_has_no_code(self) -> None:
        code, lines = processes.run_for(2.0, ["sh", "-c", f"echo early; {FOREVER}"], QUICK)
        self.assertEqual((code, lines), (None, ["early"]))
        self.assertIsNone(processes.output_of(["sh", "-c", "exit 1"], 10))
        self.assertIsNone(processes.output_of(["/nowhere/at-all"], 10))
        self.assertEqual(processes.output_of(["echo", " word "], 10), "word")
