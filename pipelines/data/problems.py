"""What is wrong with the files of a data set: one record per finding, printable and writable as a report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kernels.host.files import write_atomically
from kernels.host.paths import printable

Severity = Literal["error", "warning"]
Code = Literal[
    "image-missing",
    "image-unusable",
    "image-repeated",
    "label-unusable",
    "row-dropped",
    "class-range",
    "class-empty",
    "class-repeated",
    "row-repeated",
    "label-orphan",
    "label-shared",
    "source",
    "coco",
    "voc",
]
"""What kind of finding it is; reports count by it."""


@dataclass(frozen=True)
class Problem:
    """One finding. An error means that something was left out of training; a warning that it was used as it is.

    Attributes:
        file: the file at fault.
        line: its line, counted from 1, or None if the whole file is meant.
        severity: "error" or "warning".
        text: what was found and what was done about it, without the file's name.
        code: what kind of finding it is.
        address: where the file was fetched from, to be named in its place.
    """

    file: Path
    line: int | None
    severity: Severity
    text: str
    code: Code
    address: str = ""

    def __str__(self) -> str:
        name = printable(self.address or self.file)
        place = name if self.line is None else f"{name}:{self.line}"
        return f"{place}: {self.severity}: {self.text}"


def count(problems: Iterable[Problem], severity: Severity) -> int:
    """Return how many problems have that severity."""
    return sum(problem.severity == severity for problem in problems)


def write_problems(path: Path | str, problems: Sequence[Problem]) -> None:
    """Write one problem per line (UTF-8), replacing the file as a whole.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, "".join(f"{problem}\n" for problem in problems))
