"""Reads the commands out of the documentation: every line of a `bash` block."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SET_UP = "pip install uv && "


@dataclass(frozen=True)
class Command:
    """One command and where it is written."""

    file: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} {shlex.join(self.words)}"


def documented_commands() -> list[Command]:
    """All commands in the order in which a reader meets them, without `uv run` before and comments behind them."""
    return [command for file in DOCUMENTS for command in _commands_in(file)]


def _commands_in(file: Path) -> Iterator[Command]:
    text = file.read_text()
    for block in _BLOCK.finditer(text):
        first = text[: block.start(1)].count("\n") + 1
        lines = block.group(1).replace("\\\n", "  ").splitlines()
        for offset, line in enumerate(lines):
            words = shlex.split(line.removeprefix(_SET_UP), comments=True)
            if words:
                yield Command(file, first + offset, tuple(words[2:] if words[:2] == ["uv", "run"] else words))
