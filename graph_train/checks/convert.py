"""`graph-check convert`: a YOLO data set of Pascal VOC or COCO annotations, with a report of what was left out."""

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from graph_train.settings.convert_options import ConvertOptions
from pipelines.data.coco_json import is_coco_file, read_coco
from pipelines.data.home_folder import with_home
from pipelines.data.problems import Problem, count, printable, write_problems
from pipelines.data.voc_xml import VocImage, read_voc, voc_files


@dataclass(frozen=True)
class _Entry:
    """An image and its objects: class names, and (k, 4) centre x, y, width, height as shares of the image."""

    image: Path
    classes: Sequence[str]
    boxes: np.ndarray


@dataclass
class _Split:
    entries: list[_Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    difficult: int = 0
    names: tuple[str, ...] = ()
    """Class names in the order of the file, where it has one."""


def convert(options: ConvertOptions) -> int:
    """Write the data set and print the report; returns the number of errors.

    Raises:
        ValueError: a source that is no such annotation, or an output that exists.
        OSError: a file cannot be read or written; nothing is left of the output then.
    """
    output = with_home(options.output)
    if output.exists():
        raise ValueError(f"--output {printable(output)}: exists already; name a folder that does not")
    sources = {"train": options.train, "val": options.val, "test": options.test}
    splits = {name: _read(with_home(source)) for name, source in sources.items() if source}
    names = options.names or _names(splits.values())
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        for name, split in splits.items():
            _write(split, name, names, temporary, copy=options.copy)
        _write_yaml(temporary, splits, names)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _report(options, splits, names, output)


def _read(source: Path) -> _Split:
    if is_coco_file(source):
        return _read_coco(source)
    if not source.exists():
        raise FileNotFoundError(f"{printable(source)}: no such folder, list or COCO json")
    split = _Split()
    for file in voc_files(source):
        try:
            found = read_voc(file)
        except (ValueError, OSError) as error:
            text = str(error).removeprefix(f"{printable(file)}: ")
            split.problems.append(Problem(file, None, "error", f"{text}; image left out", "voc"))
            continue
        _add_voc(split, found)
    return split


def _add_voc(split: _Split, found: VocImage) -> None:
    split.problems += found.problems
    split.difficult += found.difficult
    split.entries.append(_Entry(found.image, found.classes, found.boxes))


def _read_coco(source: Path) -> _Split:
    coco = read_coco(source)
    problems = [*coco.problems, *(problem for image in coco.images for problem in image.labels.problems)]
    entries = [
        _Entry(image.path, [coco.class_names[int(number)] for number in image.labels.boxes[:, 0]],
               image.labels.boxes[:, 1:])
        for image in coco.images
    ]  # fmt: skip
    return _Split(entries, problems, names=coco.class_names)


def _names(splits: Iterable[_Split]) -> tuple[str, ...]:
    """Those of COCO files in their order, then all others by the alphabet."""
    listed = dict.fromkeys(name for split in splits for name in split.names)
    others = {name for split in splits for entry in split.entries for name in entry.classes} - listed.keys()
    return (*listed, *sorted(others))


def _write(split: _Split, name: str, names: Sequence[str], folder: Path, *, copy: bool) -> None:
    """Images and label files of a split; an image that is not there, or of an unknown class, becomes a problem."""
    images, labels = folder / "images" / name, folder / "labels" / name
    for made in (images, labels):
        made.mkdir(parents=True)
    numbers, taken = {category: number for number, category in enumerate(names)}, set[str]()
    usable = []
    for entry in split.entries:
        if not entry.image.is_file():
            problem = Problem(entry.image, None, "error", "no such image; left out", "image-missing")
            split.problems.append(problem)
            continue
        target = images / _unused(entry.image, taken)
        if copy:
            shutil.copyfile(entry.image, target)
        else:
            target.symlink_to(entry.image.resolve())
        rows = _rows(entry, numbers, split.problems)
        (labels / target.name).with_suffix(".txt").write_text("".join(f"{row}\n" for row in rows))
        usable.append(entry)
    split.entries = usable


def _unused(image: Path, taken: set[str]) -> str:
    """A file name whose stem no image of the split has, since its label file is called by the stem."""
    stem, number = image.stem, 2
    while stem in taken:
        stem, number = f"{image.stem}_{number}", number + 1
    taken.add(stem)
    return f"{stem}{image.suffix}"


def _rows(entry: _Entry, numbers: Mapping[str, int], problems: list[Problem]) -> list[str]:
    rows = []
    for category, box in zip(entry.classes, entry.boxes.tolist(), strict=True):
        if category in numbers:
            rows.append(" ".join([str(numbers[category]), *(f"{value:.8g}" for value in box)]))
        else:
            text = f"class {printable(category)!r} is not among --names; object left out"
            problems.append(Problem(entry.image, None, "error", text, "class-range"))
    return rows


def _write_yaml(folder: Path, splits: Mapping[str, _Split], names: Sequence[str]) -> None:
    content = {"path": ".", **{name: f"images/{name}" for name in splits}, "names": dict(enumerate(names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _report(options: ConvertOptions, splits: Mapping[str, _Split], names: Sequence[str], output: Path) -> int:
    for name, split in splits.items():
        counted = Counter(category for entry in split.entries for category in entry.classes)
        empty = sum(not len(entry.classes) for entry in split.entries)
        print(f"{name}: {len(split.entries)} images, {empty} of them without objects, {counted.total()} objects")
        for category in names:
            print(f"  {category}: {counted[category]}")
        if split.difficult:
            print(f"  {split.difficult} objects marked as difficult left out, as YOLOv5 does")
    problems = [problem for split in splits.values() for problem in split.problems]
    for problem in problems:
        print(problem)
    if options.problems:
        write_problems(options.problems, problems)
    errors = count(problems, "error")
    print(f"{errors} errors, {len(problems) - errors} warnings; wrote {printable(output / 'data.yaml')}")
    return errors
