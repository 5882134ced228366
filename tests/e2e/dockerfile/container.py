"""Runs an image that build.py made, as `docker run`, `docker exec` and `docker stop` do: with processes, network and files of its
own. Changes to its files are lost when it ends; volumes stay.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

# An address that is not the machine's own, as published ports have.
PUBLISHED = "172.17.0.2"
START_SECONDS = 20
# For a line that is being written.
LOG_SECONDS = 20


class Container:
    def __init__(self, image, folder, volumes, environment=(), argv=None):
        """`volumes`: (source, place, read-only) each, where a source without a slash is a volume's name."""
        self.image, self.folder = image, folder
        self.environment = image.environment | dict(environment)
        self.argv = argv or [*image.entrypoint, *image.command]
        self.log = folder / "log"
        folder.mkdir(parents=True)
        given = {place for _, place, _ in volumes}
        anonymous = [(f"{folder.name}-{path.strip('/').replace('/', '-')}", path, False) for path in image.volumes]
        mounts = [*volumes, *(mount for mount in anonymous if mount[1] not in given)]
        self.mounts = [(self.source(source, place), place, is_read_only) for source, place, is_read_only in mounts]

    def source(self, source, place):
        """What to mount. A new volume begins as a copy of the image's folder, owner included."""
        if "/" in source:
            return source
        volume = self.folder.parent / "volumes" / source
        if not volume.exists():
            volume.parent.mkdir(exist_ok=True)
            inside = self.image.inside(place)
            subprocess.run(["cp", "--archive", inside, volume], check=True)
        return str(volume)

    def __enter__(self):
        user, group = self.image.identity()
        settings = {
            "root": str(self.image.root),
            "scratch": str(self.folder),
            "mounts": self.mounts,
            "folder": self.image.folder,
            "user": user,
            "group": group,
            "argv": self.argv,
            "environment": self.environment,
        }
        command = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--propagation", "private"]
        command += [sys.executable, "-I", os.path.abspath(__file__), json.dumps(settings)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + START_SECONDS
        while not self.find_first():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the container did not start: {self.text()}")
            time.sleep(0.02)
        return self

    def find_first(self):
        """Finds the first process of the container, once it is inside."""
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            self.first = int(children[0]) if children else None
            return self.first and os.readlink(f"/proc/{self.first}/root") != "/"
        except OSError:
            return False

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def says(self, pattern):
        """What its log says, once it does."""
        until = time.monotonic() + LOG_SECONDS
        while not (found := re.search(pattern, self.text())) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def text(self):
        return self.log.read_text(errors="replace")

    def exec(self, argv, timeout=60, user=None):
        """`docker exec`: exit status and standard output. A command that takes too long has the status 124."""
        number = self.image.identity() if user is None else (user, user)
        command = ["nsenter", f"--target={self.first}", "--mount", "--net", "--pid", "--ipc", "--root"]
        command += [f"--wd=/proc/{self.first}/root{self.image.folder}", f"--setuid={number[0]}", f"--setgid={number[1]}"]
        try:
            done = subprocess.run(
                [shutil.which("nsenter"), *command[1:], *argv],
                env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124, ""
        return done.returncode, done.stdout.decode(errors="replace")

    def healthy(self):
        """Runs the image's own check, once."""
        return self.exec(self.image.health, self.image.health_seconds.get("timeout", 30))[0] == 0

    def stop(self, timeout):
        """`docker stop`: the exit status, or nothing if it takes too long."""
        os.kill(self.first, signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def listeners(self):
        """Address and port of each listening TCP socket, and whether other machines reach it."""
        found = set()
        for file, any_address in (("tcp", "0" * 8), ("tcp6", "0" * 32)):
            for line in Path(f"/proc/{self.first}/net/{file}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == "0A":
                    found.add((int(local.split(":")[1], 16), local.split(":")[0] == any_address))
        return found


def raise_network():
    """Brings the loopback device up, with a second address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up, set_flags, set_address = 1, 0x8914, 0x8916
        fcntl.ioctl(control, set_flags, struct.pack("16sH14x", b"lo", up))
        address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(PUBLISHED))
        fcntl.ioctl(control, set_address, address)


def enter(settings):
    """Becomes the first process of a container."""

    def mount(*arguments):
        subprocess.run(["mount", *arguments], check=True)

    scratch = Path(settings["scratch"])
    layers = scratch / "layers"
    layers.mkdir()
    mount("--types", "tmpfs", "layers", str(layers))
    root = layers / "root"
    for name in ("root", "upper", "work"):
        (layers / name).mkdir()
    # The root folder of the image, not of `upper`, has the mode that the container's has.
    (layers / "upper").chmod(0o755)
    options = f"lowerdir={settings['root']},upperdir={layers}/upper,workdir={layers}/work"
    mount("--types", "overlay", "--options", options, "overlay", str(root))
    mount("--types", "proc", "proc", str(root / "proc"))
    for source, place, is_read_only in settings["mounts"]:
        target = root / place.lstrip("/")
        if os.path.isdir(source):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        mount("--bind", source, str(target))
        if is_read_only:
            mount("--options", "remount,bind,ro", str(target))
    raise_network()
    os.chroot(root)
    os.chdir(settings["folder"])
    os.setgroups([])
    os.setgid(settings["group"])
    os.setuid(settings["user"])
    os.execvpe(settings["argv"][0], settings["argv"], settings["environment"])


if __name__ == "__main__":
    enter(json.loads(sys.argv[1]))
