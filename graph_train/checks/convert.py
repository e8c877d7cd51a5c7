"""`graph-check convert`: convert Pascal VOC or COCO annotations to a YOLO data set."""

import errno
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from graph_train.host.interrupts import Uninterrupted
from graph_train.settings.convert_options import ConvertOptions
from kernels.host.paths import output_file, printable, reject_overwriting, with_home
from kernels.host.quantity import quantity
from pipelines.data.problems import count, write_problems
from pipelines.data.yolo_layout import AnnotatedSplit, read_split, write_split

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def convert(options: ConvertOptions) -> int:
    """Write the data set and print a report; return the number of errors.

    Raises:
        ValueError: a source is not in one of these formats, or the output exists.
        OSError: a file cannot be read or written; the output is removed.
    """
    output = with_home(options.output)
    if os.path.lexists(output):
        raise ValueError(f"--output {printable(output)}: already exists; give the name of a new folder")
    sources = {"train": options.train, "val": options.val, "test": options.test}
    problems_file = output_file("--problems", options.problems, makes_folder=True) if options.problems else None
    splits = {name: read_split(with_home(source)) for name, source in sources.items() if source}
    for split in splits.values():
        reject_overwriting(problems_file, split.files)
    names = options.names or _names(splits.values())
    temporary = output.with_name(f".{secrets.token_hex(4)}.tmp")
    _make_folder(temporary, output)
    try:
        for name, split in splits.items():
            write_split(split, name, names, temporary, mode="copy" if options.copy else "link")
        _write_yaml(temporary, splits, names)
        os.replace(temporary, output)
    except OSError as error:
        if error.errno in _NO_SPACE:  # its file name may be that of the image that is copied
            reason = f"{error.strerror}; the partial output has been removed"
            raise OSError(f"--output {printable(output)}: {reason}") from error
        raise
    finally:
        with Uninterrupted():
            shutil.rmtree(temporary, ignore_errors=True)
    return _report(splits, names, output, problems_file)


def _make_folder(temporary: Path, output: Path) -> None:
    """Create the folder that is renamed to the output at the end.

    Raises:
        OSError: it cannot be created.
    """
    try:
        os.stat(output)  # raises for a name that is too long
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OSError(f"--output {printable(output)}: {error.strerror}; give another name") from None
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        reason = f"the folder cannot be created ({error.strerror})"
        raise OSError(f"--output {printable(output)}: {reason}; give another name") from None


def _names(splits: Iterable[AnnotatedSplit]) -> tuple[str, ...]:
    """Return the class names: those of COCO files in their order, then others alphabetically."""
    listed = dict.fromkeys(name for split in splits for name in split.names)
    others = {name for split in splits for entry in split.entries for name in entry.classes} - listed.keys()
    return (*listed, *sorted(others))


def _write_yaml(folder: Path, splits: Mapping[str, AnnotatedSplit], names: Sequence[str]) -> None:
    content = {"path": ".", **{name: f"images/{name}" for name in splits}, "names": dict(enumerate(names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _report(
    splits: Mapping[str, AnnotatedSplit], names: Sequence[str], output: Path, problems_file: Path | None
) -> int:
    for name, split in splits.items():
        counted = Counter(category for entry in split.entries for category in entry.classes)
        empty = sum(not len(entry.classes) for entry in split.entries)
        images, objects = quantity(len(split.entries), "image"), quantity(counted.total(), "object")
        print(f"{name}: {images}, {empty} of them without objects, {objects}")
        for category in names:
            print(f"  {category}: {counted[category]}")
        if split.difficult:
            print(f"  {quantity(split.difficult, 'object')} marked as difficult skipped, as in YOLOv5")
    problems = [problem for split in splits.values() for problem in split.problems]
    for problem in problems:
        print(problem)
    if problems_file:
        write_problems(problems_file, problems)
    errors = count(problems, "error")
    totals = f"{quantity(errors, 'error')}, {quantity(len(problems) - errors, 'warning')}"
    print(f"{totals}; wrote {printable(output / 'data.yaml')}")
    return errors
