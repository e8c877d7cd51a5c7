"""YOLO label files: rows `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 …`, all normalised to the image."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.data.problems import Code, Problem

MAX_FILE_BYTES = 64 << 20
MAX_ROWS = 10_000
"""Boxes in one image, repeated rows of a label file counted once: the label tensor of every batch with the image has to
hold as many."""
MAX_CLASS_INDEX = 100_000
"""An integer from here on is damage, not a class that the data set forgot to name."""
SMALLEST_SIDE = 1e-6
MAX_REPORTS_PER_FILE = 100

_LARGEST = 1.0 + 2.0**-24
"""The largest number that float32 rounds to 1: the bounds hold for the numbers as they are used."""
_UNSIGNED = rb"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?"
_PLAIN_FILE = re.compile(rb"(?:[0-9]{1,5}(?: " + _UNSIGNED + rb"){4} ?(?:\r?\n|\Z))*")
"""Rows of boxes as programs write them."""
_PLAIN_BYTES = 1 << 20
"""`re` needs many times the memory of what it matches."""


@dataclass(frozen=True)
class LabelRows:
    """The content of a label file.

    Attributes:
        boxes: (k, 5) float32 [class, cx, cy, w, h].
        segments: empty, or one (m, 2) float32 polygon for each row of `boxes`.
        problems: bad rows, which are left out, and repeated ones, which are kept once.
        usable: False if nothing of a non-empty file could be read: the image is then no background, its objects are
            unknown, and it must be left out of training.
    """

    boxes: np.ndarray
    segments: tuple[np.ndarray, ...] = ()
    problems: tuple[Problem, ...] = ()
    usable: bool = True


class _BadRowError(Exception):
    def __init__(self, text: str, code: Code = "row-dropped") -> None:
        super().__init__(text)
        self.code = code


def no_labels() -> LabelRows:
    """Return the labels of a background image."""
    return LabelRows(np.zeros((0, 5), np.float32))


def parse_labels(content: bytes, file: Path, *, num_classes: int | None) -> LabelRows:
    """Read the content of a label file; `file` only names it in problems.

    A bad row is dropped and reported; the reference drops the image with all its rows. A file in which rows of five
    columns stand beside polygons keeps them as boxes; the reference reads them as polygons of two points.

    Args:
        content: bytes of the file, in any state.
        num_classes: classes from here on are reported as "class-range" and dropped; None takes every class.
    """
    if len(content) > MAX_FILE_BYTES or b"\0" in content:
        what = "binary content" if b"\0" in content else f"{len(content)} bytes"
        return unusable_labels(file, f"{what}, not a text file of label rows; image skipped")
    rows: list[tuple[int, list[float]]] = []
    problems: list[Problem] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        tokens = line.split()
        if not tokens:
            continue
        try:
            rows.append((number, _parse_row(tokens, num_classes)))
        except _BadRowError as error:
            problems.append(Problem(file, number, "error", f"{error}; row dropped", error.code))
    if problems and not rows:
        text = f"none of its {len(problems)} rows can be used; image skipped"
        return unusable_labels(file, text, _capped(problems, file))
    labels = _assemble(rows, file, problems)
    if len(labels.boxes) > MAX_ROWS:
        return unusable_labels(file, f"{len(labels.boxes)} boxes, at most {MAX_ROWS} are supported; image skipped")
    return labels


def parse_label_files(
    contents: Sequence[bytes], files: Sequence[Path | str], *, num_classes: int | None
) -> list[LabelRows]:
    """Read the contents of several label files at once; the results are those of `parse_labels`.

    Files that hold nothing but good boxes, as most do, are checked together; each of the others is read row by row.
    """
    tokens = [content.split() if _is_plain(content) else [] for content in contents]
    counts = [len(found) // 5 for found in tokens]
    values = np.array([float(token) for found in tokens for token in found], np.float64).reshape(-1, 5)
    bad = (values[:, 1:] > _LARGEST).any(axis=1) | (values[:, 3:] < SMALLEST_SIDE).any(axis=1)
    if num_classes is not None:
        bad |= values[:, 0] >= num_classes
    with_bad_rows = set(np.repeat(np.arange(len(counts)), counts)[bad].tolist())
    boxes = values.astype(np.float32)
    as_bytes = boxes.view("V20").ravel().tolist()
    results, end = [], 0
    for number, count in enumerate(counts):
        start, end = end, end + count
        good = 0 < count <= MAX_ROWS and number not in with_bad_rows and len(set(as_bytes[start:end])) == count
        results.append(
            LabelRows(boxes[start:end])
            if good
            else parse_labels(contents[number], Path(files[number]), num_classes=num_classes)
        )
    return results


def _is_plain(content: bytes) -> bool:
    return len(content) <= _PLAIN_BYTES and _PLAIN_FILE.fullmatch(content) is not None


def unusable_labels(file: Path, text: str, before: Sequence[Problem] = ()) -> LabelRows:
    """Return a placeholder for labels because of which an image must be left out; `text` says why."""
    last = Problem(file, None, "error", text, "label-unusable")
    return LabelRows(np.zeros((0, 5), np.float32), problems=(*before, last), usable=False)


def _parse_row(tokens: list[bytes], num_classes: int | None) -> list[float]:
    """Return the numbers of a good row; raises _BadRowError otherwise."""
    if len(tokens) != 5 and (len(tokens) < 7 or len(tokens) % 2 == 0):
        raise _BadRowError(f"{len(tokens)} columns; a box has 5, a polygon of n >= 3 points 1 + 2n")
    values = [_number(token) for token in tokens]
    class_index = values[0]
    if class_index < 0 or class_index != int(class_index) or class_index >= MAX_CLASS_INDEX:
        raise _BadRowError(f"class {_shown(tokens[0])} is not an integer from 0 on")
    for token, value in zip(tokens[1:], values[1:], strict=True):
        if not 0.0 <= value <= _LARGEST:
            raise _BadRowError(f"coordinate {_shown(token)} is outside [0, 1]; divide pixels by the image size")
    if len(values) == 5:
        width, height = values[3], values[4]
    else:
        width, height = (max(axis) - min(axis) for axis in (values[1::2], values[2::2]))
    if min(width, height) < SMALLEST_SIDE:
        raise _BadRowError(f"a box of {width:g} x {height:g} has no area")
    if num_classes is not None and class_index >= num_classes:
        text = f"class {int(class_index)}, but the data set has {num_classes} (0 to {num_classes - 1})"
        raise _BadRowError(text, "class-range")
    return values


def _number(token: bytes) -> float:
    try:
        value = float(token)
    except ValueError:
        raise _BadRowError(f"{_shown(token)} is not a number") from None
    if b"_" in token or not math.isfinite(value):
        raise _BadRowError(f"{_shown(token)} is not a finite number")
    return value


def _shown(token: bytes) -> str:
    return repr(token[:24].decode("ascii", errors="backslashreplace"))


def _assemble(rows: list[tuple[int, list[float]]], file: Path, problems: list[Problem]) -> LabelRows:
    boxes = np.array([_box(values) for _, values in rows], np.float32).reshape(-1, 5)
    first_line: dict[bytes, int] = {}
    kept = []
    for position, (number, _) in enumerate(rows):
        first = first_line.setdefault(boxes[position].tobytes(), number)
        if first == number:
            kept.append(position)
        else:
            problems.append(Problem(file, number, "warning", f"repeats line {first}; kept once", "row-repeated"))
    segments: tuple[np.ndarray, ...] = ()
    if any(len(rows[position][1]) > 5 for position in kept):
        segments = tuple(_polygon(rows[position][1], boxes[position]) for position in kept)
    problems.sort(key=lambda problem: problem.line or 0)
    return LabelRows(boxes[kept], segments, _capped(problems, file))


def _box(values: list[float]) -> Sequence[float]:
    """Return [class, cx, cy, w, h] of a row; a polygon gives the box around it, computed in float32 as in YOLOv5."""
    if len(values) == 5:
        return values
    points = np.array(values[1:], np.float32).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [values[0], *((low + high) / 2), *(high - low)]


def _polygon(values: list[float], box: np.ndarray) -> np.ndarray:
    if len(values) > 5:
        return np.array(values[1:], np.float32).reshape(-1, 2)
    return box_corners(box[1:])


def box_corners(box_cxcywh: np.ndarray) -> np.ndarray:
    """Return the four corners (4, 2) of a box (4,), clockwise from the upper left one, in the same units and dtype."""
    x, y, half_width, half_height = *box_cxcywh[:2], *(box_cxcywh[2:] / 2)
    left, right, top, bottom = x - half_width, x + half_width, y - half_height, y + half_height
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], box_cxcywh.dtype)


def _capped(problems: Sequence[Problem], file: Path) -> tuple[Problem, ...]:
    if len(problems) <= MAX_REPORTS_PER_FILE:
        return tuple(problems)
    rest = problems[MAX_REPORTS_PER_FILE:]
    # One record stands for the rest, with the kind that matters most: a class out of range ends a training run.
    heaviest = max(rest, key=lambda problem: (problem.code == "class-range", problem.severity == "error"))
    text = f"{heaviest.text}; and {len(rest) - 1} more bad or repeated rows in this file"
    return (*problems[:MAX_REPORTS_PER_FILE], replace(heaviest, text=text))
