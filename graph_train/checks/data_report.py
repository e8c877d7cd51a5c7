"""The report of `graph-check` on a data set: counts, sizes, labels, anchors, memory."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.training.autoanchor import AnchorFit, anchor_fit, box_sizes_px
from kernels.host.paths import printable
from kernels.host.quantity import quantity
from models.padded_labels import label_capacity, typical_label_capacity
from pipelines.data.dataset import Dataset, Split
from pipelines.data.index import ImageIndex
from pipelines.data.problems import Problem, count

TINY_BOX_PX = 3.0
_MOSAIC_TILES = 4
_END_BYTES = 4096


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum; 0 if there are no values."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class CacheBytes:
    """Memory to cache all images: as files, decoded, and decoded at the training size."""

    encoded: int
    decoded: int
    decoded_at_imgsz: int


@dataclass(frozen=True)
class SplitReport:
    """Statistics of a split.

    Attributes:
        images, background_images, boxes: number of usable images, of those without boxes, and of boxes.
        polygons: number of boxes with a polygon.
        width_px, height_px: image sizes after applying the EXIF orientation.
        formats: number of images by container and pixel type.
        rotated_by_exif, decoded_on_host: number of images with an EXIF rotation, and of damaged ones that only Pillow
            can decode.
        boxes_per_class: number of boxes by class name.
        boxes_per_image: number of boxes per image.
        tiny_boxes: number of boxes with a side below 3 px at the training size.
        label_capacities: number of images by the label capacity that they need.
        mosaic_capacity: label capacity of a typical mosaic of four images, and of the four images with most labels.
        anchors: how well the model's anchors fit; None without boxes.
        cache: memory for `--cache`.
    """

    images: int
    background_images: int
    boxes: int
    polygons: int
    width_px: Spread
    height_px: Spread
    formats: dict[str, int]
    rotated_by_exif: int
    decoded_on_host: int
    boxes_per_class: dict[str, int]
    boxes_per_image: Spread
    tiny_boxes: int
    label_capacities: dict[int, int]
    mosaic_capacity: tuple[int, int]
    anchors: AnchorFit | None
    cache: CacheBytes


def describe_split(index: ImageIndex, *, imgsz: int, anchors_px: np.ndarray, anchor_threshold: float) -> SplitReport:
    """Compute the statistics of a split.

    Args:
        index: the split.
        imgsz: training size in px.
        anchors_px: the model's anchors, (levels, anchors, 2).
        anchor_threshold: hyper-parameter `anchor_t`.
    """
    counts = index.labels.counts
    sizes_px = box_sizes_px(index.sizes, index.labels, imgsz) if len(index) else np.zeros((0, 2))
    fullest = int(np.sort(counts)[-_MOSAIC_TILES:].sum())
    formats = Counter[str]()
    for form, amount in zip(index.formats.distinct, index.formats.counts_by_format, strict=True):
        formats[f"{form.kind} {form.mode} {form.bits}-bit"] += int(amount)
    return SplitReport(
        images=len(index),
        background_images=index.num_background,
        boxes=index.num_boxes,
        polygons=len(index.segments.points),
        width_px=_spread(index.sizes[:, 0]),
        height_px=_spread(index.sizes[:, 1]),
        formats=dict(formats.most_common()),
        rotated_by_exif=int(index.formats.where(lambda form: form.orientation != 1).sum()),
        decoded_on_host=int(index.formats.where(lambda form: not form.intact).sum()),
        boxes_per_class=_boxes_per_class(index),
        boxes_per_image=_spread(counts),
        tiny_boxes=int((sizes_px < TINY_BOX_PX).any(axis=1).sum()),
        label_capacities=dict(sorted(Counter(label_capacity(int(n)) for n in counts).items())),
        mosaic_capacity=(typical_label_capacity(index.labels, _MOSAIC_TILES), label_capacity(fullest)),
        anchors=anchor_fit(sizes_px, anchors_px.reshape(-1, 2), anchor_threshold) if len(sizes_px) else None,
        cache=_cache_bytes(index, imgsz),
    )


def _spread(values: np.ndarray) -> Spread:
    if not len(values):
        return Spread(0.0, 0.0, 0.0)
    return Spread(float(values.min()), float(np.median(values)), float(values.max()))


def _boxes_per_class(index: ImageIndex) -> dict[str, int]:
    names = index.class_names
    classes = index.labels.rows[:, 0].astype(np.int64)
    counts = np.bincount(classes, minlength=len(names))
    repeated = len(set(names)) < len(names)
    return {f"{n} {name}" if repeated else name: int(counts[n]) for n, name in enumerate(names)}


def _cache_bytes(index: ImageIndex, imgsz: int) -> CacheBytes:
    sizes = index.sizes.astype(np.float64)
    zoom = imgsz / sizes.max(axis=1, initial=1.0)
    at_imgsz = np.ceil(sizes * zoom[:, None]).prod(axis=1) * 3
    return CacheBytes(
        encoded=int(index.formats.file_bytes.sum()),
        decoded=int(sizes.prod(axis=1).sum() * 3),
        decoded_at_imgsz=int(at_imgsz.sum()),
    )


def shared_images(splits: Mapping[Split, ImageIndex]) -> list[Problem]:
    """Return a warning for each pair of splits with identical images.

    Raises:
        OSError: a file cannot be read.
    """
    copies: dict[tuple[str, str], list[str]] = defaultdict(list)
    for candidates in _group_by_size(splits):
        for first, second, file in _equal_files(candidates):
            copies[first, second].append(file)
    return [
        Problem(
            Path(files[0]),
            None,
            "warning",
            f"{quantity(len(files), 'image')} of {second} {_verb(len(files))} also in {first}",
            "image-repeated",
        )
        for (first, second), files in copies.items()
    ]


def _group_by_size(splits: Mapping[Split, ImageIndex]) -> Iterable[list[tuple[str, str]]]:
    """Group the images whose file size occurs in several splits by size, as (split, path)."""
    sizes = [np.unique(index.formats.file_bytes) for index in splits.values()]
    distinct, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *sizes]), return_counts=True)
    same_size: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for split, index in splits.items():
        file_bytes = index.formats.file_bytes
        for number in np.flatnonzero(np.isin(file_bytes, distinct[counts > 1])).tolist():
            same_size[int(file_bytes[number])].append((split, index.paths.texts[number]))
    return same_size.values()


def _equal_files(candidates: Sequence[tuple[str, str]]) -> Iterable[tuple[str, str, str]]:
    """Yield (first split, second split, path in the second) for identical files in different splits."""
    seen: dict[bytes, str] = {}
    for (split, file), content in zip(candidates, _content_keys([file for _, file in candidates]), strict=True):
        first = seen.setdefault(content, split)
        if first != split:
            yield first, split, file


def _content_keys(files: Sequence[str]) -> list[bytes]:
    """Return a key for each file that is equal for equal contents; all files have the same size.

    A file with several names (links) is read only once, and completely only if its first and last bytes are not unique.
    """
    status = [os.stat(file) for file in files]
    identities = [(found.st_dev, found.st_ino) for found in status]
    distinct = dict(zip(identities, files, strict=True))
    keys = {identity: _ends(file) for identity, file in distinct.items()}
    occurrences = Counter(keys.values())
    for identity, file in distinct.items():
        if occurrences[keys[identity]] > 1:
            keys[identity] = hashlib.sha256(Path(file).read_bytes()).digest()
    return [keys[identity] for identity in identities]


def _ends(file: str) -> bytes:
    """Return a digest of the first and last bytes of a file."""
    with open(file, "rb", buffering=0) as opened:
        content = opened.read(_END_BYTES)
        opened.seek(max(opened.seek(0, os.SEEK_END) - _END_BYTES, 0))
        return hashlib.blake2b(content + opened.read(_END_BYTES)).digest()


def _verb(number: int) -> str:
    return "is" if number == 1 else "(this is the first) are"


def class_warnings(dataset: Dataset, splits: Mapping[Split, SplitReport]) -> list[Problem]:
    """Return warnings about classes without boxes in train or val."""
    problems = []
    for split, report in splits.items():
        empty = [name for name, boxes in report.boxes_per_class.items() if not boxes]
        if empty and split in ("train", "val"):
            shown = ", ".join(empty[:10]) + (" ..." if len(empty) > 10 else "")
            text = f"{split} has no boxes of {quantity(len(empty), 'class')}: {shown}"
            problems.append(Problem(dataset.file, None, "warning", text, "class-empty"))
    return problems


def as_json(dataset: Dataset, splits: Mapping[Split, SplitReport], problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the report as JSON-compatible data; paths are escaped."""
    return {
        "data": printable(dataset.file),
        "class_names": list(dataset.class_names),
        "splits": {split: asdict(report) for split, report in splits.items()},
        "errors": count(problems, "error"),
        "warnings": count(problems, "warning"),
        "problems": [
            {"file": printable(p.file), "line": p.line, "severity": p.severity, "code": p.code, "text": p.text}
            for p in problems
        ],
    }


def as_text(split: str, report: SplitReport) -> list[str]:
    """Return the report on a split as lines of text."""
    sizes, boxes = (report.width_px, report.height_px), report.boxes_per_image
    width, height = (f"{size.smallest:.0f} to {size.largest:.0f} (median {size.median:.0f})" for size in sizes)
    capacity = ", ".join(f"{labels} for {images} images" for labels, images in report.label_capacities.items())
    if split == "train":
        capacity += f"; {report.mosaic_capacity[0]} for a mosaic, at most {report.mosaic_capacity[1]}"
    facts = {
        "images": f"{report.images}, {report.background_images} of them background",
        "formats": ", ".join(f"{n} {name}" for name, n in report.formats.items()),
        "decoding": f"{report.rotated_by_exif} rotated by EXIF, {report.decoded_on_host} damaged and decoded by Pillow",
        "width": f"{width} px",
        "height": f"{height} px",
        "boxes": f"{report.boxes} ({report.polygons} with polygons, {report.tiny_boxes} below {TINY_BOX_PX:g} px)",
        "boxes/image": f"{boxes.smallest:.0f} to {boxes.largest:.0f} (median {boxes.median:g})",
        "classes": ", ".join(f"{name} {n}" for name, n in report.boxes_per_class.items()),
        "label capacity": capacity,
        "anchors": _anchor_text(report.anchors),
        "--cache": f"{_mib(report.cache.encoded)} encoded, {_mib(report.cache.decoded)} decoded, "
        f"{_mib(report.cache.decoded_at_imgsz)} decoded at the training size",
    }
    return [split, *(f"  {name:<14} {text}" for name, text in facts.items())]


def _anchor_text(fit: AnchorFit | None) -> str:
    if fit is None:
        return "no boxes"
    return f"best possible recall {fit.best_possible_recall:.4f}, {fit.anchors_per_target:.2f} anchors per box"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
