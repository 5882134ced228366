"""Where weights go, what the commands are given, and what is written when the disk is full."""

import json
import lzma
import os
import tempfile
import unittest
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import environment
import operations
import processes
import results
import stages
import weights

GB = 10**9
DEV = environment.bytes_of("dev")
SHALLOW = environment.bytes_of("shallow")


class InFolder(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)


class Places(InFolder):
    def place(self, shared: int, temporary: int, memory: int, mounts: bool = False, is_root: bool = True) -> str:
        """Where the weights of the real depth go, by what is free in GB."""
        free = {"/dev/shm": shared * GB, str(self.folder): temporary * GB}
        usage = mock.patch("shutil.disk_usage", lambda folder: SimpleNamespace(free=free[str(folder)]))
        mount = mock.patch.object(environment, "mount", lambda folder, size: mounts and size > DEV)
        user = mock.patch("os.geteuid", lambda: 0 if is_root else 1000)
        with usage, mount, user, mock.patch("tempfile.gettempdir", lambda: str(self.folder)):
            place = environment.place_of_weights(DEV, memory * GB)
        if place is None:
            return "nowhere"
        return "mounted" if place.mounted else "disk" if self.folder in place.folder.parents else "shared memory"

    def test_weights_go_into_memory_if_there_is_twice_as_much(self) -> None:
        self.assertEqual(self.place(shared=36, temporary=100, memory=72), "shared memory")
        self.assertEqual(self.place(shared=36, temporary=100, memory=70, mounts=True), "disk")

    def test_root_mounts_a_file_system_where_shared_memory_is_small(self) -> None:
        self.assertEqual(self.place(shared=30, temporary=100, memory=128, mounts=True), "mounted")
        self.assertEqual(self.place(shared=30, temporary=100, memory=128, mounts=True, is_root=False), "disk")
        self.assertEqual(self.place(shared=30, temporary=100, memory=128, mounts=False), "disk")

    def test_they_go_nowhere_where_nothing_is_free(self) -> None:
        self.assertEqual(self.place(shared=30, temporary=35, memory=128), "nowhere")

    def test_a_folder_that_is_not_there_has_nothing_free(self) -> None:
        self.assertEqual(environment.free_bytes(self.folder / "nowhere"), 0)

    def test_few_blocks_have_the_widths_of_all(self) -> None:
        all_blocks, few = (environment.transformer_of(self.folder, preset) for preset in ["dev", "shallow"])
        self.assertEqual((few["num_layers"], few["num_single_layers"]), (3, 6))
        depth = ["num_layers", "num_single_layers"]
        self.assertEqual({**all_blocks, **dict.fromkeys(depth)}, {**few, **dict.fromkeys(depth)})
        self.assertTrue(6.0 < SHALLOW / GB < 6.2, SHALLOW)


class Making(InFolder):
    """Weights that fit nowhere, and weights that fail."""

    def make(self, free_gigabytes: int, command: list[str], preset: str = "dev") -> tuple[weights.Weights, str]:
        self.said: list[str] = []
        found = weights.Weights(preset, None, 0.0, self.said.append)
        usage = mock.patch("shutil.disk_usage", lambda _: SimpleNamespace(free=free_gigabytes * GB))
        script = mock.patch.object(environment, "python", lambda _: command)
        with usage, script, mock.patch("tempfile.gettempdir", lambda: str(self.folder)):
            found.start(dict(os.environ))
            return found, found.wait(10, dict(os.environ), weights.Limits(0.2, 2.0))

    def test_few_blocks_are_made_where_all_do_not_fit(self) -> None:
        found, outcome = self.make(10, ["echo"])
        self.assertEqual((found.preset, outcome), ("shallow", "done"))
        self.assertIn("fit nowhere", self.said[0])

    def test_few_blocks_are_made_where_all_have_failed(self) -> None:
        script = 'case "$*" in *shallow*) exit 0;; esac; echo "No space left"; exit 1'
        found, outcome = self.make(100, ["sh", "-c", script, "sh"])
        self.assertEqual(found.preset, "shallow")
        self.assertEqual(outcome, "done, but not with the real depth, which failed with exit code 1")
        self.assertIn("weights: No space left", self.said)
        self.assertTrue(found.are_ready())

    def test_small_ones_are_not_replaced_by_larger_ones(self) -> None:
        found, outcome = self.make(100, ["false"], "tiny")
        self.assertEqual((found.preset, outcome), ("tiny", "failed with exit code 1"))

    def test_none_are_made_where_none_fit(self) -> None:
        found, outcome = self.make(1, ["echo"])
        self.assertTrue(outcome.startswith("failed: 6 GB fit nowhere"), outcome)
        self.assertFalse(found.are_ready())
        found.remove()


class Given(InFolder):
    def test_caches_and_libraries_are_named_and_what_is_set_stays(self) -> None:
        libraries = self.folder / "nvidia/cu13/lib"
        with (
            mock.patch.dict(os.environ, {"CUDA_CACHE_PATH": "/own", "LD_LIBRARY_PATH": "/there"}, clear=True),
            mock.patch.object(environment, "cuda_library_folders", lambda: [str(libraries)]),
        ):
            found = environment.environment(self.folder, self.folder / "site")
        self.assertEqual(found["CUDA_CACHE_PATH"], "/own")
        self.assertEqual(found["CUDA_CACHE_MAXSIZE"], "4294967296")
        self.assertEqual(found["FLUXSERVE_CUDA_LIBRARIES"], str(libraries))
        self.assertEqual(found["LD_LIBRARY_PATH"], f"{libraries}:/there")
        self.assertEqual(found["PYTHONPATH"], str(self.folder / "site"))
        self.assertEqual(found["HOME"], str(self.folder))

    def test_a_compressed_program_and_a_wheel_are_unpacked(self) -> None:
        packed, wheel = self.folder / "program.xz", self.folder / "word-1-py3-none-any.whl"
        packed.write_bytes(lzma.compress(b"#!/bin/sh\nexit 4\n"))
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("word/__init__.py", "meaning = 42\n")
        scratch = self.folder / "scratch"
        scratch.mkdir()
        program = environment.unpacked(packed, scratch)
        self.assertEqual(processes.run_for(10, [str(program)])[0], 4)
        site = environment.unpacked_wheels([wheel], scratch)
        self.assertEqual((site / "word/__init__.py").read_text(), "meaning = 42\n")
        self.assertEqual(environment.unpacked(self.folder, scratch), self.folder)


class Plans(unittest.TestCase):
    def plan(self, **given: object) -> stages.Plan:
        arguments = SimpleNamespace(**{"dry_run": False, "device": "cuda:0", "kernels": "auto"} | given)
        return stages.Plan(arguments, Path("/program"), Path("/scratch"), "9.0")

    def test_operations_come_first_group_by_group(self) -> None:
        for call in [self.plan().call_one(), self.plan().call_two()]:
            tried = [stage.command for stage in call[1 : 1 + len(stages.GROUPS)]]
            expected = [
                ["/program", "doctor", "--device", "cuda:0", "--operations", group, "--json"] for group in stages.GROUPS
            ]
            self.assertEqual(tried, expected)
            blocking = [stage.group for stage in call if "CUDA_LAUNCH_BLOCKING" in stage.environment]
            self.assertEqual(blocking, ["portable"])
            self.assertEqual(sum(not stage.command for stage in call), 1, "weights are waited for once")
            self.assertEqual(len({stage.name for stage in call}), len(call))

    def test_hopper_is_not_touched_where_portable_kernels_are_asked_for(self) -> None:
        call = self.plan(kernels="portable").call_two()
        self.assertEqual({stage.group for stage in call if stage.left_out == stages.AS_ASKED}, stages.HOPPER)

    def test_nothing_with_weights_comes_before_them(self) -> None:
        for call in [self.plan().call_one(), self.plan().call_two()]:
            first = next(number for number, stage in enumerate(call) if stage.needs_weights)
            self.assertEqual(call[first].name, "weights")

    def test_fp8_is_left_out_where_no_device_multiplies_it(self) -> None:
        self.assertEqual(stages.reason_without_fp8("9.0"), "")
        self.assertEqual(stages.reason_without_fp8("8.9"), "")
        self.assertEqual(stages.reason_without_fp8("[N/A]"), "")
        self.assertIn("8.6", stages.reason_without_fp8("8.6"))


class Operations(unittest.TestCase):
    def test_only_records_count(self) -> None:
        group = operations.Group([], [], [])
        for line in ["{ not json", "INFO {}", '{"level":"info"}', '{"group":"fp8","skipped":"no device"}']:
            group.read(line)
        self.assertEqual((group.operations, group.skipped), ([], ["no device"]))
        group.read('{"group":"fp8","operation":"a","error":0.1,"tolerance":0.2,"milliseconds":1,"failure":null}')
        self.assertEqual(len(group.operations), 1)
        group.read('{"group":"fp8","stopped":"no answer","not_tested":[{"operation":"b"},{"operation":"c"}]}')
        self.assertTrue(operations.is_faulty(group.record("done")))
        expected = "failed: no answer; 2 operations were not tried"
        self.assertEqual(operations.outcome_of(group, "failed with exit code 1"), expected)

    def test_outcomes(self) -> None:
        right = {"operation": "right", "error": 0.0, "tolerance": 0.0, "failure": None}
        wrong = {"operation": "wrong", "error": 2.0, "tolerance": 1.0, "failure": None}
        for records, skipped, outcome, expected in [
            ([right], [], "done", "done"),
            ([wrong, right], [], "failed with exit code 1", "failed: 1 of 2 operations are wrong"),
            ([wrong, right], [], "failed with exit code -6", "failed with exit code -6, after right"),
            ([right], [], "stopped after 9 s", "stopped after 9 s, after right"),
            ([], [], "failed with exit code 2", "failed with exit code 2, after the start"),
            ([], [], "done", "failed: no operation was tried"),
            ([], ["no device"], "done", "skipped by the program: no device"),
        ]:
            self.assertEqual(operations.outcome_of(operations.Group(records, skipped, []), outcome), expected)


class Written(InFolder):
    def results(self) -> results.Results:
        found = results.Results(self.folder / "out", self.folder)
        self.addCleanup(found.close)
        return found

    def test_what_stages_have_written_is_merged_into_few_files(self) -> None:
        (self.folder / "time.json").write_text(json.dumps({"device": "cuda:0", "timings": []}))
        (self.folder / "load.json").write_text('{"half": ')
        (self.folder / "kernels.json").write_text('{"kernel": "a"}\n{"kernel": "b"}\n')
        found = self.results()
        found.parts["about"] = {"commit": "abc"}
        found.save()
        self.assertEqual(sorted(file.name for file in (self.folder / "out").iterdir()), ["all.json", "results.md", "run.log"])
        merged = json.loads((self.folder / "out/all.json").read_text())
        self.assertEqual(sorted(merged), ["about", "kernels", "time"])
        self.assertEqual([record["kernel"] for record in merged["kernels"]], ["a", "b"])
        self.assertIn("generated on cuda:0", (self.folder / "out/results.md").read_text())

    def test_a_file_that_gets_worse_does_not_take_away_what_was_known(self) -> None:
        found = self.results()
        (self.folder / "time.json").write_text('{"device": "cuda:0"}')
        found.save()
        (self.folder / "time.json").write_text('{"device": ')
        found.save()
        self.assertEqual(found.parts["time"], {"device": "cuda:0"})

    def test_whatever_a_stage_has_written_there_is_a_table(self) -> None:
        found = self.results()
        found.parts["time"] = {"timings": [7]}
        self.assertIn("**no table**", found.table())

    def test_a_log_does_not_grow_without_a_limit(self) -> None:
        found = self.results()
        with mock.patch("builtins.print"):
            for _ in range(70):
                found.say("x" * (1 << 16))
        found.close()
        self.assertLessEqual((self.folder / "out/run.log").stat().st_size, results.LOG_BYTES_MAX)
