"""What the documents say of the program, compared with what the program says of itself: its commands and flags, its
environment variables, its routes and its error codes. Used by docs-test.py."""

import json
import os
import re
import shlex
import subprocess
import tempfile

from docs_blocks import LANGUAGES, ROOT, blocks_of

CONFIGURATION = ROOT / "docs/configuration.md"
API = ROOT / "docs/api.md"
CLUSTER_SETTINGS = ROOT / "deploy/kubernetes/config.env"
METHODS = {"get", "post", "put", "patch", "delete"}


class CommandLine:
    """The program's commands and flags, as `--help` has them."""

    def __init__(self, program):
        self.program, self.helps = program, {}

    def help(self, words=()):
        if words not in self.helps:
            asked = [self.program, *words, "--help"]
            self.helps[words] = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
        return self.helps[words]

    def commands(self, words=()):
        listed = re.search(r"^Commands:\n((?:  .*\n)+)", self.help(words), re.MULTILINE)
        return set(re.findall(r"^  ([a-z][a-z-]*)", listed.group(1), re.MULTILINE)) if listed else set()

    def faults(self, words):
        """What is wrong with what stands after `fluxserve`."""
        command = ()
        for word in words:
            if word.startswith("-"):
                break
            if word not in self.commands(command):
                break
            command += (word,)
        rest = words[len(command):]
        if rest and not rest[0].startswith("-") and self.commands(command):
            yield f"`fluxserve {' '.join(command)}` has no command `{rest[0]}`"
        for flag in (word.split("=")[0] for word in rest if re.match(r"--[a-z]", word)):
            if not re.search(rf"(?<![\w-]){flag}(?![\w-])", self.help(command)):
                yield f"`fluxserve {' '.join(command)}` has no flag `{flag}`"


def invocations(code):
    """The words after `fluxserve` in each command of a line of shell."""
    code = re.sub(r"cargo run --release( --(?= ))?(?! *--example)", "fluxserve", code)
    for part in re.split(r"\|\|?|&&|;|\$\(|\)", code):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            words = part.split()
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if "--" in words and "fluxserve" in words[words.index("--"):]:  # kubectl exec … -- fluxserve …
            words = words[words.index("--") + 1:]
        if words and words[0] in ("fluxserve", "target/release/fluxserve"):
            yield words[1:]


def check_commands(files, command_line):
    """Every `fluxserve …` in a block or between backticks has commands and flags that exist."""
    faults = []
    for file in files:
        text = file.read_text()
        codes = [(block.place, line) for block in blocks_of(file) if block.language in LANGUAGES
                 for line in block.text.replace("\\\n", " ").splitlines()]
        prose = re.sub(r"^\s*```.*?^\s*```", lambda block: re.sub(r"[^\n]", "", block.group(0)), text, flags=re.M | re.S)
        for code in re.finditer(r"`([^`]+)`", prose):
            line = prose[: code.start()].count("\n") + 1
            codes.append((f"{file.relative_to(ROOT)}:{line}", " ".join(code.group(1).split())))
        for place, code in codes:
            faults += [f"{place}: {fault}" for words in invocations(code) for fault in command_line.faults(words)]
    return faults


def difference(what, place, documented, real):
    faults = [f"{place}: {what} `{name}` does not exist" for name in sorted(documented - real)]
    return faults + [f"{place}: {what} `{name}` is missing" for name in sorted(real - documented)]


def check_variables(command_line):
    listed = command_line.help().split("Environment variables", 1)[1]
    real = set(re.findall(r"^  ([A-Z_]+) ", listed, re.MULTILINE))
    rows = re.findall(r"^\| (`[A-Z].*?) \|", CONFIGURATION.read_text(), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    return difference("variable", "docs/configuration.md", documented, real)


def check_api(command_line):
    """The tables of routes and of error codes."""
    document = json.loads(subprocess.run(
        [command_line.program, "openapi"], check=True, capture_output=True, text=True).stdout)
    routes, statuses = set(), {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method not in METHODS:
                continue
            routes.add(f"{method.upper()} {path}")
            for status, answer in operation["responses"].items():
                for code in re.findall(r"^- `([a-z_]+)`", answer.get("description", ""), re.MULTILINE):
                    statuses[code] = status
    text = API.read_text()
    documented = set(re.findall(r"^\| `((?:GET|POST|PUT|PATCH|DELETE) [^`]+)` \|", text, re.MULTILINE))
    faults = difference("route", "docs/api.md", documented, routes)
    errors = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", text, re.MULTILINE))
    codes = set(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"])
    faults += difference("error code", "docs/api.md", set(errors), codes)
    for code in sorted(set(errors) & set(statuses)):
        if errors[code] != statuses[code]:
            faults.append(f"docs/api.md: `{code}` has the status {statuses[code]}, not {errors[code]}")
    return faults


def check_cluster_settings(program):
    """The deployment's settings are ones that the program starts with."""
    lines = [line for line in CLUSTER_SETTINGS.read_text().splitlines() if re.match(r"[A-Z_]+=", line)]
    settings = dict(line.split("=", 1) for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        asked = [program, "keys", "create", "--name", "a", "--scope", "inference", "--data-dir", f"{folder}/data"]
        asked = subprocess.run(asked, env={**os.environ, **settings}, cwd=folder, capture_output=True, text=True)
    return [f"deploy/kubernetes/config.env: {asked.stderr.strip()}"] if asked.returncode else []


def check_facts(program, files):
    """Everything of the above."""
    command_line = CommandLine(program)
    faults = check_commands(files, command_line) + check_variables(command_line)
    return faults + check_api(command_line) + check_cluster_settings(program)
