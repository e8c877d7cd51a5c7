"""The index of a data set: which images there are, how large, in which format, with which labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path

import numpy as np

from kernels.host.paths import printable
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
    """All usable images of one split, in a fixed order.

    Attributes:
        paths: one per image.
        sizes: (n, 2) int32, width and height in px as shown, that is after EXIF rotation.
        labels: per image (k, 5) float32 rows [class, cx, cy, w, h], normalised to the image as shown; k may be 0.
        segments: per image an empty tuple, or one (m, 2) float32 normalised polygon for each label row; a row that had
            only a box beside rows with polygons has the box's four corners.
        class_names: one per class.
        formats: how each image is stored.
        problems: everything that was reported, in a fixed order.
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
        """Return an index of single images; `labels` and `segments` have an entry for each, or none has any."""
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
        """`sizes` as pairs of Python's integers."""
        return ImageSizes(self.sizes)

    @property
    def num_boxes(self) -> int:
        """Label rows of all images together."""
        return len(self.labels.rows)

    def without_labels(self, sources: Sequence[Path]) -> str:
        """Return one sentence if no image of the split has a label, and where labels were looked for; "" otherwise.

        Args:
            sources: those of the split.
        """
        if self.num_boxes or not len(self):
            return ""
        if all(map(is_coco_file, sources)):
            return f"not one of {len(self)} images has a label; see the annotations of {printable(sources[0])}"
        return (
            f"not one of {len(self)} images has a label; the first was looked for at "
            f"{printable(label_path(self.paths[0]))}: a folder `labels` stands beside `images`, with the same names"
        )

    @property
    def num_background(self) -> int:
        """Images without a label row."""
        return int((self.labels.counts == 0).sum())

    def summary(self) -> str:
        """Return one line: images, boxes, and how many problems of which kind."""
        text = f"{len(self)} images ({self.num_background} of background), {self.num_boxes} boxes"
        if not self.problems:
            return text
        errors = count(self.problems, "error")
        kinds = ", ".join(f"{n} {code}" for code, n in Counter(problem.code for problem in self.problems).most_common())
        return f"{text}; {errors} errors and {len(self.problems) - errors} warnings: {kinds}"


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
    """Scan images and labels of one split, or take the result from the cache if no file has changed.

    Whatever cannot be used is left out and reported in `problems`: single label rows, or images as a whole.

    Args:
        sources: folders, txt lists, COCO json files (see `pipelines.data.dataset.Dataset.split`).
        class_names: of the data set; may be empty if the sources are COCO json, which name their classes.
        cache_dir: folder of the cache, by default in the user's cache folder. Nothing is written beside the images.
        single_class: all objects become class 0; the only class is called "item" unless the data set has just one.
        workers: threads that decode images, by default one for each core, at most 8.
        progress: what the progress bar is called; None shows none.
        strict: makes any problem fatal.
    Raises:
        ValueError: no usable image, a label's class that the data set does not name (its names or nc are then wrong,
            as in YOLOv5), or, if strict, any problem.
        OSError: a source cannot be read.
    """
    index = scan_images(
        sources, class_names, cache_dir=cache_dir, single_class=single_class, workers=workers, progress=progress
    )
    for problem in index.problems:
        if problem.code == "class-range":
            place = f"{printable(problem.file)}:{problem.line}"
            reason = problem.text.removesuffix("; row dropped")
            raise ValueError(f"{place}: {reason}; correct the label, or `names` and `nc` of the dataset yaml")
    if not len(index):
        first = f"; first problem: {index.problems[0]}" if index.problems else ""
        raise ValueError(
            f"no usable image in {', '.join(map(printable, sources)) or 'an empty list of sources'}{first}"
        )
    if strict and index.problems:
        first = f"{index.problems[0]}"
        raise ValueError(f"strict: {len(index.problems)} problems in the data set; the first: {first}")
    return index


def scan_images(
    sources: Sequence[Path],
    class_names: Sequence[str],
    *,
    cache_dir: Path | None = None,
    single_class: bool = False,
    workers: int | None = None,
    progress: str | None = None,
) -> ImageIndex:
    """Return the index as it is, empty or with classes out of range.

    Arguments are those of `index_images`, which refuses that.
    """
    listing = list_images(sources, class_names, progress=progress)
    num_classes = None if single_class else len(listing.class_names)

    def scan_now() -> ScanTable:
        return scan(listing, num_classes=num_classes, workers=workers, progress=progress)

    scanned = cached_scan(listing, num_classes, cache_dir, scan_now)
    used, names = scanned.usable, listing.class_names
    labels = scanned.labels.chosen(used)
    if single_class:
        labels = RowGroups(labels.rows * np.array([0, 1, 1, 1, 1], np.float32), labels.counts)
    return ImageIndex(
        paths=ImagePaths(compress(listing.images, used.tolist())),
        sizes=scanned.sizes[used],
        labels=labels,
        segments=scanned.segments.chosen(used),
        class_names=(SINGLE_CLASS_NAME,) if single_class and len(names) != 1 else names,
        formats=scanned.formats.chosen(used),
        problems=(*listing.problems, *chain.from_iterable(scanned.problems.values())),
    )
