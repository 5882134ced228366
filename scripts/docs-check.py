#!/usr/bin/env python3
"""What the Markdown files promise, as far as text can tell: links and their anchors lead somewhere, tests and scripts that
are named exist, environment variables are read somewhere, and each block of commands is marked (docs_blocks.py). Needs
neither the program nor a network.

    scripts/docs-check.py [FILE...]
"""

import difflib
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlparse

sys.dont_write_bytecode = True
import scheduler_figure  # noqa: E402
from docs_blocks import LANGUAGES, ROOT, blocks_of, documents, unmarked  # noqa: E402

# Folders whose files documents name by their path from the root.
FOLDERS = "src|tests|scripts|benches|deploy|docs|models|examples|migrations|\\.ci"
SOURCES = ["src", "tests", "scripts", "benches", "deploy", "examples", ".ci", "build.rs", "Dockerfile.cuda"]


def prose_of(file):
    """Its lines by number, without blocks of code and comments."""
    lines, is_code = {}, False
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if re.match(r"\s*```", line):
            is_code = not is_code
        elif not is_code and not re.fullmatch(r"\s*<!--.*-->\s*", line):
            lines[number] = line
    return lines


def anchors_of(file):
    """The anchors of a file's headings, as GitHub makes them."""
    anchors = set()
    for line in prose_of(file).values():
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1)).lower()
            slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            number, anchor = 0, slug
            while anchor in anchors:
                number += 1
                anchor = f"{slug}-{number}"
            anchors.add(anchor)
    return anchors


def check_link(file, target):
    """What is wrong with a link, if anything."""
    url = urlparse(target)
    if url.scheme:
        is_url = url.scheme == "mailto" or (url.scheme in ("http", "https") and url.hostname and " " not in target)
        return None if is_url else f"`{target}` is not a URL"
    path = (file.parent / unquote(url.path)).resolve() if url.path else file
    if not path.exists():
        return f"`{target}` does not exist"
    if ROOT != path and ROOT not in path.parents:
        return f"`{target}` is outside the repository"
    if url.fragment and (path.suffix != ".md" or url.fragment not in anchors_of(path)):
        return f"`{target}`: there is no heading `#{url.fragment}`"
    return None


def check_links(file):
    faults = []
    for number, line in prose_of(file).items():
        line = re.sub(r"`[^`]*`", "``", line)
        targets = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", line) + re.findall(r"<(https?:[^>]*)>", line)
        for fault in filter(None, (check_link(file, target) for target in targets)):
            faults.append(f"{file.relative_to(ROOT)}:{number}: {fault}")
    return faults


# Tests

ATTRIBUTE = re.compile(r"\s*#\[(tokio::)?test\b")
FUNCTION = re.compile(r"\s*(?:pub )?(?:async )?fn (\w+)")
INLINE_MODULE = re.compile(r"(\s*)(?:pub(?:\([^)]*\))? )?mod (\w+) \{$")
FILE_MODULE = re.compile(r"(\s*)(?:pub(?:\([^)]*\))? )?mod (\w+);$")
PATH_ATTRIBUTE = re.compile(r"\s*#\[path = \"([^\"]+)\"\]")


def tests_in(file, module, folder):
    """The paths of the tests in a source file and in the modules below it. Goes by rustfmt's indentation."""
    found, inside, is_test, path = set(), [], False, None
    for line in file.read_text().splitlines():
        while inside and line == inside[-1][0] + "}":
            inside.pop()
        names = [*module, *(name for _, name in inside)]
        if ATTRIBUTE.match(line):
            is_test = True
        elif is_test and (function := FUNCTION.match(line)):
            found.add("::".join([*names, function.group(1)]))
            is_test = False
        elif at := PATH_ATTRIBUTE.match(line):
            path = at.group(1)
        elif below := INLINE_MODULE.match(line):
            inside.append((below.group(1), below.group(2)))
        elif below := FILE_MODULE.match(line):
            name, here = below.group(2), folder.joinpath(*(name for _, name in inside))
            places = [file.parent / path] if path else [here / f"{name}.rs", here / name / "mod.rs"]
            for place in filter(Path.is_file, places):
                found |= tests_in(place, [*names, name], place.parent / name if place.stem == name else place.parent)
            path = None
    return found


class Tests:
    """The tests of the library and of each file or folder below `tests`."""

    def __init__(self):
        self.by_target = {}

    def of(self, target):
        if target not in self.by_target:
            self.by_target[target] = self.read(target)
        return self.by_target[target]

    @staticmethod
    def read(target):
        if target == "lib":
            return tests_in(ROOT / "src/lib.rs", [], ROOT / "src")
        for file in [ROOT / f"tests/{target}.rs", ROOT / f"tests/{target}/main.rs"]:
            if file.is_file():
                return tests_in(file, [], file.parent)
        return None

    def fault(self, target, name):
        """What is wrong with a filter for tests, if anything. It begins where a word of their paths does."""
        tests = self.of(target)
        if tests is None:
            return f"there is no `tests/{target}.rs`"
        if name is None or any(re.search(rf"(^|::|_){re.escape(name)}", path) for path in tests):
            return None
        near = difflib.get_close_matches(name, [path[: len(name) + 8] for path in tests], 1)
        return f"no test of `{target}` has the name `{name}`" + (f"; is it now `{near[0]}…`?" if near else "")


def check_cargo(words, tests):
    """What is wrong with a cargo command, if anything."""
    target = name = None
    flags = iter(words[2:])
    for word in flags:
        if word == "--":
            break
        if word == "--lib":
            target = "lib"
        elif word in ("--test", "--bench", "--example", "--features"):
            value = next(flags, "")
            if word == "--test":
                target = value
            elif word == "--features":
                if not re.search(rf"^{re.escape(value)} = \[", (ROOT / "Cargo.toml").read_text(), re.MULTILINE):
                    return f"there is no feature `{value}`"
            else:
                folder = ROOT / ("benches" if word == "--bench" else "examples")
                if not any(place.is_file() for place in [folder / f"{value}.rs", folder / value / "main.rs"]):
                    return f"there is no `{folder.name}/{value}.rs`"
        elif not word.startswith("-"):
            name = word
    if words[1] != "test" or (target is None and name is None):
        return None
    return tests.fault(target or "lib", name)


def commands_of(file):
    """What is written as a command, with the number of its line: in prose between backticks, and in blocks."""
    text = file.read_text()
    for number, line in prose_of(file).items():
        yield from ((number, code) for code in re.findall(r"`([^`]+)`", line))
    # A command that is broken over two lines of prose.
    for code in re.finditer(r"`(cargo [^`\n]*\n[^`\n]*)`", text):
        yield text[: code.start()].count("\n") + 1, " ".join(code.group(1).split())
    for block in blocks_of(file):
        if block.language in LANGUAGES:
            for offset, line in enumerate(block.text.replace("\\\n", " ").splitlines(), 1):
                yield block.line + offset, line.split(" #")[0].strip()


def check_command(code, tests):
    """What is wrong with a command or a path between backticks."""
    words = code.split()
    if words[:1] == ["cargo"] and words[1:2] in (["test"], ["bench"], ["run"]):
        yield check_cargo(words, tests)
    for path in re.findall(rf"(?:^|[\s=])((?:{FOLDERS})/[\w./-]+)", code):
        path = path.rstrip(".")
        if not (ROOT / path).exists() and not any(ROOT.glob(f"{path}.*")):
            yield f"`{path}` does not exist"


def sources_text():
    files = [ROOT / name for name in SOURCES]
    files = [path for file in files for path in ([file] if file.is_file() else file.rglob("*")) if path.is_file()]
    return "\n".join(path.read_text(errors="ignore") for path in files if path.suffix not in (".png", ".safetensors"))


def check_dependencies():
    """What of Cargo.toml docs/dependencies.md does not name."""
    cargo, page = tomllib.loads((ROOT / "Cargo.toml").read_text()), (ROOT / "docs/dependencies.md").read_text()
    tables = [cargo, *cargo.get("target", {}).values()]
    kinds = ["dependencies", "dev-dependencies", "build-dependencies"]
    names = {name for table in tables for kind in kinds for name in table.get(kind, {})}
    return [f"docs/dependencies.md: does not say what `{name}` is for" for name in sorted(names) if f"`{name}`" not in page]


def main():
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or documents()
    tests, sources, faults = Tests(), sources_text(), []
    for file in chosen:
        faults += check_links(file) + unmarked(blocks_of(file))
        for number, code in commands_of(file):
            for fault in filter(None, check_command(code, tests)):
                faults.append(f"{file.relative_to(ROOT)}:{number}: {fault}")
        for variable in sorted(set(re.findall(r"\bFLUXSERVE_[A-Z_]*[A-Z]\b", file.read_text()))):
            if not re.search(rf"\b{variable}\b", sources):
                faults.append(f"{file.relative_to(ROOT)}: nothing reads `{variable}`")
    faults += check_dependencies()
    if scheduler_figure.FIGURE.read_text() != scheduler_figure.figure():
        faults.append("docs/scheduler.svg is not what benches/README.md records: run scripts/scheduler_figure.py")
    print("\n".join(faults) or f"{len(chosen)} documents: links, tests, scripts, variables and marks are right")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
