"""Measured figures in the documentation, recomputed from raw result files as specified by `figures.yaml`.

python -m tests.docs.figures            # list wrong figures; exit code 1 if there are any
python -m tests.docs.figures --write    # update the figures
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import PAGE, RESULTS_FOLDER
from tests.docs.commands import ROOT
from tests.docs.figure_sources import SourceError, number_of

CLAIMS = Path(__file__).with_name("figures.yaml")
DOCUMENTS = tuple(
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), RESULTS_FOLDER / "README.md")
    if path != PAGE
)
"""Excluded: the page written by `graph-bench report`, which another test compares with the results."""

_NUMBER = r"[+−-]?\d+(?:,\d{3})*(?:\.\d+)?"
_UNIT = r"times|%|ms|s|seconds?|minutes?|hours?|[KMGk]i?B|images/s|img/s|images per second|GFLOP/s|GB/s"
_JOIN = r"(?:\s(?:and|to|or|beside|instead of|with and|±)\s|,\s|–)"
_MEASURED = (
    re.compile(rf"(?<![\w.+−-]){_NUMBER}(?:{_JOIN}{_NUMBER})*(?:\s|(?=%))(?:{_UNIT})(?![\w/])"),
    re.compile(rf"(?<![\w.])mAP[\d:.-]*\s(?:of\s)?{_NUMBER}"),
    re.compile(r"(?<![\w.+−-])[+−-]?\d+\.\d\d+(?![\w.]*\.\d|\w)"),
)
"""Numbers that look measured: before a unit, with a deviation, or with two or more decimals."""
_NO_PROSE = re.compile(r"^```.*?^```|`[^`\n]*`|\]\([^)\s]*\)|https?://\S+", re.MULTILINE | re.DOTALL)
"""Text that is ignored: code and URLs."""


@dataclass(frozen=True)
class Figure:
    """A figure, its place in the documentation and its source."""

    document: Path
    start: int
    end: int
    written: str
    source: str

    def recomputed(self, files: Mapping[str, str]) -> str:
        """Return the number from its raw file, with as many decimals as in the document."""
        decimals = len(self.written.partition(".")[2])
        sign = "+" if self.written[0] in "+−-" else ""
        text = f"{number_of(self.source, files, RESULTS_FOLDER):{sign},.{decimals}f}"
        return text.replace("-", "−") if "−" in self.written or text[0] == "-" else text


@dataclass(frozen=True)
class Claims:
    """The content of `figures.yaml`.

    Attributes:
        files: path, below the results, of each file name used by sources.
        measured: sentences of each document with {SOURCE} in place of figures.
        not_measured: phrases of each document with numbers that no benchmark measured.
    """

    files: Mapping[str, str]
    measured: Mapping[str, Sequence[str]]
    not_measured: Mapping[str, Sequence[str]]


def read_claims(path: Path = CLAIMS) -> Claims:
    """Read `figures.yaml`."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Claims(content["files"], content["measured"], content["not measured"])


def problems(claims: Claims, root: Path = ROOT, documents: Sequence[Path] = DOCUMENTS) -> list[str]:
    """Return all figures that are wrong or have no source, and all claims that no document makes."""
    named = {str(path.relative_to(root)) for path in documents}
    found = [
        f"{name}: in figures.yaml, but not a document"
        for name in {**claims.measured, **claims.not_measured}
        if name not in named
    ]
    for path in documents:
        found += _problems_of(path, claims, root)
    return found


def _problems_of(path: Path, claims: Claims, root: Path) -> list[str]:
    name, text = str(path.relative_to(root)), path.read_text(encoding="utf-8")
    found: list[tuple[int, str]] = []
    covered: list[tuple[int, int]] = []
    for sentence in claims.measured.get(name, ()):
        figures = figures_of(path, text, sentence)
        if not figures:
            found.append((0, f"the sentence of figures.yaml is not there: {sentence}"))
        covered += [(figure.start, figure.end) for figure in figures]
        found += [(figure.start, wrong) for figure in figures if (wrong := _wrong(figure, claims.files))]
    for phrase in claims.not_measured.get(name, ()):
        spans = [match.span() for match in re.finditer(_spaced(phrase), text)]
        if not spans or not any(True for start, end in spans for _ in measured_looking(text[start:end])):
            found.append((0, f"the phrase of figures.yaml is not there, or has no figure: {phrase}"))
        covered += spans
    found += [
        (start, f"{text[start:end]!r} has no source: name it in tests/docs/figures.yaml, or remove it")
        for start, end in measured_looking(text)
        if not _inside(text, start, end, covered)
    ]
    return [f"{name}:{text.count(chr(10), 0, start) + 1}: {message}" for start, message in sorted(found)]


def _wrong(figure: Figure, files: Mapping[str, str]) -> str:
    try:
        computed = figure.recomputed(files)
    except SourceError as error:
        return str(error)
    return "" if computed == figure.written else f"{figure.written} is {computed} by {{{figure.source}}}"


def _spaced(text: str) -> str:
    """Return a pattern that matches a text with any line breaks."""
    return r"\s+".join(re.escape(word) for word in text.split())


def figures_of(document: Path, text: str, sentence: str) -> list[Figure]:
    """Return the figures of a sentence for each time that it occurs in a document."""
    literal, *rest = re.split(r"\{([^}]*)\}", " ".join(sentence.split()))
    pattern, sources = _literal(literal), rest[::2]
    for following in rest[1::2]:
        pattern += f"({_NUMBER})" + _literal(following)
    return [
        Figure(document, *match.span(place), match[place], source)
        for match in re.finditer(pattern, text)
        for place, source in enumerate(sources, 1)
    ]


def _literal(text: str) -> str:
    return r"\s+".join(re.escape(part) for part in text.split(" "))


def measured_looking(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of numbers that look measured, except those in code and URLs."""
    prose = _NO_PROSE.sub(lambda match: re.sub(r"\S", " ", match[0]), text)
    last = 0
    for start, end in sorted(match.span() for pattern in _MEASURED for match in pattern.finditer(prose)):
        if end > last:
            yield start, end
            last = end


def _inside(text: str, start: int, end: int, covered: Sequence[tuple[int, int]]) -> bool:
    """Return whether every number in text[start:end] is in a covered span."""
    # Digits in names such as mAP50-95 are not figures.
    numbers = re.finditer(
        rf"(?<!\w){_NUMBER}", re.sub(r"mAP[\d:.-]*", lambda match: "x" * len(match[0]), text[start:end])
    )
    return all(
        any(low <= start + number.start() and start + number.end() <= high for low, high in covered)
        for number in numbers
    )


def write(claims: Claims, root: Path = ROOT) -> None:
    """Update all figures in the documents.

    Raises:
        SourceError: an invalid source; its document is not written.
    """
    for name, sentences in claims.measured.items():
        path = root / name
        text = path.read_text(encoding="utf-8")
        figures = [figure for sentence in sentences for figure in figures_of(path, text, sentence)]
        for figure in sorted(figures, key=lambda figure: figure.start, reverse=True):
            text = text[: figure.start] + figure.recomputed(claims.files) + text[figure.end :]
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        write(read_claims())
    wrong = problems(read_claims())
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))
