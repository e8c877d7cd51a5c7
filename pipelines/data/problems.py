"""Problems with the files of a data set, printable and writable as a report."""

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
"""Kind of problem."""


@dataclass(frozen=True)
class Problem:
    """A problem. An error means that something was skipped; a warning that it is used as it is.

    Attributes:
        file: the file at fault.
        line: line number from 1, or None for the whole file.
        severity: "error" or "warning".
        text: description and consequence, without the file name.
        code: kind of problem.
        address: URL of a downloaded file, shown instead of its path.
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
    """Return the number of problems with this severity."""
    return sum(problem.severity == severity for problem in problems)


def write_problems(path: Path | str, problems: Sequence[Problem]) -> None:
    """Write one problem per line (UTF-8), atomically.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, "".join(f"{problem}\n" for problem in problems))
