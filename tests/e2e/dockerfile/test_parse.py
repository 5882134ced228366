#!/usr/bin/env python3
"""What can be tested of the Dockerfile's build in a second and without root: reading it, and what a failing line does."""

import sys
import tempfile
import tomllib
import types
import unittest
from pathlib import Path

sys.dont_write_bytecode = True

import build  # noqa: E402
import images  # noqa: E402
from checks import Run  # noqa: E402
from parse import Fault, Ignore, assignments, parse, words  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]


def only(text):
    (_, instruction) = parse(f"FROM scratch\n{text}")
    return instruction


class Reading(unittest.TestCase):
    def refused(self, text, what):
        with self.assertRaisesRegex(Fault, what):
            parse(text)

    def test_the_projects_own_file_is_known(self):
        names = [instruction.name for instruction in parse((ROOT / "Dockerfile.cuda").read_text())]
        self.assertEqual(names.count("FROM"), 2)
        self.assertEqual(names[-2:], ["ENTRYPOINT", "CMD"])

    def test_its_rust_is_the_projects(self):
        channel = tomllib.loads((ROOT / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
        image, environment = [
            next(found for found in parse((ROOT / "Dockerfile.cuda").read_text()) if found.name == name)
            for name in ("FROM", "ENV")
        ]
        self.assertTrue(image.rest.startswith(f"rust:{channel}-"), image)
        self.assertEqual(assignments(environment, {}), {"RUSTUP_TOOLCHAIN": channel})

    def test_compiled_kernels_are_kept_where_kubernetes_keeps_them(self):
        found = [instruction for instruction in parse((ROOT / "Dockerfile.cuda").read_text()) if instruction.name == "ENV"]
        cache = {
            name: value
            for instruction in found
            for name, value in assignments(instruction, {}).items()
            if name.startswith("CUDA_CACHE_")
        }
        self.assertEqual(set(cache), {"CUDA_CACHE_PATH", "CUDA_CACHE_MAXSIZE"})
        deployment = (ROOT / "deploy/kubernetes/deployment.yaml").read_text()
        for name, value in cache.items():
            self.assertRegex(deployment, rf'- name: {name}\n +value: "?{value}"?\n')

    def test_unknown_instructions_and_flags_are_refused_with_their_line(self):
        self.refused("FROM scratch\n\n# a comment\nADD . .\n", "line 4: the instruction `ADD` is not known")
        self.refused("FROM scratch\nSHELL [\"/bin/bash\"]\n", "line 2: the instruction `SHELL`")
        self.refused("FROM scratch\nCOPY --chown=1:1 a b\n", "line 2: the flag `--chown=1:1` of COPY")
        self.refused("FROM scratch\nRUN --mount=type=cache,target=/x true\n", "line 2: the flag")
        self.refused("RUN true\nFROM scratch\n", "line 1: the first instruction is not FROM")
        self.refused("FROM scratch\nRUN\n", "line 2: RUN says nothing")
        self.refused("FROM scratch\nRUN cat <<EOF\n", "line 2: here-documents")
        self.refused("# escape=`\nFROM scratch\n", "line 1: the directive")
        self.refused("FROM scratch\nRUN true \\\n", "line 2: the file ends inside")

    def test_commands_are_words_or_for_the_shell(self):
        self.assertEqual(only('CMD ["serve", "a b"]').argv(), ["serve", "a b"])
        self.assertEqual(only("CMD serve && true").argv(), ["/bin/sh", "-c", "serve && true"])
        for text in ["CMD ['serve']", 'CMD ["serve", 1]']:
            with self.assertRaisesRegex(Fault, "line 2: "):
                only(text).argv()

    def test_comments_and_empty_lines_may_stand_inside_an_instruction(self):
        found = only("RUN a \\\n  # why\n\n  && b")
        self.assertEqual((found.line, found.rest), (2, "a   && b"))

    def test_the_flags_of_a_health_check_stand_before_its_command(self):
        found = only("HEALTHCHECK --interval=15s --retries=2 \\\n  CMD curl --fail http://x || false")
        self.assertEqual(found.flags, {"interval": "15s", "retries": "2"})
        self.assertEqual(found.rest, "CMD curl --fail http://x || false")

    def test_variables_and_quotes(self):
        known = {"A": "1", "PATH": "/bin"}
        for text, expected in [
            ("/x:$PATH", ["/x:/bin"]),
            ("${A}b $Ab", ["1b", ""]),
            ("'$A' \"$A c\" \\$A", ["$A", "1 c", "$A"]),
            ("${B:-two} ${A:-two} ${A:+yes} ${B:+yes}", ["two", "1", "yes", ""]),
            ('""', [""]),
        ]:
            self.assertEqual(words(text, known, 1), expected, text)
        for text in ["'open", "${A%x}", "$"]:
            with self.assertRaises(Fault):
                words(text, known, 1)

    def test_assignments_see_the_values_from_before(self):
        self.assertEqual(assignments(only('ENV A=2 B="$A c"'), {"A": "1"}), {"A": "2", "B": "1 c"})
        with self.assertRaisesRegex(Fault, "is not NAME=VALUE"):
            assignments(only("ENV A 2"), {})

    def test_the_run_command_of_the_comment(self):
        run = Run.of("# docker run --gpus all -p 127.0.0.1:1:2 \\\n#   -v a:/b:ro -e C=d=e --stop-timeout 9 name\n")
        self.assertEqual((run.ports, run.volumes, run.environment), ([2], [("a", "/b", True)], {"C": "d=e"}))
        self.assertEqual(run.stop_seconds, 9)


class Context(unittest.TestCase):
    def test_patterns_cover_folders_and_what_is_below(self):
        ignore = Ignore("# why\n.git\nmodels/*/train\n**/__pycache__\n*.md\n!docs/kept.md\ndocs\n!docs/kept.md\n")
        for path in [".git/HEAD", "models/a/train/x", "a/b/__pycache__/c", "README.md", "docs/other.md"]:
            self.assertTrue(ignore.covers(path), path)
        for path in ["a/.git", "models/a/b/train", "src/README.md", "docs/kept.md", ".gitignore"]:
            self.assertFalse(ignore.covers(path), path)

    def test_what_git_ignores_reaches_no_build(self):
        ignore = Ignore((ROOT / ".dockerignore").read_text())
        for line in (ROOT / ".gitignore").read_text().splitlines():
            if line and not line.startswith("#"):
                path = line.strip("/") if line.startswith("/") else f"a/b/{line.strip('/')}/c"
                self.assertTrue(ignore.covers(path), f"{line}: {path}")

    def test_the_program_does_not_reach_for_what_is_left_out(self):
        ignore = Ignore((ROOT / ".dockerignore").read_text())
        found = set(ignore.context(ROOT))
        for path in ["Cargo.lock", "src/main.rs", "build/source.rs", "scripts/cuda-toolkit.sh", "models/FLUX.1-dev.toml"]:
            self.assertIn(path, found)
        self.assertFalse([path for path in found if path.startswith((".git/", "target/", "docs/"))])


class Building(unittest.TestCase):
    """Where the stand-in is an empty folder, and RUN is no chroot."""

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.folder / "context").mkdir()
        (self.folder / "base").mkdir()
        (self.folder / "context/.dockerignore").touch()
        known = images.STAND_INS
        self.addCleanup(setattr, images, "STAND_INS", known)
        images.STAND_INS = [(images.re.compile("scratch"), lambda *_: None)]

    def build(self, text, **given):
        file = self.folder / "context/Dockerfile"
        file.write_text(text)
        options = types.SimpleNamespace(program=None, libraries=False, build_arg=list(given.items()), context=file.parent)
        builder = build.Builder(file, self.folder, self.folder / "base", options)
        self.commands = []

        def execute(stage, command, first_on_path=None):
            self.commands.append((command[-1], dict(stage.variables())))
            if command[-1] == "false":
                raise RuntimeError("`false` ended with 1")

        builder.execute = execute
        return builder.build()

    def refused(self, text, what, **given):
        with self.assertRaisesRegex(Fault, what):
            self.build(text, **given)

    def test_a_run_that_fails_stops_with_its_line(self):
        self.refused("FROM scratch\nRUN true\nRUN false\nRUN later\n", "line 3: RUN: `false` ended with 1")
        self.assertEqual([command for command, _ in self.commands], ["true", "false"])

    def test_arguments_end_with_their_stage_and_yield_to_the_environment(self):
        text = "FROM scratch AS a\nARG X=1\nARG Y\nRUN one\nENV X=3\nRUN two\nFROM scratch\nRUN three\n"
        self.build(text, Y="2")
        environments = [{name: seen.get(name) for name in "XY"} for _, seen in self.commands]
        self.assertEqual(environments, [{"X": "1", "Y": "2"}, {"X": "3", "Y": "2"}, {"X": None, "Y": None}])

    def test_what_the_image_runs(self):
        image = self.build(
            "FROM scratch\nWORKDIR /a\nWORKDIR b\nEXPOSE 80 81/tcp\nUSER 5:6\nENTRYPOINT [\"e\"]\nCMD [\"c\"]\n"
            "HEALTHCHECK --timeout=2m CMD curl x\nVOLUME [\"/a\"]\n"
        )
        self.assertEqual((image.folder, image.ports, image.volumes), ("/a/b", {80, 81}, ["/a"]))
        self.assertEqual([*image.entrypoint, *image.command], ["e", "c"])
        self.assertEqual((image.health, image.health_seconds), (["/bin/sh", "-c", "curl x"], {"timeout": 120}))

    def test_copies(self):
        (self.folder / "context/.dockerignore").write_text("left-out\n")
        for name in ["kept/file", "left-out/file"]:
            path = self.folder / "context" / name
            path.parent.mkdir()
            path.write_text(name)
        text = "FROM scratch AS a\nWORKDIR /w\nCOPY . .\nFROM scratch\nCOPY --from=a /w/kept/file /bin/\n"
        image = self.build(text)
        self.assertEqual(image.inside("/bin/file").read_text(), "kept/file")
        self.assertFalse((self.folder / "stage0/w/left-out").exists())
        self.refused("FROM scratch AS a\nFROM scratch\nCOPY --from=a /no /no\n", "line 3: `/no` is not in the stage `a`")
        self.refused("FROM scratch\nCOPY --from=b /no /no\n", "line 2: there is no stage `b`")

    def test_mistakes_that_docker_accepts(self):
        self.refused("FROM scratch\nVOLUME /data\n", "line 2: there is no folder `/data`")
        self.refused("FROM scratch\nRUN true\n", "no ARG takes TYPO", TYPO="1")
        self.refused("FROM elsewhere\n", "line 1: nothing stands in for the image `elsewhere`")
        self.refused("FROM scratch\nUSER 1 2\n", "line 2: USER")


if __name__ == "__main__":
    unittest.main()
