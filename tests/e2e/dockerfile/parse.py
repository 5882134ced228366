"""Reads a Dockerfile and a .dockerignore: what they say, without doing any of it."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

# The instructions that build.py follows, with their flags.
FLAGS = {
    "FROM": set(),
    "ARG": set(),
    "ENV": set(),
    "WORKDIR": set(),
    "COPY": {"from"},
    "RUN": set(),
    "USER": set(),
    "VOLUME": set(),
    "EXPOSE": set(),
    "HEALTHCHECK": {"interval", "timeout", "start-period", "retries"},
    "ENTRYPOINT": set(),
    "CMD": set(),
}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
UNITS = {"s": 1, "m": 60, "h": 3600}


class Fault(Exception):
    """What is wrong with a line of the Dockerfile, or with what it does."""

    def __init__(self, line, what):
        super().__init__(f"line {line}: {what}")


@dataclass
class Instruction:
    """One instruction, its continued lines joined."""

    line: int
    name: str
    rest: str
    flags: dict = field(default_factory=dict)

    def argv(self):
        """A command: a JSON array as it is, anything else for the shell."""
        return json_words(self) or ["/bin/sh", "-c", self.rest]

    def __str__(self):
        return f"line {self.line}: {self.name} " + re.sub(r"\s+", " ", self.rest)


def json_words(instruction):
    """The words of a JSON array, or nothing."""
    if not instruction.rest.startswith("["):
        return None
    try:
        found = json.loads(instruction.rest)
    except ValueError as error:
        # Docker would give the text to the shell, brackets included.
        raise Fault(instruction.line, f"not a JSON array: {error}") from error
    if not all(isinstance(word, str) for word in found):
        raise Fault(instruction.line, "a JSON array of other things than words")
    return found


def logical_lines(text):
    """Each instruction's first line number and text. Comments and empty lines may stand between its lines."""
    parts, start = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*#\s*escape\s*=", line):
            raise Fault(number, "the directive `escape` is not supported")
        if line.lstrip().startswith("#") or not line.strip():
            continue
        start = start if parts else number
        is_continued = line.rstrip().endswith("\\")
        parts.append(line.rstrip()[:-1] if is_continued else line)
        if not is_continued:
            yield start, "".join(parts).strip()
            parts = []
    if parts:
        raise Fault(start, "the file ends inside an instruction")


def parse(text):
    """The instructions of a Dockerfile. One that is not known is an error, and so is a flag."""
    found = []
    for line, instruction in logical_lines(text):
        name, _, rest = instruction.partition(" ")
        name, rest = name.upper(), rest.strip()
        if name not in FLAGS:
            raise Fault(line, f"the instruction `{name}` is not known here")
        flags = {}
        while match := re.match(r"--([a-z-]+)(?:=(\S+))?\s*", rest):
            if match.group(1) not in FLAGS[name] or match.group(2) is None:
                raise Fault(line, f"the flag `{match.group(0).strip()}` of {name} is not known here")
            flags[match.group(1)], rest = match.group(2), rest[match.end() :]
        if not rest:
            raise Fault(line, f"{name} says nothing")
        if name in ("RUN", "COPY") and re.search(r"<<-?[\"']?[A-Za-z_]", rest):
            raise Fault(line, "here-documents are not supported")
        found.append(Instruction(line, name, rest, flags))
    if not found or found[0].name != "FROM":
        raise Fault(found[0].line if found else 1, "the first instruction is not FROM")
    return found


def variable_at(text, at, variables, line):
    """The value of the variable whose `$` is at `at`, and where it ends."""
    if name := NAME.match(text, at + 1):
        return variables.get(name.group(), ""), name.end()
    braced = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([-+])([^${}]*))?\}").match(text, at + 1)
    if not braced:
        raise Fault(line, f"`{text[at:]}` is not a variable that is known here")
    name, kind, word = braced.groups()
    value = variables.get(name, "")
    if kind == "-":
        value = value or word
    elif kind == "+":
        value = word if value else ""
    return value, braced.end()


def words(text, variables, line):
    """Splits a text at unquoted spaces, removes quotes, and replaces variables outside single quotes."""
    found, word, quote, at = [], None, "", 0
    while at < len(text):
        letter = text[at]
        if letter == "$" and quote != "'":
            value, at = variable_at(text, at, variables, line)
            word = (word or "") + value
            continue
        at += 1
        if letter == quote:
            quote = ""
        elif not quote and letter in "\"'":
            quote, word = letter, word or ""
        elif not quote and letter.isspace():
            if word is not None:
                found.append(word)
            word = None
        else:
            if letter == "\\" and quote != "'" and at < len(text):
                letter, at = text[at], at + 1
            word = (word or "") + letter
    if quote:
        raise Fault(line, f"a quote {quote} is not closed")
    return found if word is None else [*found, word]


def assignments(instruction, variables):
    """NAME=VALUE pairs. All values see the variables from before the instruction."""
    pairs = {}
    for word in words(instruction.rest, variables, instruction.line):
        name, equals, value = word.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise Fault(instruction.line, f"`{word}` is not NAME=VALUE")
        pairs[name] = value
    return pairs


def seconds(text, line):
    match = re.fullmatch(r"(\d+)([smh])", text)
    if not match:
        raise Fault(line, f"`{text}` is not a duration that is known here")
    return int(match.group(1)) * UNITS[match.group(2)]


class Ignore:
    """What a .dockerignore keeps out of the context. The last pattern that matches a path, or a folder above it, decides."""

    def __init__(self, text):
        self.patterns = []
        for line in text.splitlines():
            pattern = line.strip()
            if pattern and not pattern.startswith("#"):
                is_exception = pattern.startswith("!")
                self.patterns.append((is_exception, self.compiled(pattern.lstrip("!").strip("/"))))

    @staticmethod
    def compiled(pattern):
        parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
        # A folder's pattern covers all that is below.
        return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces) + "(?:/.*)?")

    def covers(self, path):
        is_ignored = False
        for is_exception, pattern in self.patterns:
            if pattern.fullmatch(path):
                is_ignored = not is_exception
        return is_ignored

    def context(self, folder):
        """The relative paths of the files and links that reach a build in `folder`."""
        can_prune = not any(is_exception for is_exception, _ in self.patterns)
        for here, folders, files in os.walk(folder):
            below = Path(here).relative_to(folder)
            links = [name for name in folders if Path(here, name).is_symlink()]
            if can_prune:
                folders[:] = [name for name in folders if not self.covers(str(below / name))]
            yield from sorted(str(below / name) for name in files + links if not self.covers(str(below / name)))
