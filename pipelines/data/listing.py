"""Which images a split has, and where the labels of each are: folders, txt lists, COCO json files, single images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.data.coco_json import CocoImage, is_coco_file, read_coco
from pipelines.data.problems import Problem, printable
from pipelines.data.regular_file import NotReadableError, read_regular
from pipelines.data.walk import walk_files

IMAGE_ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
UNSUPPORTED_ENDINGS = frozenset(
    {".avif", ".dng", ".exr", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".pfm", ".psd", ".raw", ".svg"}
)
"""Images that are reported as left out; files of any other kind are passed over."""
MAX_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class Item:
    """An image and the place of its labels: a txt file that may be missing, or an entry of a COCO json."""

    image: Path
    label: Path
    coco: CocoImage | None = None


@dataclass(frozen=True)
class Listing:
    """Items in the order of their paths, as YOLOv5 sorts them. An image that is listed twice is used twice.

    Attributes:
        items: all images that are named; whether they can be used is not known yet.
        class_names: those given, or those of the COCO json.
        files: lists and json files that were read.
        problems: what was found on the way.
    """

    items: tuple[Item, ...]
    class_names: tuple[str, ...]
    files: tuple[Path, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass
class _Collected:
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    label_folders: dict[Path, None] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    progress: str | None = None

    def walk(self, folder: Path) -> Iterator[Path]:
        """All files below a folder; what cannot be read is noted."""
        return walk_files(folder, self.problems, progress=self.progress)


def label_path(image: Path) -> Path:
    """Where the labels of an image are: the last folder `images` of its path replaced by `labels`, ending `.txt`."""
    before, found, after = str(image.with_suffix(".txt")).rpartition("/images/")
    return Path(f"{before}/labels/{after}") if found else image.with_suffix(".txt")


def list_images(sources: Sequence[Path], class_names: Sequence[str], *, progress: str | None = None) -> Listing:
    """Finds the images of all sources.

    Args:
        sources: folders, lists, COCO json files, single images.
        class_names: of the data set.
        progress: what is read for, for the bar that counts the files of folders; None shows none.
    Raises:
        ValueError: a source is none, or a COCO json is broken.
        OSError: a source cannot be read.
    """
    found = _Collected(names=tuple(class_names), progress=progress)
    for source in sources:
        if source.is_dir():
            _add_folder(source, found)
        elif source.suffix.lower() in IMAGE_ENDINGS:
            found.items.append(_item(source))
        elif is_coco_file(source):
            _add_coco(source, found)
        elif source.suffix.lower() == ".txt":
            _add_list(source, found)
        else:
            raise ValueError(f"{printable(source)}: neither a folder, a txt list of images, nor a COCO json")
    items = sorted(found.items, key=lambda item: str(item.image))
    orphans = list(_orphans(found, items))  # walks folders, which may add to the problems found
    problems = [*found.problems, *_repeated(items), *_shared_labels(items), *orphans]
    return Listing(tuple(items), found.names, tuple(found.files), tuple(problems))


def _item(image: Path) -> Item:
    return Item(image, label_path(image))


def _add_folder(folder: Path, found: _Collected) -> None:
    for file in found.walk(folder):
        ending = file.suffix.lower()
        if ending in IMAGE_ENDINGS:
            found.items.append(_item(file))
        elif ending in UNSUPPORTED_ENDINGS:
            text = f"{ending} images are not supported; image left out, convert it to JPEG or PNG"
            found.problems.append(Problem(file, None, "error", text, "image-unusable"))
    found.label_folders[label_path(folder / "x").parent] = None


def _add_list(file: Path, found: _Collected) -> None:
    found.files.append(file)
    try:
        content = read_regular(file, max_bytes=MAX_LIST_BYTES).removeprefix(b"\xef\xbb\xbf")
    except NotReadableError as error:
        raise ValueError(f"{printable(file)}: {error}; a list has the path of one image in each line") from None
    if b"\0" in content:
        raise ValueError(f"{printable(file)}: binary content; a list has the path of one image in each line")
    for number, line in enumerate(content.splitlines(), start=1):
        entry = os.fsdecode(line.strip())
        if entry:
            image = listed_image(entry, file)
            if os.path.exists(image):
                found.items.append(_item(image))
            else:
                text = f"no such image: {printable(image)}; left out"
                found.problems.append(Problem(file, number, "error", text, "image-missing"))


def listed_image(entry: str, file: Path) -> Path:
    """Relative entries count from the list's folder; without a leading `./` YOLOv5 counts from the current one."""
    beside = Path(os.path.abspath(file.parent / entry))
    if entry.startswith("./") or os.path.exists(beside):
        return beside
    here = Path(os.path.abspath(entry))
    return here if os.path.exists(here) else beside


def _add_coco(file: Path, found: _Collected) -> None:
    coco = read_coco(file, found.names)
    found.files.append(file)
    found.names = coco.class_names
    found.problems += coco.problems
    found.items += (Item(image.path, file, image) for image in coco.images)


def _repeated(items: Sequence[Item]) -> Iterator[Problem]:
    counts: dict[Path, int] = {}
    for item in items:
        counts[item.image] = counts.get(item.image, 0) + 1
    for image, times in counts.items():
        if times > 1:
            yield Problem(image, None, "warning", f"listed {times} times; it is used as often", "image-repeated")


def _shared_labels(items: Sequence[Item]) -> Iterator[Problem]:
    owner: dict[Path, Path] = {}
    for item in items:
        first = owner.setdefault(item.label, item.image)
        if item.coco is None and first != item.image:
            text = f"belongs to {printable(first.name)} and {printable(item.image.name)}; used for both"
            yield Problem(item.label, None, "warning", text, "label-shared")


def _orphans(found: _Collected, items: Sequence[Item]) -> Iterator[Problem]:
    """Labels without an image. Only for folders: a list may name a part of the images on purpose."""
    known = {item.label for item in items}
    for folder in found.label_folders:
        if not folder.is_dir():
            continue
        for file in sorted(found.walk(folder)):
            if file.suffix == ".txt" and file not in known and file.name != "classes.txt":
                yield Problem(file, None, "warning", "labels without an image; not used", "label-orphan")
