#!/usr/bin/env python3
"""Runs the commands of the documents against the real program, in order, and looks at what comes of them.

    scripts/docs-test.sh [PROGRAM [FILE...]]

installs what this needs and runs it. Each document gets a folder and ports of its own. Where no block starts a server, one is
started; that of a block ends with its section. What a block promises stands in its mark (docs_blocks.py):

    serves         it starts a server, which the blocks after it use
    no server      it runs while none does
    pasted         it is the line that the server prints, and that line is run
    png: FILE      it leaves a PNG
    exists: FILE   it leaves a file
    prints: TEXT   TEXT is in what it prints

In a block, `rgpu_...` stands for the demo key, `rgpu_AbCdEf12` for the prefix of the key that was printed last, and the
ports 8080, 8081 and 9090 for free ones. A block of `toml` is read as a configuration file. What is not run is looked
through for commands and flags that do not exist (docs_facts.py).
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
from docs_blocks import blocks_of, documents, unmarked  # noqa: E402
from docs_facts import check_facts  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests/e2e"))
from ports import free_port  # noqa: E402

START_SECONDS_MAX = 180
BLOCK_SECONDS_MAX = 300
STOP_SECONDS_MAX = 60
KEY = r"rgpu_[0-9A-Za-z]{46}"
PNG = b"\x89PNG\r\n\x1a\n"


class Fault(Exception):
    """What a block promised and did not do."""


class Server:
    """A server that a command has started."""

    def __init__(self, command, folder, environment):
        self.out, self.log = folder / "server.out", folder / "server.log"
        with open(self.out, "w") as out, open(self.log, "a") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", command], cwd=folder, env=environment, stdout=out, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True)
        began = time.monotonic()
        while "\n\n  curl " not in self.said():
            if self.process.poll() is not None:
                raise Fault(f"the server ended by itself:\n{self.log.read_text()[-2000:]}")
            if time.monotonic() - began > START_SECONDS_MAX:
                self.stop()
                raise Fault(f"the server printed no `curl` line in {START_SECONDS_MAX} s")
            time.sleep(0.1)

    def said(self):
        return self.out.read_text()

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            status = self.process.wait(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise Fault("the server did not stop") from None
        if status != 0:
            raise Fault(f"the server did not stop cleanly: exit code {status}")


class Page:
    """A document's folder, server and keys."""

    def __init__(self, file, folder, program, python):
        self.file, self.folder, self.python = file, folder, python
        self.server = self.server_section = self.key = self.prefix = None
        self.ports = {8080: free_port(), 8081: free_port(), 9090: free_port()}
        tools = folder / "bin"
        tools.mkdir()
        (tools / "fluxserve").symlink_to(program)
        kept = {name: value for name, value in os.environ.items() if not re.match("FLUXSERVE_|HF_|OPENAI_|XDG_", name)}
        self.environment = {
            **kept,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FLUXSERVE_LISTEN": f"127.0.0.1:{self.ports[8080]}",
            "FLUXSERVE_METRICS_LISTEN": f"127.0.0.1:{self.ports[9090]}",
        }

    def real(self, text):
        """The text of a block with what its placeholders stand for."""
        text = re.sub(r"cargo run --release(?! *--\w)( --)?", "fluxserve", text)
        for port, free in self.ports.items():
            text = re.sub(rf":{port}\b", f":{free}", text)
            text = re.sub(rf"\b{port}(?=:)", str(free), text)
        if "rgpu_..." in text:
            text = text.replace("rgpu_...", self.key)
        return text.replace("rgpu_AbCdEf12", self.prefix or "rgpu_AbCdEf12")

    def serve(self, command, section):
        self.stop()
        self.server = Server(command, self.folder, self.environment)
        self.server_section = section
        if self.key is None:
            shown = re.search(rf"demo key, shown this once: ({KEY})", self.server.said())
            self.key = shown.group(1) if shown else None
            self.environment["FLUXSERVE_API_KEY"] = self.key or ""

    def stop(self):
        if self.server is not None:
            server, self.server = self.server, None
            server.stop()

    def run(self, block, section):
        """Runs a block. Raises a fault when it does not do what it promises."""
        if "serves" in block.options:
            return self.serve(self.real(block.text), section)
        if "no server" in block.options:
            self.stop()
        elif self.server is None or self.server_section not in (None, section):
            self.serve("exec fluxserve serve", None)
        text = self.real(block.text)
        if "pasted" in block.options:
            text = self.pasted(text)
        if re.search(r"^export FLUXSERVE_", text, re.MULTILINE):
            text += "\nfluxserve keys list"  # Has them read.
        asked = [self.python, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        began = time.time()
        try:
            done = subprocess.run(asked, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=BLOCK_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Fault(f"took longer than {BLOCK_SECONDS_MAX} s") from None
        if done.returncode != 0:
            raise Fault(f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        self.look(block.options, done.stdout, began)

    def pasted(self, text):
        """The line that the server printed, when it is the block's but for spaces."""
        printed = re.search(r"^ *(curl .*)$", self.server.said(), re.MULTILINE).group(1)
        written = " ".join(text.replace("\\\n", " ").split())
        if " ".join(printed.split()) != written:
            raise Fault(f"the server prints another line:\n{printed.replace(self.key, 'rgpu_...')}")
        return printed

    def look(self, options, printed, began):
        keys = re.findall(KEY, printed)
        if keys:
            self.prefix = keys[-1][:13]
        if options.get("prints", "") not in printed:
            raise Fault(f"does not print `{options['prints']}`:\n{printed[-2000:]}")
        for name in filter(None, [options.get("png"), options.get("exists")]):
            file = self.folder / name
            if not file.is_file() or file.stat().st_mtime < began - 1:
                raise Fault(f"leaves no `{name}`")
        if "png" in options and not (self.folder / options["png"]).read_bytes().startswith(PNG):
            raise Fault(f"`{options['png']}` is not a PNG")

    def read(self, block):
        """Has the program read a configuration file."""
        (self.folder / "block.toml").write_text(self.real(block.text))
        asked = ["fluxserve", "keys", "list", "--config", "block.toml"]
        done = subprocess.run(asked, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise Fault(done.stderr)


def section_of(block):
    """The number of the section that a block is in."""
    lines = block.file.read_text().splitlines()[: block.line]
    return sum(line.startswith("## ") for line in lines)


def test(file, program, python):
    """Runs the blocks of a document. Returns what was wrong."""
    blocks = blocks_of(file)
    if not any(block.is_run or block.language == "toml" for block in blocks):
        return []
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        page = Page(file, Path(folder), program, python)
        try:
            for block in blocks:
                if not block.is_run and block.language != "toml":
                    continue
                began = time.monotonic()
                try:
                    if block.is_run:
                        page.run(block, section_of(block))
                    else:
                        if page.server is None:
                            page.serve("exec fluxserve serve", None)
                        page.read(block)
                except Fault as fault:
                    faults.append(f"{block.place}: {fault}")
                    # What comes after it mostly needs it.
                    break
                name = block.name if block.is_run else "configuration"
                print(f"  {block.place}: {name}, {time.monotonic() - began:.1f} s", flush=True)
        finally:
            try:
                page.stop()
            except Fault as fault:
                faults.append(f"{file.name}: {fault}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--python", default=sys.executable, help="a Python that has OpenAI's client")
    options = parser.parse_args()
    files = [file.resolve() for file in options.files] or documents()
    program, python = options.program.resolve(), shutil.which(options.python)
    if python is None:
        parser.error(f"there is no Python at {options.python}")
    faults = [fault for file in files for fault in unmarked(blocks_of(file))]
    faults += check_facts(program, files)
    for file in files:
        faults += test(file, program, os.path.abspath(python))
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{len(files)} documents, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
