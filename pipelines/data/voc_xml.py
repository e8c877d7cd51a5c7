"""Pascal VOC annotations: one xml file per image."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from kernels.host.files import NotReadableError, read_regular
from kernels.host.paths import printable
from pipelines.data.problems import Problem

_MAX_XML_BYTES, _MAX_LIST_BYTES = 16 << 20, 64 << 20
_MAX_SIDE_PX = 1_000_000
_MAX_NAME_LENGTH = 200
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocImage:
    """An annotation file.

    Attributes:
        image: expected path of the image.
        size: its width and height in px according to the xml.
        file: the xml.
        classes: class name of each object.
        boxes: (k, 4) float64: centre x, y, width, height, normalised.
        difficult: number of objects skipped because they are marked as difficult.
        problems: invalid objects, which are skipped.
    """

    image: Path
    size: tuple[int, int]
    file: Path
    classes: tuple[str, ...]
    boxes: np.ndarray
    difficult: int
    problems: tuple[Problem, ...]


class _BadObjectError(Exception):
    pass


class _DocumentTypeError(Exception):
    pass


class _PlainBuilder(ElementTree.TreeBuilder):
    """A builder without document types: their entities can expand a small file without limit."""

    def doctype(self, *_: object) -> None:
        """Reject the declaration, in any encoding."""
        raise _DocumentTypeError


def voc_files(source: Path) -> list[Path]:
    """Return the annotation files of a folder (or of `Annotations` in it), or of a list in `ImageSets/Main`.

    Raises:
        ValueError: there are none.
        OSError: the list cannot be read.
    """
    if source.is_dir():
        inner = source / "Annotations"
        found = sorted((inner if inner.is_dir() else source).glob("*.xml"))
        if not found:
            raise ValueError(f"{printable(source)}: no xml files; expected a folder of Pascal VOC annotations")
        return found
    try:
        lines = read_regular(source, max_bytes=_MAX_LIST_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except NotReadableError as error:
        raise ValueError(f"{printable(source)}: {error}; expected a list in VOC's ImageSets/Main") from None
    folder = source.absolute().parents[2] / "Annotations" if len(source.absolute().parts) > 3 else source.parent
    names = [line.split()[0] for line in lines if line.split()]
    if not names or not folder.is_dir():
        raise ValueError(
            f"{printable(source)}: not a list in VOC's ImageSets/Main: expected image names, and annotations in "
            f"{printable(folder)}"
        )
    return [folder / f"{name}.xml" for name in names]


def read_voc(file: Path) -> VocImage:
    """Read one annotation file.

    As in YOLOv5's conversion, corners count from 1, and objects marked as difficult are skipped. Boxes are clipped to
    the image.

    Raises:
        ValueError: the file is not a Pascal VOC annotation.
        OSError: the file cannot be read.
    """
    root = _parsed(file)
    name = (root.findtext("filename") or "").strip()
    width, height = (_side(root, side, file) for side in ("width", "height"))
    classes, boxes, problems, difficult = [], [], [], 0
    for number, entry in enumerate(root.iter("object"), start=1):
        if (entry.findtext("difficult") or "0").strip() == "1":
            difficult += 1
            continue
        try:
            category, box = _object(entry, width, height)
        except _BadObjectError as error:
            problems.append(Problem(file, None, "error", f"object {number}: {error}; skipped", "voc"))
            continue
        classes.append(category)
        boxes.append(box)
    return VocImage(
        image=_image_of(file, name),
        size=(width, height),
        file=file,
        classes=tuple(classes),
        boxes=np.asarray(boxes, np.float64).reshape(-1, 4),
        difficult=difficult,
        problems=tuple(problems),
    )


def _parsed(file: Path) -> ElementTree.Element:
    try:
        content = read_regular(file, max_bytes=_MAX_XML_BYTES)
    except NotReadableError as error:
        raise ValueError(f"{printable(file)}: {error}") from None
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_PlainBuilder()))
    except _DocumentTypeError:
        raise ValueError(f"{printable(file)}: declares entities or a document type, which is not allowed") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{printable(file)}: invalid xml: {error}") from None
    if root.tag != "annotation":
        raise ValueError(
            f"{printable(file)}: not a Pascal VOC annotation: the root element is <{printable(root.tag[:80])}>"
        )
    return root


def _side(root: ElementTree.Element, side: str, file: Path) -> int:
    text = (root.findtext(f"size/{side}") or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 0 < int(text) <= _MAX_SIDE_PX):
        raise ValueError(f"{printable(file)}: size/{side} is {printable(text[:40])!r}, not a size in pixels")
    return int(text)


def _object(entry: ElementTree.Element, width: int, height: int) -> tuple[str, Sequence[float]]:
    category = (entry.findtext("name") or "").strip()
    if not category or not category.isprintable():
        raise _BadObjectError("has no printable class name")
    if len(category) > _MAX_NAME_LENGTH:
        raise _BadObjectError(f"has a class name of {len(category)} characters; at most {_MAX_NAME_LENGTH}")
    corners = []
    for key in _CORNERS:
        text = (entry.findtext(f"bndbox/{key}") or "").strip()
        if not _NUMBER.fullmatch(text):
            raise _BadObjectError(f"{key} is {printable(text[:40])!r}, not a coordinate in pixels")
        corners.append(float(text) - 1.0)
    left, top, right, bottom = corners
    left, right = (min(max(x, 0.0), float(width)) for x in (left, right))
    top, bottom = (min(max(y, 0.0), float(height)) for y in (top, bottom))
    # Also rejects NaN.
    if not (right > left and bottom > top):
        raise _BadObjectError("the box is empty or outside the image")
    centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
    return category, (*centre, (right - left) / width, (bottom - top) / height)


def _image_of(file: Path, name: str) -> Path:
    """Return the image next to the xml or in `JPEGImages`; its suffix may differ from that in the xml."""
    return next((path for path in _places(file, name) if path.is_file()), next(_places(file, name)))


def _places(file: Path, name: str) -> Iterator[Path]:
    plain = Path(name).name or f"{file.stem}.jpg"
    image_folders = [file.parent.parent / "JPEGImages"] if file.parent.name == "Annotations" else []
    for folder in (*image_folders, file.parent):
        yield folder / plain
        for suffix in (".jpg", ".jpeg", ".png", ".JPG"):
            yield folder / f"{file.stem}{suffix}"
