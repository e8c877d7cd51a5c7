"""The images of a split and their label files, from folders, txt lists, COCO json files or single images."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from kernels.host.files import NotReadableError, read_regular
from kernels.host.paths import printable
from pipelines.data.coco_json import CocoImage, is_coco_file, read_coco
from pipelines.data.problems import Problem
from pipelines.data.walk import walk_texts

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
UNSUPPORTED_SUFFIXES = frozenset(
    {".avif", ".dng", ".exr", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".pfm", ".psd", ".raw", ".svg"}
)
"""Suffixes of unsupported image formats, which are reported; other files are ignored."""
MAX_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class Listing:
    """Images sorted by path, as in YOLOv5. An image that is listed twice is used twice.

    Attributes:
        images: paths of all images, not yet checked.
        labels: label file of each image.
        coco: COCO json entry of each image, or None; empty if there is no json among the sources.
        class_names: the given class names, or those of the COCO json.
        files: the list and json files.
        problems: problems with the sources.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    coco: tuple[CocoImage | None, ...]
    class_names: tuple[str, ...]
    files: tuple[Path, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


_Entry = tuple[str, str, CocoImage | None]
"""An item with its paths as strings, to save memory."""


@dataclass
class _Collected:
    items: list[_Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    label_folders: dict[Path, None] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    progress: str | None = None

    def walk(self, folder: Path) -> Iterator[str]:
        """Return all files in a folder, recursively; record unreadable folders as problems."""
        return walk_texts(folder, self.problems, progress=self.progress)


def label_path(image: Path) -> Path:
    """Return the label file of an image: its path with the last `images` replaced by `labels` and suffix `.txt`."""
    return Path(_label_text(_stem_and_suffix(str(image))[0]))


def _label_text(stem: str) -> str:
    """Return the label file of the image whose path is `stem` and a suffix."""
    before, found, after = f"{stem}.txt".rpartition("/images/")
    return f"{before}/labels/{after}" if found else after


def _stem_and_suffix(path: str) -> tuple[str, str]:
    """Split a path into stem and suffix, like `Path` but faster."""
    start = path.rfind("/") + 1
    if start == len(path):
        raise ValueError(f"{printable(path)}: not the path of an image")
    dot = path.rfind(".")
    return (path[:dot], path[dot:]) if start < dot < len(path) - 1 else (path, "")


def list_images(sources: Sequence[Path], class_names: Sequence[str], *, progress: str | None = None) -> Listing:
    """Find the images of all sources.

    Args:
        sources: folders, lists, COCO json files, single images.
        class_names: of the data set.
        progress: name of the progress bar for folders; None shows none.
    Raises:
        ValueError: a source has an unsupported type, or a COCO json is invalid.
        OSError: a source cannot be read.
    """
    collected = _Collected(names=tuple(class_names), progress=progress)
    for source in sources:
        if source.is_dir():
            _add_folder(source, collected)
        elif source.suffix.lower() in IMAGE_SUFFIXES:
            collected.items.append(_entry(str(source)))
        elif is_coco_file(source):
            _add_coco(source, collected)
        elif source.suffix.lower() == ".txt":
            _add_list(source, collected)
        else:
            raise ValueError(f"{printable(source)}: not a folder, a txt list of images, or a COCO json")
    items = sorted(collected.items, key=itemgetter(0))
    orphans = list(_orphans(collected, items))  # walks folders, which may add to the problems found
    problems = (*collected.problems, *_repeated(items), *_shared_labels(items), *orphans)
    coco = tuple(entry for _, _, entry in items)
    return Listing(
        images=tuple(image for image, _, _ in items),
        labels=tuple(label for _, label, _ in items),
        coco=coco if any(coco) else (),
        class_names=collected.names,
        files=tuple(collected.files),
        problems=problems,
    )


def _entry(image: str) -> _Entry:
    return image, _label_text(_stem_and_suffix(image)[0]), None


def _add_folder(folder: Path, collected: _Collected) -> None:
    for file in collected.walk(folder):
        stem, suffix = _stem_and_suffix(file)
        suffix = suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            collected.items.append((file, _label_text(stem), None))
        elif suffix in UNSUPPORTED_SUFFIXES:
            text = f"{suffix} images are not supported; image skipped, convert it to JPEG or PNG"
            collected.problems.append(Problem(Path(file), None, "error", text, "image-unusable"))
    collected.label_folders[label_path(folder / "x").parent] = None


def _add_list(file: Path, collected: _Collected) -> None:
    collected.files.append(file)
    try:
        content = read_regular(file, max_bytes=MAX_LIST_BYTES).removeprefix(b"\xef\xbb\xbf")
    except NotReadableError as error:
        raise ValueError(f"{printable(file)}: {error}; expected a list with one image path per line") from None
    if b"\0" in content:
        raise ValueError(f"{printable(file)}: binary content; expected a list with one image path per line")
    for number, line in enumerate(content.splitlines(), start=1):
        entry = os.fsdecode(line.strip())
        if entry:
            image = listed_image(entry, file)
            if image.name and os.path.exists(image):
                collected.items.append(_entry(str(image)))
            else:
                text = f"no such image: {printable(image)}; skipped"
                collected.problems.append(Problem(file, number, "error", text, "image-missing"))


def listed_image(entry: str, file: Path) -> Path:
    """Resolve an entry relative to its list's folder; YOLOv5 does so only with a leading `./`."""
    from_list = Path(os.path.abspath(file.parent / entry))
    if entry.startswith("./") or os.path.exists(from_list):
        return from_list
    from_cwd = Path(os.path.abspath(entry))
    return from_cwd if os.path.exists(from_cwd) else from_list


def _add_coco(file: Path, collected: _Collected) -> None:
    coco = read_coco(file, collected.names)
    collected.files.append(file)
    collected.names = coco.class_names
    collected.problems += coco.problems
    collected.items += ((str(image.path), str(file), image) for image in coco.images)


def _repeated(items: Sequence[_Entry]) -> Iterator[Problem]:
    for image, times in Counter(image for image, _, _ in items).items():
        if times > 1:
            text = f"listed {times} times and used as often"
            yield Problem(Path(image), None, "warning", text, "image-repeated")


def _shared_labels(items: Sequence[_Entry]) -> Iterator[Problem]:
    owner: dict[str, str] = {}
    for image, label, coco in items:
        first = owner.setdefault(label, image)
        if coco is None and first != image:
            names = (printable(Path(path).name) for path in (first, image))
            text = f"belongs to {' and '.join(names)}; used for both"
            yield Problem(Path(label), None, "warning", text, "label-shared")


def _orphans(collected: _Collected, items: Sequence[_Entry]) -> Iterator[Problem]:
    """Yield label files without an image, in folders only, because a list may be a subset of the images."""
    known = {label for _, label, _ in items}
    for folder in collected.label_folders:
        if not folder.is_dir():
            continue
        unknown = (Path(file) for file in collected.walk(folder) if file not in known)
        for file in sorted(file for file in unknown if file.suffix == ".txt" and file.name != "classes.txt"):
            yield Problem(file, None, "warning", "label file without an image; ignored", "label-orphan")
