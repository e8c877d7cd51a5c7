"""YOLO label files: rows `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 …`, all normalised to the image."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kernels.host.quantity import quantity
from pipelines.data.problems import Code, Problem

MAX_FILE_BYTES = 64 << 20
MAX_ROWS = 10_000
"""Maximum number of boxes per image, without repeated rows; every batch with the image needs this label capacity."""
MAX_CLASSES = 10_000
"""Maximum number of classes of a data set."""
MAX_CLASS_INDEX = 100_000
"""Integers from here on are considered damage rather than class numbers."""
SMALLEST_SIDE = 1e-6
MAX_REPORTS_PER_FILE = 100

_LARGEST = 1.0 + 2.0**-24
"""Largest number that float32 rounds to 1, because values are used as float32."""
_UNSIGNED = rb"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?"
_PLAIN_FILE = re.compile(rb"(?:[0-9]{1,5}(?: " + _UNSIGNED + rb"){4} ?(?:\r?\n|\Z))*")
"""Box rows in the usual format."""
_PLAIN_BYTES = 1 << 20
"""Limit for matching with `re`, which needs much more memory than the text."""


@dataclass(frozen=True)
class LabelRows:
    """The content of a label file.

    Attributes:
        boxes: (k, 5) float32 [class, cx, cy, w, h].
        segments: empty, or one polygon (m, 2) float32 per row of `boxes`.
        problems: invalid rows, which are skipped, and repeated ones, which are used once.
        usable: False if no row of a non-empty file is valid. Then the image must be skipped, because it is not known to
            be a background image.
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
    """Return empty labels, for a background image."""
    return LabelRows(np.zeros((0, 5), np.float32))


def parse_labels(content: bytes, file: Path, *, num_classes: int | None) -> LabelRows:
    """Parse the content of a label file; `file` is used in problems only.

    Unlike in YOLOv5, an invalid row does not invalidate the whole image, and in a file with polygons, rows of five
    columns are boxes rather than polygons of two points.

    Args:
        content: the bytes of the file.
        num_classes: classes from this number on are reported as "class-range" and dropped; None accepts all.
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
        none_usable = "its only row cannot" if len(problems) == 1 else f"none of its {len(problems)} rows can"
        text = f"{none_usable} be used; image skipped"
        return unusable_labels(file, text, _capped(problems, file))
    labels = _assemble(rows, file, problems)
    if len(labels.boxes) > MAX_ROWS:
        return unusable_labels(file, f"{len(labels.boxes)} boxes, at most {MAX_ROWS} are supported; image skipped")
    return labels


def parse_label_files(
    contents: Sequence[bytes], files: Sequence[Path | str], *, num_classes: int | None
) -> list[LabelRows]:
    """Parse several label files at once, with the same results as `parse_labels`.

    Files with only valid boxes, the usual case, are parsed together; others are parsed row by row.
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
    """Return a placeholder for labels that make an image unusable, for the reason `text`."""
    last = Problem(file, None, "error", text, "label-unusable")
    return LabelRows(np.zeros((0, 5), np.float32), problems=(*before, last), usable=False)


def _parse_row(tokens: list[bytes], num_classes: int | None) -> list[float]:
    """Return the numbers of a row; raise _BadRowError if it is invalid."""
    if len(tokens) != 5 and (len(tokens) < 7 or len(tokens) % 2 == 0):
        raise _BadRowError(
            f"{quantity(len(tokens), 'column')}{_commas(tokens)}; expected 5 for a box, or 1 + 2n for a polygon "
            "of n >= 3 points"
        )
    values = [_number(token) for token in tokens]
    class_index = values[0]
    if class_index < 0 or class_index != int(class_index):
        raise _BadRowError(f"class {_shown(tokens[0])} is not an integer >= 0")
    if class_index >= MAX_CLASS_INDEX:
        raise _BadRowError(f"class {_shown(tokens[0])} is too large; at most {MAX_CLASS_INDEX - 1} is supported")
    for token, value in zip(tokens[1:], values[1:], strict=True):
        if not 0.0 <= value <= _LARGEST:
            raise _BadRowError(f"coordinate {_shown(token)} is outside [0, 1]; divide pixels by the image size")
    if len(values) == 5:
        width, height = values[3], values[4]
    else:
        width, height = (max(axis) - min(axis) for axis in (values[1::2], values[2::2]))
    if min(width, height) < SMALLEST_SIDE:
        raise _BadRowError(f"box of {width:g} x {height:g} has no area")
    if num_classes is not None and class_index >= num_classes:
        text = f"class {int(class_index)}, but the data set has {num_classes} (0 to {num_classes - 1})"
        raise _BadRowError(text, "class-range")
    return values


def _commas(tokens: list[bytes]) -> str:
    """Return a hint if a row is separated by commas or semicolons."""
    return " (separate them with spaces)" if len(tokens) == 1 and (b"," in tokens[0] or b";" in tokens[0]) else ""


def _number(token: bytes) -> float:
    try:
        value = float(token)
    except ValueError:
        value = None
    if value is None or b"_" in token:  # float() ignores underscores between digits
        raise _BadRowError(f"{_shown(token)} is not a number")
    if not math.isfinite(value):
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
            problems.append(Problem(file, number, "warning", f"repeats line {first}; used once", "row-repeated"))
    segments: tuple[np.ndarray, ...] = ()
    if any(len(rows[position][1]) > 5 for position in kept):
        segments = tuple(_polygon(rows[position][1], boxes[position]) for position in kept)
    problems.sort(key=lambda problem: problem.line or 0)
    return LabelRows(boxes[kept], segments, _capped(problems, file))


def _box(values: list[float]) -> Sequence[float]:
    """Return [class, cx, cy, w, h] of a row; for a polygon, its bounding box, computed in float32 as in YOLOv5."""
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
    """Return the four corners (4, 2) of a box (4,), clockwise from the upper left, in the same units and dtype."""
    x, y, half_width, half_height = *box_cxcywh[:2], *(box_cxcywh[2:] / 2)
    left, right, top, bottom = x - half_width, x + half_width, y - half_height, y + half_height
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], box_cxcywh.dtype)


def _capped(problems: Sequence[Problem], file: Path) -> tuple[Problem, ...]:
    if len(problems) <= MAX_REPORTS_PER_FILE:
        return tuple(problems)
    rest = problems[MAX_REPORTS_PER_FILE:]
    # One problem represents the rest, with the most severe kind: a class out of range stops a training run.
    worst = max(rest, key=lambda problem: (problem.code == "class-range", problem.severity == "error"))
    text = f"{worst.text}; and {len(rest) - 1} more invalid or repeated rows in this file"
    return (*problems[:MAX_REPORTS_PER_FILE], replace(worst, text=text))
