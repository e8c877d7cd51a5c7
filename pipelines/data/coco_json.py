"""COCO detection json files as sources of images and labels."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.host.files import NotReadableError, read_regular
from kernels.host.paths import printable
from kernels.host.quantity import quantity
from pipelines.data.labels import MAX_CLASSES, MAX_ROWS, SMALLEST_SIDE, LabelRows, box_corners, unusable_labels
from pipelines.data.problems import Code, Problem

MAX_FILE_BYTES = 4 << 30
MAX_POLYGON_POINTS = 10_000
MAX_SIDE_PX = 1_000_000
_DISTANCES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class CocoImage:
    """An image entry with its annotations.

    Attributes:
        path: expected path of the image.
        width, height: image size in px according to the json.
        labels: normalised rows; boxes are clipped to the image.
    """

    path: Path
    width: int
    height: int
    labels: LabelRows


@dataclass(frozen=True)
class CocoFile:
    """The images and problems of a COCO json, and its class names by class index."""

    images: tuple[CocoImage, ...]
    class_names: tuple[str, ...]
    problems: tuple[Problem, ...]


class _BadEntryError(Exception):
    def __init__(self, text: str, code: Code = "coco") -> None:
        super().__init__(text)
        self.code = code


def is_coco_file(source: Path) -> bool:
    """Return whether a source is a COCO json, by its suffix."""
    return source.suffix.lower() == ".json"


def read_coco(path: Path, class_names: Sequence[str] = ()) -> CocoFile:
    """Read a COCO detection json.

    Classes are matched by name with `class_names`; without these, classes are numbered in the order of category ids, as
    in YOLO versions of COCO. Crowd regions (`iscrowd`) are skipped and counted. Boxes are read from `bbox` and polygons
    from `segmentation`; the parts of an object are joined to a single polygon.

    Raises:
        ValueError: the file is not a COCO json, or a category is not among the data set's names.
        OSError: the file cannot be read.
    """
    document = _load(path)
    classes, names = _classes(path, _list(path, document, "categories"), class_names)
    problems: list[Problem] = []
    entries = _image_entries(path, _list(path, document, "images"), problems)
    annotations = _list(path, document, "annotations")
    rows: dict[Any, list[tuple[np.ndarray, np.ndarray | None]]] = {key: [] for key in entries}
    crowds = 0
    for position, annotation in enumerate(annotations):
        try:
            crowd = _add_annotation(annotation, entries, classes, rows)
        except _BadEntryError as error:
            text = f"annotation {_identity(annotation, position)}: {error}; skipped"
            problems.append(Problem(path, None, "error", text, error.code))
        else:
            crowds += crowd
    if crowds:
        problems.append(Problem(path, None, "warning", f"{quantity(crowds, 'crowd region')} skipped", "coco"))
    folder = _image_folder(path, [name for name, _, _ in entries.values()])
    images = tuple(
        CocoImage(folder / name, width, height, _label_rows(path, name, rows[key]))
        for key, (name, width, height) in entries.items()
    )
    return CocoFile(images, names, tuple(problems))


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_regular(path, max_bytes=MAX_FILE_BYTES))
    except NotReadableError as error:
        raise ValueError(f"{printable(path)}: {error}; expected a COCO json") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)}: invalid json: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ValueError(
            f"{printable(path)}: not a COCO json: expected an object with images, annotations and categories"
        )
    return document


def _list(path: Path, document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{printable(path)}: not a COCO json: `{key}` must be a list, found {type(value).__name__}")
    return value


def _classes(path: Path, categories: list[Any], class_names: Sequence[str]) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the class index by category id, and the class names."""
    by_id: dict[int, str] = {}
    for category in categories:
        entry = category if isinstance(category, dict) else {}
        key, name = entry.get("id"), entry.get("name")
        if type(key) is not int or not isinstance(name, str) or key in by_id:
            raise ValueError(
                f"{printable(path)}: category {category!r:.80}: must have a unique integer `id` and a `name`"
            )
        if not name.strip() or not name.isprintable():
            raise ValueError(f"{printable(path)}: category {key} must have a printable name, found {name!r:.80}")
        by_id[key] = name
    if len(by_id) > MAX_CLASSES:
        raise ValueError(f"{printable(path)}: {len(by_id)} categories; at most {MAX_CLASSES} are supported")
    names = tuple(class_names) or tuple(by_id[key] for key in sorted(by_id))
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        numbers.setdefault(name, number)
    unknown = [name for name in by_id.values() if name not in numbers]
    if unknown or not names:
        text = f"category {unknown[0]!r} is not among the data set's names" if unknown else "no categories"
        raise ValueError(f"{printable(path)}: {text}; correct `names` in the dataset yaml, or remove it")
    return {key: numbers[name] for key, name in by_id.items()}, names


def _image_entries(path: Path, images: list[Any], problems: list[Problem]) -> dict[Any, tuple[str, int, int]]:
    """Return the file name, width and height by image id."""
    entries: dict[Any, tuple[str, int, int]] = {}
    for position, image in enumerate(images):
        try:
            key, entry = _image_entry(image)
            if key in entries:
                raise _BadEntryError("duplicate id")
            entries[key] = entry
        except _BadEntryError as error:
            text = f"image {_identity(image, position)}: {error}; skipped"
            problems.append(Problem(path, None, "error", text, error.code))
    return entries


def _identity(entry: Any, position: int) -> str:
    key = entry.get("id") if isinstance(entry, dict) else None
    return f"id {key!r:.40}" if key is not None else f"number {position}"


def _image_entry(image: Any) -> tuple[Any, tuple[str, int, int]]:
    if not isinstance(image, dict) or type(image.get("id")) not in (int, str):
        raise _BadEntryError("no `id`")
    name, width, height = image.get("file_name"), image.get("width"), image.get("height")
    if not isinstance(name, str) or not name or "\0" in name:
        raise _BadEntryError(f"file_name {name!r:.80} is not a file name")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise _BadEntryError(f"file_name {name!r:.80} is not a file name") from None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise _BadEntryError(f"file_name {name!r:.80} is outside the image folder")
    sides = f"width {width!r:.20} and height {height!r:.20}"
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise _BadEntryError(f"{sides} must be positive integers")
    if max(width, height) > MAX_SIDE_PX:
        raise _BadEntryError(f"{sides} must be at most {MAX_SIDE_PX}")
    return image["id"], (name, width, height)


def _add_annotation(
    annotation: Any,
    entries: dict[Any, tuple[str, int, int]],
    classes: dict[int, int],
    rows: dict[Any, list[tuple[np.ndarray, np.ndarray | None]]],
) -> bool:
    """Append the annotation to its image's rows; return True if it is a crowd region, which is skipped."""
    if not isinstance(annotation, dict):
        raise _BadEntryError("not a mapping")
    image, category = annotation.get("image_id"), annotation.get("category_id")
    if type(image) not in (int, str) or image not in entries:
        raise _BadEntryError(f"there is no image {image!r:.40}")
    if type(category) is not int or category not in classes:
        raise _BadEntryError(f"there is no category {category!r:.40}")
    if annotation.get("iscrowd"):
        return True
    _, width, height = entries[image]
    box = _normalised_box(annotation.get("bbox"), width, height)
    polygon = _polygon(annotation.get("segmentation"), width, height)
    rows[image].append((np.array([classes[category], *box], np.float32), polygon))
    return False


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list):
        raise _BadEntryError(f"{values!r:.60} is not a list of numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # NaN too
            raise _BadEntryError(f"{value!r:.40} is not a valid coordinate")
    return [float(value) for value in values]


def _normalised_box(bbox: Any, width: int, height: int) -> tuple[float, float, float, float]:
    """Return [x, y, w, h] in px as centre, width and height relative to the image, clipped to it."""
    values = _numbers(bbox)
    if len(values) != 4:
        raise _BadEntryError(f"bbox has {len(values)} numbers, expected x, y, width, height")
    x, y, box_width, box_height = values
    left, right = (min(max(edge / width, 0.0), 1.0) for edge in (x, x + box_width))
    top, bottom = (min(max(edge / height, 0.0), 1.0) for edge in (y, y + box_height))
    if min(right - left, bottom - top) < SMALLEST_SIDE:
        raise _BadEntryError(f"bbox {values} has no area inside the image", "row-dropped")
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _polygon(segmentation: Any, width: int, height: int) -> np.ndarray | None:
    """Return one normalised polygon (m, 2) around all parts; None for run-length masks or if there is none."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    parts = []
    for part in segmentation:
        values = _numbers(part)
        if len(values) < 6 or len(values) % 2:
            raise _BadEntryError(f"a polygon of {len(values)} numbers, expected 2 for each of at least 3 points")
        parts.append(np.array(values, np.float64).reshape(-1, 2) / (width, height))
    if sum(map(len, parts)) > MAX_POLYGON_POINTS:
        raise _BadEntryError(f"a polygon of more than {MAX_POLYGON_POINTS} points")
    return np.clip(_joined(parts), 0.0, 1.0).astype(np.float32)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join the parts to one closed outline, connected at their nearest points."""
    ring = parts[0]
    for part in parts[1:]:
        leave, enter = _nearest(ring, part)
        detour = np.roll(part, -enter, axis=0)
        ring = np.concatenate([ring[: leave + 1], detour, detour[:1], ring[leave:]])
    return ring


def _nearest(ring: np.ndarray, part: np.ndarray) -> tuple[int, int]:
    """Return the indices of the two nearest points, the first on ties; memory use is linear."""
    rows = max(1, _DISTANCES_AT_ONCE // len(part))
    shortest, nearest = np.inf, (0, 0)
    for start in range(0, len(ring), rows):
        distances = np.square(ring[start : start + rows, None] - part[None]).sum(axis=-1)
        row, column = divmod(int(distances.argmin()), len(part))
        if distances[row, column] < shortest:
            shortest, nearest = distances[row, column], (start + row, column)
    return nearest


def _label_rows(path: Path, name: str, rows: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> LabelRows:
    # Repeated boxes are used once, as in label files.
    kept: dict[bytes, tuple[np.ndarray, np.ndarray | None]] = {}
    for row, polygon in rows:
        kept.setdefault(row.tobytes(), (row, polygon))
    if len(kept) > MAX_ROWS:
        text = f"{printable(name)}: {len(kept)} boxes, at most {MAX_ROWS} are supported; image skipped"
        return unusable_labels(path, text)
    problems: tuple[Problem, ...] = ()
    if len(kept) < len(rows):
        repeated = quantity(len(rows) - len(kept), "annotation")
        text = f"{printable(name)}: {repeated} with the same class and box as another one; skipped"
        problems = (Problem(path, None, "warning", text, "row-repeated"),)
    boxes = np.array([row for row, _ in kept.values()], np.float32).reshape(-1, 5)
    polygons = [box_corners(row[1:]) if polygon is None else polygon for row, polygon in kept.values()]
    outlined = any(polygon is not None for _, polygon in kept.values())
    return LabelRows(boxes, tuple(polygons) if outlined else (), problems)


def _image_folder(path: Path, names: Iterable[str]) -> Path:
    """Return the image folder: the first candidate that contains one of the images."""
    split = path.stem.rpartition("_")[2]  # instances_val2017.json -> val2017
    above = path.parent.parent
    candidates = [above / "images" / split, above / split, above / "images", path.parent, above]
    for name in names:
        for folder in candidates:
            if os.path.exists(folder / name):
                return folder
    return candidates[0]
