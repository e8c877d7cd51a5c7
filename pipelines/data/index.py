"""The index of a data set: images with their sizes, formats and labels."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path

import numpy as np

from kernels.host.paths import printable
from kernels.host.quantity import quantity
from pipelines.data.coco_json import is_coco_file
from pipelines.data.columns import ImageFormats, ImagePaths, ImageSizes, Polygons, RowGroups
from pipelines.data.images import ImageFacts, ImageFormat, ImageKind
from pipelines.data.index_cache import cached_scan
from pipelines.data.labels import no_labels
from pipelines.data.listing import label_path, list_images
from pipelines.data.problems import Problem, count
from pipelines.data.scan import scan
from pipelines.data.scanned import ScanTable

__all__ = ["ImageFormat", "ImageIndex", "ImageKind", "index_images", "scan_images"]

SINGLE_CLASS_NAME = "item"


@dataclass(frozen=True)
class ImageIndex:
    """The usable images of a split, in a fixed order.

    Attributes:
        paths: one per image.
        sizes: (n, 2) int32, width and height in px after EXIF rotation.
        labels: per image (k, 5) float32 [class, cx, cy, w, h], normalised to the image after EXIF rotation; k may be 0.
        segments: per image an empty tuple, or one normalised polygon (m, 2) float32 per label; if only some labels have
            polygons, the others have the corners of their boxes.
        class_names: one per class.
        formats: how each image is stored.
        problems: all problems, in a fixed order.
    """

    paths: ImagePaths
    sizes: np.ndarray
    labels: RowGroups
    segments: Polygons
    class_names: tuple[str, ...]
    formats: ImageFormats
    problems: tuple[Problem, ...]

    @classmethod
    def of(
        cls,
        images: Sequence[tuple[Path, ImageFacts]],
        *,
        labels: Sequence[np.ndarray] | None = None,
        segments: Sequence[Sequence[np.ndarray]] | None = None,
        class_names: Sequence[str] = (),
    ) -> "ImageIndex":
        """Build an index of single images; `labels` and `segments` have an entry per image, if given."""
        return cls(
            paths=ImagePaths(str(path) for path, _ in images),
            sizes=np.array([(facts.width, facts.height) for _, facts in images], np.int32).reshape(-1, 2),
            labels=RowGroups.of([no_labels().boxes] * len(images) if labels is None else labels, columns=5),
            segments=Polygons.of([()] * len(images) if segments is None else segments),
            class_names=tuple(class_names),
            formats=ImageFormats.of([facts.format for _, facts in images]),
            problems=(),
        )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def sizes_wh(self) -> ImageSizes:
        """`sizes` as pairs of Python integers."""
        return ImageSizes(self.sizes)

    @property
    def num_boxes(self) -> int:
        """Number of boxes in all images."""
        return len(self.labels.rows)

    def missing_labels(self, sources: Sequence[Path]) -> str:
        """Return a message if no image of the split has labels; "" otherwise.

        Args:
            sources: the sources of the split.
        """
        if self.num_boxes or not len(self):
            return ""
        unlabelled = f"none of the {len(self)} images has labels" if len(self) > 1 else "the only image has no labels"
        if all(map(is_coco_file, sources)):
            return f"{unlabelled}; check the annotations in {printable(sources[0])}"
        first = label_path(self.paths[0])
        if os.path.isfile(first):
            return f"{unlabelled}; the label files are empty, such as {printable(first)}"
        return (
            f"{unlabelled}; the first label file would be "
            f"{printable(first)}: put a folder `labels` with the same file names next to `images`"
        )

    @property
    def num_background(self) -> int:
        """Number of images without boxes."""
        return int((self.labels.counts == 0).sum())

    def summary(self) -> str:
        """Return a one-line summary: number of images, boxes, and problems by kind."""
        text = f"{quantity(len(self), 'image')} ({self.num_background} of background), "
        text += quantity(self.num_boxes, "box")
        if not self.problems:
            return text
        errors = count(self.problems, "error")
        kinds = ", ".join(f"{n} {code}" for code, n in Counter(problem.code for problem in self.problems).most_common())
        return f"{text}; {quantity(errors, 'error')} and {quantity(len(self.problems) - errors, 'warning')}: {kinds}"


def index_images(
    sources: Sequence[Path],
    class_names: Sequence[str],
    *,
    cache_dir: Path | None = None,
    single_class: bool = False,
    workers: int | None = None,
    progress: str | None = None,
    strict: bool = False,
) -> ImageIndex:
    """Scan the images and labels of a split, or load the result from the cache if no file has changed.

    Invalid label rows and unusable images are skipped and reported in `problems`.

    Args:
        sources: folders, txt lists, COCO json files (see `pipelines.data.dataset.Dataset.split`).
        class_names: class names; may be empty if the sources are COCO json files.
        cache_dir: folder of the cache, by default in the user's cache folder; nothing is written next to the images.
        single_class: map all classes to class 0, named "item" unless the data set has only one class.
        workers: decoding threads, by default one per core, at most 8.
        progress: name of the progress bar; None shows none.
        strict: raise an error for any problem.
    Raises:
        ValueError: there are no usable images, a label has a class that the data set does not have, or there is any
            problem and `strict` is set.
        OSError: a source cannot be read.
    """
    index = scan_images(
        sources, class_names, cache_dir=cache_dir, single_class=single_class, workers=workers, progress=progress
    )
    _require_usable(index, sources, strict=strict)
    return index


def _require_usable(index: ImageIndex, sources: Sequence[Path], *, strict: bool) -> None:
    for problem in index.problems:
        if problem.code == "class-range":
            place = f"{printable(problem.file)}:{problem.line}"
            reason = problem.text.removesuffix("; row dropped")
            raise ValueError(f"{place}: {reason}; correct the label, or `names` and `nc` in the dataset yaml")
    if not len(index):
        first = f"; first problem: {index.problems[0]}" if index.problems else ""
        raise ValueError(
            f"no usable images in {', '.join(map(printable, sources)) or 'an empty list of sources'}{first}"
        )
    if strict and index.problems:
        first = f"{index.problems[0]}"
        raise ValueError(f"strict: {quantity(len(index.problems), 'problem')} in the data set; first: {first}")


def scan_images(
    sources: Sequence[Path],
    class_names: Sequence[str],
    *,
    cache_dir: Path | None = None,
    single_class: bool = False,
    workers: int | None = None,
    progress: str | None = None,
) -> ImageIndex:
    """Scan a split like `index_images`, but allow an empty result and classes out of range."""
    listing = list_images(sources, class_names, progress=progress)
    num_classes = None if single_class else len(listing.class_names)

    def scan_now() -> ScanTable:
        return scan(listing, num_classes=num_classes, workers=workers, progress=progress)

    scanned = cached_scan(listing, num_classes, cache_dir, scan_now)
    used, names = scanned.usable, listing.class_names
    labels = scanned.labels.selected(used)
    if single_class:
        labels = RowGroups(labels.rows * np.array([0, 1, 1, 1, 1], np.float32), labels.counts)
    return ImageIndex(
        paths=ImagePaths(compress(listing.images, used.tolist())),
        sizes=scanned.sizes[used],
        labels=labels,
        segments=scanned.segments.selected(used),
        class_names=(SINGLE_CLASS_NAME,) if single_class and len(names) != 1 else names,
        formats=scanned.formats.selected(used),
        problems=(*listing.problems, *chain.from_iterable(scanned.problems.values())),
    )
