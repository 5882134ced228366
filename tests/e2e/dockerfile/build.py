"""Does what a Dockerfile says, in root folders: each stage is a folder, RUN is chroot. Needs root, and no Docker."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import images
from parse import Fault, Ignore, assignments, json_words, parse, seconds, words

# Settings of the machine for what RUN downloads, as Docker passes on proxies.
MACHINE_SETTINGS = re.compile(r"(?i)(PIP|CARGO_(HTTP|NET|REGISTRIES|SOURCE))_\w+|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR)")
MACHINE_FILES = ["/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf"]
# The machine's certificates, where installing a package does not replace them.
CERTIFICATES, INSIDE = "/etc/ssl/certs/ca-certificates.crt", "/.machine/certificates.crt"
TRUST = dict.fromkeys(["SSL_CERT_FILE", "PIP_CERT", "CARGO_HTTP_CAINFO"], INSIDE) if os.path.exists(CERTIFICATES) else {}
# Nothing listens there: a toolchain that wants to download more of itself fails.
NO_RUSTUP_SERVER = {"RUSTUP_DIST_SERVER": "http://127.0.0.1:9"}
LOG_TAIL = 30
# In place of `cargo build`: plans the build, compiles nothing, and installs a program that was built elsewhere.
CARGO = r"""#!/bin/sh
set -eu
PATH=$(printf %s "$PATH" | sed 's#/\.shim:##')
[ "$1" = build ] || exec cargo "$@"
env >/.shim/environment
nvcc --version >/dev/null
profile=debug before=
for word in "$@"; do
  case $word in --release) profile=release ;; esac
  [ "$before" != --profile ] || profile=$word
  before=$word
done
# Reads the manifest as a build does, with all that it names, and plans with the same arguments.
RUSTC_BOOTSTRAP=1 cargo "$@" -Z unstable-options --unit-graph >/dev/null
folder=${CARGO_TARGET_DIR:-target}/$profile
mkdir -p "$folder"
cp /.shim/program "$folder/fluxserve"
"""


@dataclass
class Stage:
    """A stage: its root folder, and what the next instruction continues with. The last one is the image."""

    name: str
    root: Path
    environment: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    volumes: list = field(default_factory=list)
    ports: set = field(default_factory=set)
    # What commands see of the machine: source and place.
    mounts: list = field(default_factory=list)
    entrypoint: list = field(default_factory=list)
    command: list = field(default_factory=list)
    health: list = field(default_factory=list)
    health_seconds: dict = field(default_factory=dict)

    def variables(self):
        return self.arguments | self.environment

    def inside(self, path):
        """Where a path of the stage is on the machine."""
        return self.root / os.path.normpath(os.path.join("/", self.folder, path)).lstrip("/")

    def identity(self):
        """Number of the user and of the group."""
        user, _, group = self.user.partition(":")
        accounts = [line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines()]
        account = next((row for row in accounts if user in (row[0], row[2])), None)
        if not user.isdigit() and not account:
            raise RuntimeError(f"there is no user `{user}` in the image")
        number = int(user if user.isdigit() else account[2])
        if group and not group.isdigit():
            raise RuntimeError(f"the group `{group}` is not a number")
        return number, int(group or (account[3] if account else 0))


@contextlib.contextmanager
def mounted(*mounts):
    """Mounts each (arguments, place), and unmounts them all."""
    with contextlib.ExitStack() as stack:
        for arguments, place in mounts:
            subprocess.run(["mount", *arguments, str(place)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
        yield


class Builder:
    def __init__(self, file, folder, base, options):
        self.file, self.folder, self.base, self.context = file, folder, base, options.context
        self.program, self.given = options.program, dict(options.build_arg)
        self.has_libraries = options.libraries or not options.program
        self.ignore = Ignore((self.context / ".dockerignore").read_text())
        self.log = folder / "build.log"
        self.stages, self.used = [], set()
        # The environment of `cargo build`, in place of which a program was installed.
        self.cargo_environment = None

    def build(self):
        for instruction in parse(self.file.read_text()):
            started = time.monotonic()
            try:
                getattr(self, f"do_{instruction.name.lower()}")(instruction)
            except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
                raise Fault(instruction.line, f"{instruction.name}: {error}") from error
            print(f"  {time.monotonic() - started:6.1f} s  {instruction}"[:160], flush=True)
        unknown = set(self.given) - self.used
        if unknown:
            raise Fault(1, f"no ARG takes {', '.join(sorted(unknown))}")
        return self.stages[-1]

    def do_from(self, instruction):
        match = re.fullmatch(r"(\S+)(?:\s+[Aa][Ss]\s+(\S+))?", instruction.rest)
        found = images.stand_in(match.group(1)) if match else None
        if not found:
            raise Fault(instruction.line, f"nothing stands in for the image `{instruction.rest}`")
        stage = Stage(match.group(2) or str(len(self.stages)), self.folder / f"stage{len(self.stages)}")
        self.stages.append(stage)
        subprocess.run(["cp", "--archive", "--reflink=auto", self.base, stage.root], check=True)
        stage.environment["PATH"] = images.PATH
        make, match = found
        make(self, stage, match)

    def do_arg(self, instruction):
        name, has_default, _ = instruction.rest.partition("=")
        stage = self.stages[-1]
        self.used.add(name)
        if name in self.given:
            stage.arguments[name] = self.given[name]
        elif has_default:
            stage.arguments |= assignments(instruction, stage.variables())

    def do_env(self, instruction):
        stage = self.stages[-1]
        stage.environment |= assignments(instruction, stage.variables())

    def do_workdir(self, instruction):
        stage = self.stages[-1]
        (path,) = words(instruction.rest, stage.variables(), instruction.line)
        stage.folder = os.path.normpath(os.path.join(stage.folder, path))
        stage.inside("").mkdir(parents=True, exist_ok=True)

    def do_copy(self, instruction):
        stage = self.stages[-1]
        *sources, destination = words(instruction.rest, stage.variables(), instruction.line)
        if len(sources) != 1 or re.search(r"[*?\[]", sources[0]):
            raise Fault(instruction.line, "COPY of several sources or of patterns is not supported")
        place = stage.inside(destination)
        if "from" not in instruction.flags:
            return self.copy_context(instruction, sources[0], place)
        origin = next((other for other in self.stages[:-1] if other.name == instruction.flags["from"]), None)
        if not origin:
            raise Fault(instruction.line, f"there is no stage `{instruction.flags['from']}`")
        source = origin.root / sources[0].lstrip("/")
        if not source.exists():
            raise Fault(instruction.line, f"`{sources[0]}` is not in the stage `{origin.name}`")
        if source.is_file() and destination.endswith("/"):
            place = place / source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        copied = [f"{source}/.", f"{place}/"] if source.is_dir() else [source, place]
        subprocess.run(["cp", "--archive", "--reflink=auto", *copied], check=True)
        subprocess.run(["chown", "--recursive", "--no-dereference", "0:0", place], check=True)

    def copy_context(self, instruction, source, place):
        start = os.path.normpath(source)
        files = [path for path in self.ignore.context(self.context) if start == "." or path.startswith(start + "/")]
        if not files:
            raise Fault(instruction.line, f"`{source}` is not a folder of the context with files in it")
        for path in files:
            to = place / os.path.relpath(path, start)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.context / path, to, follow_symlinks=False)

    def do_run(self, instruction):
        stage = self.stages[-1]
        shim = stage.root / ".shim"
        is_replaced = self.program and re.search(r"\bcargo\s+build\b", instruction.rest)
        if is_replaced:
            shim.mkdir()
            shutil.copy2(self.program, shim / "program")
            (shim / "cargo").write_text(CARGO)
            (shim / "cargo").chmod(0o755)
        try:
            self.execute(stage, instruction.argv(), "/.shim" if is_replaced else None)
            if is_replaced:
                lines = (shim / "environment").read_text().splitlines()
                self.cargo_environment = dict(line.split("=", 1) for line in lines if "=" in line)
        finally:
            if is_replaced:
                shutil.rmtree(shim)

    def execute(self, stage, command, first_on_path=None):
        """Runs a command in a stage, with the machine's settings for downloads."""
        user, group = stage.identity()
        machine = {name: value for name, value in os.environ.items() if MACHINE_SETTINGS.fullmatch(name)}
        environment = {"HOME": "/root"} | machine | TRUST | NO_RUSTUP_SERVER | stage.variables()
        if first_on_path:
            environment["PATH"] = f"{first_on_path}:{environment['PATH']}"

        def enter():
            os.chroot(stage.root)
            os.chdir(stage.folder)
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)

        with self.log.open("ab") as log, mounted(*self.mounts(stage)):
            began = log.tell()
            done = subprocess.run(
                command, env=environment, preexec_fn=enter, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        if done.returncode:
            with self.log.open("rb") as log:
                log.seek(began)
                tail = log.read().decode(errors="replace").splitlines()[-LOG_TAIL:]
            raise RuntimeError("\n".join([f"`{command[-1]}` ended with {done.returncode}", *tail]))

    def mounts(self, stage):
        """What a command sees that is not in the image."""
        found = [(["--types", "proc", "proc"], stage.root / "proc")]
        for file, inside in [*((file, file) for file in MACHINE_FILES), (CERTIFICATES, INSIDE)]:
            if not os.path.exists(file):
                continue
            place = stage.root / inside.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
            found.append((["--bind", "--options", "ro", os.path.realpath(file)], place))
        found += [(["--bind", "--options", "ro", source], place) for source, place in stage.mounts]
        home = stage.environment.get("CARGO_HOME")
        if home:
            # What cargo has downloaded, and where from.
            mine = Path(os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo")))
            (mine / "registry").mkdir(parents=True, exist_ok=True)
            place = stage.inside(home)
            (place / "registry").mkdir(parents=True, exist_ok=True)
            found.append((["--bind", mine / "registry"], place / "registry"))
            if (mine / "config.toml").exists():
                (place / "config.toml").touch()
                found.append((["--bind", "--options", "ro", mine / "config.toml"], place / "config.toml"))
        return found

    def do_user(self, instruction):
        (self.stages[-1].user,) = words(instruction.rest, self.stages[-1].variables(), instruction.line)

    def do_volume(self, instruction):
        found = json_words(instruction) or words(instruction.rest, self.stages[-1].variables(), instruction.line)
        for path in found:
            if not self.stages[-1].inside(path).is_dir():
                # Docker would make it, for root alone to write.
                raise Fault(instruction.line, f"there is no folder `{path}` in the image")
        self.stages[-1].volumes += found

    def do_expose(self, instruction):
        for word in words(instruction.rest, self.stages[-1].variables(), instruction.line):
            if not re.fullmatch(r"\d+(/tcp)?", word):
                raise Fault(instruction.line, f"`{word}` is not a TCP port")
            self.stages[-1].ports.add(int(word.removesuffix("/tcp")))

    def do_healthcheck(self, instruction):
        name, _, rest = instruction.rest.partition(" ")
        if name != "CMD" or not rest:
            raise Fault(instruction.line, "HEALTHCHECK has no CMD")
        instruction.rest = rest.strip()
        self.stages[-1].health = instruction.argv()
        flags = {name: value for name, value in instruction.flags.items() if name != "retries"}
        self.stages[-1].health_seconds = {name: seconds(value, instruction.line) for name, value in flags.items()}

    def do_entrypoint(self, instruction):
        self.stages[-1].entrypoint = instruction.argv()

    def do_cmd(self, instruction):
        self.stages[-1].command = instruction.argv()

