"""Whole runs with programs that fail in every way: each time a table comes out, what was known is kept, and no process is
left."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import stages

HERE = Path(__file__).parent
RECORD = '{"group":"%s","operation":"%s","error":0.001,"tolerance":0.01,"milliseconds":1,"failure":null}'
QUICK = ["--grace-seconds", "0.3", "--dead-seconds", "2"]
RUN = "import sys; sys.path.insert(0, sys.argv.pop(1)); import environment, results, run\n"
TABLE = "| what | away from diffusers |"
SMI = "NVIDIA Fake, 580.0, 143771 MiB, 9.0, 1000 MHz, 1980 MHz, 3201 MHz, 700.00 W, 30"


def says(group: str, *names: str) -> str:
    return "".join(f"echo '{RECORD % (group, name)}'\n" for name in names)


class Runs(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out = self.folder / "out"
        (self.folder / "bin").mkdir()
        (self.folder / "checkpoint").mkdir()
        (self.folder / "checkpoint/model_index.json").touch()
        # Its name is in the command of whatever runs for long, so that it is found.
        self.forever = str(self.folder / "forever")
        self.fake("forever", "exec -a \"$0\" sleep 86399", folder="", shell="bash")

    def fake(self, name: str, script: str, folder: str = "bin", shell: str = "sh") -> None:
        file = self.folder / folder / name
        file.write_text(f"#!/usr/bin/env {shell}\n{script}\n")
        file.chmod(0o755)

    def program(self, **scripts: str) -> None:
        """A program that does this for a group of operations, or for a command of `bench`. Other groups are right."""
        cases = [f"*'{name.replace('_', '-')} '*)\n{script}\n;;" for name, script in scripts.items()]
        cases += [f"*'--operations {group} '*)\n{says(group, 'one', 'two')};;" for group in stages.GROUPS]
        self.fake("program", 'case "$* " in\n' + "\n".join(cases) + "\nesac", folder="")

    def words(self, *words: str, device: str = "cpu") -> list[str]:
        program = ["--call", "one", "--binary", str(self.folder / "program"), "--out", str(self.out)]
        given = ["--device", device, "--weights", str(self.folder / "checkpoint"), "--preset", "tiny"]
        return [*program, *given, *QUICK, *words]

    def start(self, *words: str, device: str = "cpu", before: str = "") -> subprocess.Popen:
        environment = os.environ | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", f"{RUN}{before}\nsys.exit(run.main(sys.argv[1:]))", str(HERE)]
        started = subprocess.Popen(
            [*command, *self.words(*words, device=device)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(started.kill)
        return started

    def run_all(self, *words: str, device: str = "cpu", before: str = "") -> str:
        """What it prints. A run that does not end is killed, and has no table."""
        started = self.start(*words, device=device, before=before)
        try:
            text, _ = started.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            started.kill()
            self.fail(f"the run does not end: {started.communicate()[0]}")
        self.code = started.returncode
        self.assertIn(TABLE, text)
        self.assertEqual(self.left(), [])
        return text

    def left(self) -> list[str]:
        """The commands that still run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder) in words:
                found.append(words)
        return found

    def parts(self) -> dict:
        return json.loads((self.out / "all.json").read_text())

    def outcome(self, stage: str) -> str:
        return next(record["outcome"] for record in self.parts()["stages"]["stages"] if record["stage"] == stage)

    def operations(self, *groups: str) -> list[str]:
        return [word for group in groups for word in ["--only", f"operations: {group}"]]

    def test_a_run_without_faults(self) -> None:
        self.program()
        text = self.run_all(*self.operations(*stages.GROUPS))
        self.assertEqual(self.code, 0, text)
        self.assertIn("| fp8 | 2 of 2 | two, 10% | right |", text)
        self.assertEqual(sorted(file.name for file in self.out.iterdir()), ["all.json", "results.md", "run.log"])

    def test_a_stage_that_hangs_is_ended_and_hopper_is_left_alone_from_there(self) -> None:
        used = self.folder / "used"
        self.program(attention_hopper=f"{says('attention-hopper', 'short')}{self.forever}", stages=f'echo "$*" >{used}')
        limit = ["--limit", "operations: attention-hopper=2"]
        self.run_all(*self.operations("attention-hopper", "fp8"), "--only", "stages", *limit)
        self.assertEqual(
            self.outcome("operations: attention-hopper"),
            "stopped after 2 s, after short; from here on the portable kernels are used",
        )
        self.assertEqual(self.outcome("operations: fp8"), "done")
        self.assertEqual(len(self.parts()["operations"]["attention-hopper"]["operations"]), 1)
        self.assertIn("--kernels portable", used.read_text())
        self.assertEqual(self.code, 1)

    def test_a_group_that_dies_is_looked_at_by_the_sanitizer_and_keeps_what_it_said(self) -> None:
        self.fake("compute-sanitizer", 'i=0; while [ $i -lt 99 ]; do echo "========= $i"; echo other; i=$((i + 1)); done')
        self.program(convolution_hopper=f"{says('convolution-hopper', 'small')}kill -SEGV $$")
        self.run_all(*self.operations("convolution-hopper", "products"))
        outcome = self.outcome("operations: convolution-hopper")
        self.assertEqual(
            outcome, "failed with exit code -11, after small; from here on the portable kernels are used"
        )
        found = self.parts()["operations"]["convolution-hopper"]
        self.assertEqual([operation["operation"] for operation in found["operations"]], ["small"])
        self.assertEqual(found["sanitizer"], [f"========= {line}" for line in range(30)] + ["done"])
        self.assertEqual(self.outcome("operations: products"), "done")

    def test_a_group_that_is_not_for_hopper_changes_no_kernels(self) -> None:
        self.program(products="echo no such option; exit 2")
        self.run_all(*self.operations("products"))
        self.assertEqual(self.outcome("operations: products"), "failed with exit code 2, after the start")
        self.assertEqual(self.parts()["about"]["kernels"], "auto")

    def test_a_stage_that_ignores_sigterm_is_killed(self) -> None:
        self.program(products=f"trap '' TERM; {self.forever} & while :; do sleep 1; done")
        self.run_all(*self.operations("products", "fp8"), "--limit", "operations: products=1")
        self.assertTrue(self.outcome("operations: products").startswith("stopped after 1 s"))
        self.assertEqual(self.outcome("operations: fp8"), "done")

    def test_a_stage_that_talks_without_end_is_ended_and_fills_nothing(self) -> None:
        self.program(products="exec yes 'it goes on and on and on'", fp8=says("fp8", "two"))
        text = self.run_all(*self.operations("products", "fp8"), "--limit", "operations: products=1")
        self.assertTrue(self.outcome("operations: products").startswith("stopped after 1 s"))
        self.assertIn("| fp8 | 1 of 1 | two, 10% | right |", text)
        self.assertLess(len(text), 1 << 20)

    def test_what_a_stage_leaves_is_ended_before_the_next(self) -> None:
        running = self.folder / "running"
        look = f"grep -l {self.forever} /proc/[0-9]*/cmdline >{running} 2>/dev/null; {says('fp8', 'one')}"
        self.program(products=f"{self.forever} & setsid {self.forever} & {says('products', 'one')}", fp8=look)
        self.run_all(*self.operations("products", "fp8"))
        self.assertEqual(self.outcome("operations: products"), "done")
        # grep sees its own command and that of the program's shell does not have the name.
        seen = [line for line in running.read_text().splitlines() if "self" not in line]
        self.assertLessEqual(len(seen), 1, seen)

    def test_a_full_disk_costs_the_files_and_not_the_run(self) -> None:
        self.program()
        full = "results.opened = lambda file: (file.touch(), open('/dev/full', 'w', buffering=1))[1]"
        text = self.run_all(*self.operations("portable", "fp8"), before=full)
        self.assertEqual(text.count("No space left on device"), 1, "said once")
        self.assertIn("| fp8 | 2 of 2 | two, 10% | right |", text)
        self.assertEqual([file.name for file in self.out.iterdir()], ["run.log"], "nothing half written is left")

    def test_nvidia_smi_that_ignores_sigterm_is_killed_and_was_listened_to(self) -> None:
        loop = f"trap '' TERM; while :; do echo '2048, 1700, 90'; sleep 0.05; done & exec {self.forever}"
        self.fake("nvidia-smi", f'case "$*" in *-lms*) {loop};; *query*) echo "{SMI}";; esac')
        self.program(portable=f"sleep 1\n{says('portable', 'one')}")
        text = self.run_all(*self.operations("portable"), device="cuda:0")
        self.assertIn("on NVIDIA Fake, 580.0, 143771 MiB\n", text)
        self.assertIn("SM clock 1000 MHz, its maximum 1980 MHz", text)
        self.assertIn("2,048 MiB on the GPU at most, SM clock 1700 MHz while busy", text)

    def test_nvidia_smi_that_never_answers_holds_nothing_up(self) -> None:
        self.fake("nvidia-smi", f"trap '' TERM; {self.forever}")
        self.program()
        before = "environment.SECONDS = 0.2"
        text = self.run_all(*self.operations("portable"), device="cuda:0", before=before)
        self.assertIn("on no GPU\n", text)
        self.assertEqual(self.outcome("operations: portable"), "done")

    def stopped(self, *words: str, device: str) -> str:
        """What a run prints that gets SIGTERM while a stage hangs, which does not end on SIGTERM."""
        self.fake("apart", f"{says('attention-hopper', 'short')}exec {self.forever}")
        self.program(attention_hopper=f"trap '' TERM; {self.forever} & setsid apart & while :; do sleep 1; done")
        # Longer than the test waits.
        started = self.start("--grace-seconds", "60", *words, device=device)
        for line in started.stdout or []:
            if '"short"' in line:
                break
        self.assertIn("portable", self.parts()["operations"], "kept as soon as it was known")
        self.assertIn(TABLE, (self.out / "results.md").read_text())
        started.send_signal(signal.SIGTERM)
        try:
            text, _ = started.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            started.kill()
            self.fail("the run does not end")
        self.assertEqual(started.returncode, 143)
        self.assertIn(TABLE, text)
        self.assertIn("- the run: ended by SIGTERM", text)
        self.assertIn("| attention-hopper | 1 of 1 | short, 10% | **NOT COMPLETE** was running |", text)
        self.assertEqual(self.left(), [])
        return text

    def test_sigterm_prints_what_is_known_and_ends_the_stage(self) -> None:
        self.stopped(*self.operations("portable", "attention-hopper"), device="cpu")

    def test_sigterm_also_ends_what_runs_beside_the_stages(self) -> None:
        self.fake("nvidia-smi", f"trap '' TERM; case \"$*\" in *-lms*) {self.forever};; *query*) echo '{SMI}';; esac")
        # The weights are made with it.
        self.fake("nice", f"trap '' TERM; {self.forever}")
        self.stopped(device="cuda:0")

    def test_weights_that_nobody_waits_for_are_not_left_in_the_making(self) -> None:
        self.fake("nice", f"trap '' TERM; {self.forever}")
        self.program()
        text = self.run_all("--only", "stages", "--budget-seconds", "9")
        self.assertIn("- weights: skipped", text)

    def test_without_time_the_stages_are_skipped(self) -> None:
        self.program()
        text = self.run_all("--budget-seconds", "9")
        self.assertIn("- operations: fp8: skipped: 0 s were left", text)
        self.assertEqual(self.code, 1)

    def test_a_program_that_cannot_be_unpacked_still_has_a_table(self) -> None:
        (self.folder / "program.xz").write_bytes(b"no such format")
        text = self.run_all("--binary", str(self.folder / "program.xz"))
        self.assertIn("- the run: ended by LZMAError", text)


if __name__ == "__main__":
    unittest.main()
