"""Detection of incomplete data sets, as after an interrupted copy, without reading all files."""

import os
from pathlib import Path

from kernels.host.files import read_regular
from pipelines.data.listing import IMAGE_SUFFIXES, label_path, listed_image

_MAX_LIST_BYTES = 1 << 30


def missing_part(source: Path) -> Path | None:
    """Return the first missing part of a split, images or label folder; None if it is complete.

    Only the first image and one label file are checked.

    Args:
        source: a folder of images without subfolders, or a txt list.
    Raises:
        OSError: it cannot be read.
    """
    image = _first_image(source)
    if image is None:
        return source
    if not image.exists():
        return image if image.parent.is_dir() else image.parent
    labels = label_path(image).parent
    return None if labels.is_dir() and _first_name(labels, frozenset({".txt"})) else labels


def _first_image(source: Path) -> Path | None:
    if not source.is_dir():
        lines = (line.strip() for line in read_regular(source, max_bytes=_MAX_LIST_BYTES).splitlines())
        return next((listed_image(os.fsdecode(line), source) for line in lines if line), None)
    name = _first_name(source, IMAGE_SUFFIXES)
    return source / name if name else None


def _first_name(folder: Path, suffixes: frozenset[str]) -> str | None:
    with os.scandir(folder) as entries:
        return next((entry.name for entry in entries if Path(entry.name).suffix.lower() in suffixes), None)
