"""Conversion of COCO and Pascal VOC annotations to YOLO's layout: images/<split> and labels/<split>."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from kernels.host.paths import printable
from pipelines.data.coco_json import is_coco_file, read_coco
from pipelines.data.images import ignore_metadata_warnings, size_mismatch, upright_size
from pipelines.data.listing import IMAGE_SUFFIXES
from pipelines.data.problems import Problem
from pipelines.data.voc_xml import read_voc, voc_files

PlacementMode = Literal["link", "copy", "move"]
"""How images are put into the new data set."""
_VOC_LISTS = ("train", "val", "test")


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its objects.

    Attributes:
        image: its path.
        size: width and height in px according to the annotations.
        classes: class name of each object.
        boxes: (k, 4) centre x, y, width, height, normalised.
    """

    image: Path
    size: tuple[int, int]
    classes: Sequence[str]
    boxes: np.ndarray


@dataclass
class AnnotatedSplit:
    """The images of a split, its annotation files, and its problems."""

    entries: list[AnnotatedImage] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    difficult: int = 0
    names: tuple[str, ...] = ()
    """Class names in the order of the file, if it has one."""


def read_split(source: Path) -> AnnotatedSplit:
    """Read a COCO json, a folder of VOC xml files, or a list in `ImageSets/Main`.

    Raises:
        ValueError: the source is none of these.
        OSError: it cannot be read.
    """
    if is_coco_file(source):
        return _read_coco(source)
    if not source.exists():
        raise FileNotFoundError(f"{printable(source)}: no such folder, list or COCO json")
    split = AnnotatedSplit(files=[source, *voc_files(source)])
    for file in split.files[1:]:
        try:
            found = read_voc(file)
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            text = reason or str(error).removeprefix(f"{printable(file)}: ")
            split.problems.append(Problem(file, None, "error", f"{text}; image skipped", "voc"))
            continue
        split.problems += found.problems
        split.difficult += found.difficult
        split.entries.append(AnnotatedImage(found.image, found.size, found.classes, found.boxes))
    return split


def _read_coco(source: Path) -> AnnotatedSplit:
    coco = read_coco(source)
    problems = [*coco.problems, *(problem for image in coco.images for problem in image.labels.problems)]
    entries = [
        AnnotatedImage(
            image.path,
            (image.width, image.height),
            [coco.class_names[int(number)] for number in image.labels.boxes[:, 0]],
            image.labels.boxes[:, 1:],
        )
        for image in coco.images
    ]
    return AnnotatedSplit(entries, [source], problems, names=coco.class_names)


def write_split(split: AnnotatedSplit, name: str, names: Sequence[str], folder: Path, *, mode: PlacementMode) -> None:
    """Write images and label files of a split to `folder`.

    An image that is missing or of another shape than its annotations say is removed from the split; such images and
    objects of unknown classes are reported as problems.

    Raises:
        OSError: a file cannot be written.
    """
    images, labels = folder / "images" / name, folder / "labels" / name
    for made in (images, labels):
        made.mkdir(parents=True)
    numbers, used_stems = {category: number for number, category in enumerate(names)}, set[str]()
    usable = []
    for entry in split.entries:
        problem = _problem(entry)
        if problem is not None:
            split.problems.append(problem)
            if problem.severity == "error":
                continue
        target = images / _unused(entry.image, used_stems)
        _place(entry.image, target, mode)
        rows = _rows(entry, numbers, split.problems)
        (labels / target.name).with_suffix(".txt").write_text("".join(f"{row}\n" for row in rows))
        usable.append(entry)
    split.entries = usable


def _problem(entry: AnnotatedImage) -> Problem | None:
    """Return the problem with an image that is missing, no image by its name, or not of the size in its annotations.

    An image that cannot be opened is left to `graph-check` of the new data set.
    """
    image = entry.image
    if not os.path.isfile(image):
        return Problem(image, None, "error", "no such image; skipped", "image-missing")
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        return Problem(image, None, "error", "not the name of a supported image; skipped", "image-unusable")
    with ignore_metadata_warnings():
        found = upright_size(image)
    if found is None:
        return None
    severity, text = size_mismatch(entry.size, found)
    return Problem(image, None, severity, text, "image-unusable") if text else None


def _place(image: Path, target: Path, mode: PlacementMode) -> None:
    if mode == "link":
        target.symlink_to(image.resolve())
    elif mode == "copy":
        shutil.copyfile(image, target)
    else:
        os.replace(image, target)


def _unused(image: Path, used_stems: set[str]) -> str:
    """Return a file name with an unused stem, because label files are named after the stem."""
    stem, number = image.stem, 2
    while stem in used_stems:
        stem, number = f"{image.stem}_{number}", number + 1
    used_stems.add(stem)
    return f"{stem}{image.suffix}"


def _rows(entry: AnnotatedImage, numbers: Mapping[str, int], problems: list[Problem]) -> list[str]:
    rows = []
    for category, box in zip(entry.classes, entry.boxes.tolist(), strict=True):
        if category in numbers:
            rows.append(" ".join([str(numbers[category]), *(f"{value:.8g}" for value in box)]))
        else:
            text = f"class {printable(category)!r} is not among the class names; object skipped"
            problems.append(Problem(entry.image, None, "error", text, "class-range"))
    return rows


def convert_voc_devkit(source: Path, names: Sequence[str], folder: Path) -> list[Problem]:
    """Convert VOC's published archives to `images/<set><year>` and `labels/<set><year>`; images are moved.

    The sets are train, val and test; `trainval` and the lists of single classes are redundant.

    Args:
        source: the unpacked archive, with `VOCdevkit/VOC<year>/ImageSets/Main`.
        names: class names in the order of their numbers.
        folder: folder of the data set.
    Returns:
        Problems with skipped annotations.
    Raises:
        ValueError: there are no such lists.
        OSError: a file cannot be read or written.
    """
    problems: list[Problem] = []
    lists = list(_voc_lists(source))
    if not lists:
        raise ValueError("no VOCdevkit/VOC<year>/ImageSets/Main with train.txt, val.txt or test.txt")
    for file in lists:
        split = read_split(file)
        year = file.parents[2].name.removeprefix("VOC")
        write_split(split, f"{file.stem}{year}", names, folder, mode="move")
        problems += split.problems
    return problems


def _voc_lists(source: Path) -> Iterator[Path]:
    for folder in sorted(source.glob("VOCdevkit/VOC*/ImageSets/Main")):
        yield from (folder / f"{name}.txt" for name in _VOC_LISTS if (folder / f"{name}.txt").is_file())
