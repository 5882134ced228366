"""The Markdown files of the repository, and the code blocks in them. Shared by docs-check.py and docs-test.py.

A block of `sh` or `python` carries a mark, an HTML comment on the line before it:

    <!-- run: NAME; OPTION; OPTION -->    docs-test.py runs it, and looks at what its options promise
    <!-- not run: REASON -->              docs-test.py only checks that its commands and flags exist
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {".git", ".tools", "target", "node_modules", "data", "shared", "venv"}
LANGUAGES = {"sh", "bash", "python"}
OPTIONS = {"serves", "no server", "pasted", "png", "prints", "exists"}


@dataclass
class Block:
    """A fenced block of code."""

    file: Path
    line: int
    language: str
    text: str
    mark: str | None
    options: dict[str, str] = field(default_factory=dict)

    @property
    def place(self):
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self):
        return self.mark is not None and self.mark.startswith("run:")

    @property
    def name(self):
        return self.mark.removeprefix("run:").split(";")[0].strip()


def documents():
    """Every Markdown file, in order."""
    found = [path for path in ROOT.rglob("*.md") if not SKIPPED & set(path.relative_to(ROOT).parts)]
    return sorted(found, key=lambda path: (path.name != "README.md" or path.parent != ROOT, str(path)))


def blocks_of(file):
    """The code blocks of a Markdown file, each with the mark before it."""
    blocks, block, mark = [], None, None
    for number, line in enumerate(file.read_text().splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if block is not None:
            if fence:
                blocks.append(block)
                block, mark = None, None
            else:
                block.text += line + "\n"
            continue
        comment = re.fullmatch(r"\s*<!--\s*(.*?)\s*-->\s*", line)
        if comment:
            mark = comment.group(1)
        elif fence:
            block = Block(file, number, fence.group(1), "", mark)
            block.options = options_of(mark)
        elif line.strip():
            mark = None
    return blocks


def options_of(mark):
    parts = [part.strip() for part in (mark or "").split(";")[1:]]
    return {name.strip(): value.strip() for name, _, value in (part.partition(":") for part in parts)}


def unmarked(blocks):
    """What is wrong with the marks of these blocks."""
    faults, names = [], set()
    for block in blocks:
        if block.language not in LANGUAGES:
            continue
        if block.mark is None or not re.match(r"(not )?run: *\S", block.mark):
            faults.append(f"{block.place}: a block of {block.language} needs `run: NAME` or `not run: REASON` before it")
        elif block.is_run:
            if (block.file, block.name) in names:
                faults.append(f"{block.place}: there are two blocks named `{block.name}`")
            names.add((block.file, block.name))
            for option in set(block.options) - OPTIONS:
                faults.append(f"{block.place}: there is no option `{option}`")
    return faults
