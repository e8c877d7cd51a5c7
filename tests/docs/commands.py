"""Extraction of commands and programs from the documentation's `bash` and `python` blocks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)

FOREIGN = ("trtexec", "srun", "docker", "kubectl", "python", "pip", "ovc")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SET_UP = "pip install uv && "
_LAUNCHED = "-m graph_train "
"""The module that launchers start on every rank, equivalent to `graph-train`."""


@dataclass(frozen=True)
class Command:
    """A command and its place in the documentation."""

    file: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} {shlex.join(self.words)}"


@dataclass(frozen=True)
class Program:
    """A `python` block and its place in the documentation."""

    file: Path
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def documented_commands() -> list[Command]:
    """Return all commands in document order, without `uv run` and comments."""
    found = []
    for file, number, line in _lines("bash"):
        words = shlex.split(line.removeprefix(_SET_UP), comments=True)
        if words:
            found.append(Command(file, number, tuple(words[2:] if words[:2] == ["uv", "run"] else words)))
    return found


def documented_programs() -> list[Program]:
    """Return all `python` blocks."""
    return [Program(*block) for block in _blocks("python")]


def multi_host_examples() -> list[Command]:
    """Return the `graph-train` examples in `text` blocks for launchers of several machines."""
    found = []
    for file, number, line in _lines("text"):
        _, launched, flags = line.replace("srun graph-train ", _LAUNCHED).partition(_LAUNCHED)
        if launched:
            found.append(Command(file, number, ("graph-train", *shlex.split(flags))))
    return found


def text_block_commands() -> list[Command]:
    """Return our commands in `text` blocks, which need resources that tests do not have."""
    ours = re.compile(r"(?:uv run )?(graph-(?:train|val|predict|check|export|bench) .*)")
    found = [(file, number, match[1]) for file, number, line in _lines("text") if (match := ours.fullmatch(line))]
    return [Command(file, number, tuple(shlex.split(line, comments=True))) for file, number, line in found]


def foreign_commands() -> list[Command]:
    """Return the commands of other programs in `text` blocks."""
    found = []
    for file, number, line in _lines("text"):
        if re.match(rf"({'|'.join(FOREIGN)}) ", line):
            found.append(Command(file, number, tuple(shlex.split(line, comments=True))))
    return found


def inline_commands() -> list[Command]:
    """Return our inline-code commands that have at least one flag."""
    found = []
    for file in DOCUMENTS:
        text = _FENCED.sub(lambda block: "\n" * block.group().count("\n"), file.read_text())
        for code in re.finditer(r"`(?:uv run )?(graph-(?:train|val|predict|check|export|bench) [^`]*--[^`]*)`", text):
            line = text[: code.start()].count("\n") + 1
            # `...` means further flags.
            words = [word for word in shlex.split(code[1].replace("...", " ").replace("…", " ")) if word]
            found.append(Command(file, line, tuple(words)))
    return found


def fence_languages() -> set[str]:
    """Return the languages of all code blocks."""
    fences = (re.findall(r"^ *```(\S*)", file.read_text(), re.MULTILINE)[::2] for file in DOCUMENTS)
    return {language for languages in fences for language in languages}


def _lines(language: str) -> Iterator[tuple[Path, int, str]]:
    for file, first, text in _blocks(language):
        for offset, line in enumerate(text.replace("\\\n", "  ").splitlines()):
            yield file, first + offset, line


def _blocks(language: str) -> Iterator[tuple[Path, int, str]]:
    """Yield file, number of the first line and text of each block in a language."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for file in DOCUMENTS:
        text = file.read_text()
        for block in fenced.finditer(text):
            yield file, text[: block.start(1)].count("\n") + 1, block.group(1)
