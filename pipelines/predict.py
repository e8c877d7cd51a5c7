"""Batches for prediction: letterboxed images with minimal border, grouped by shape."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines.augmentation.letterbox import Letterbox, letterbox
from pipelines.augmentation.mosaic import place
from pipelines.augmentation.plans import BatchPlan, FileGeometry, Picture
from pipelines.augmentation.rendering import placed_image
from pipelines.batches import Batch, BatchSource
from pipelines.data.images import ImageFacts, UnusableImageError, ignore_metadata_warnings, inspect_image
from pipelines.data.index import ImageIndex
from pipelines.data.problems import Problem
from pipelines.pixels.backend import Backend
from pipelines.pixels.canvas_graph import GraphSettings
from pipelines.pixels.encoded_images import ImageBytes
from pipelines.pixels.image_cache import DecodedImages

Size = tuple[int, int]

_NO_LABELS = np.zeros((0, 6), np.float32)


@dataclass(frozen=True)
class PredictSettings:
    """Settings of prediction batches.

    Attributes:
        image_hw: px that images are fitted into, multiples of `stride`; small images are enlarged, as in YOLOv5.
        stride: sides of a batch are multiples of it, with no more border than necessary.
        batch_size: maximum number of images per batch.
        workers: number of decoding threads, and of drawing threads.
        device: "cpu" or, for instance, "cuda:1" to decode and draw on the second GPU.
    """

    image_hw: Size
    stride: int
    batch_size: int
    workers: int
    device: str = "cpu"

    def fit(self, image_wh: Size) -> Letterbox:
        """Return the letterbox of an image of this size."""
        return letterbox((image_wh[1], image_wh[0]), self.image_hw, minimum_border=True, stride=self.stride)


def inspect_images(
    paths: Sequence[Path], *, workers: int = 1, progress: str | None = None
) -> tuple[ImageIndex, tuple[Problem, ...]]:
    """Return an index of the decodable images, in order and without labels, and the problems of the rest.

    Args:
        paths: image files.
        workers: threads.
        progress: name of the progress bar; None shows none.
    """
    with ignore_metadata_warnings(), ThreadPoolExecutor(workers, thread_name_prefix="inspect") as pool:
        inspected = pool.map(_inspected, paths)
        found = list(tqdm(inspected, desc=progress, total=len(paths), unit="img", disable=None if progress else True))
    usable = [(path, facts) for path, facts in zip(paths, found, strict=True) if isinstance(facts, ImageFacts)]
    return ImageIndex.of(usable), tuple(facts for facts in found if isinstance(facts, Problem))


def _inspected(path: Path) -> ImageFacts | Problem:
    try:
        return inspect_image(path)
    except UnusableImageError as error:
        return Problem(path, None, "error", str(error), "image-unusable")


class ImageBatches:
    """Batches of all images of an index, grouped by shape, in batches of nearly equal size.

    Images of the same shape keep their order; `indices` of a batch are image indices.
    """

    def __init__(self, index: ImageIndex, settings: PredictSettings) -> None:
        self._sizes = index.sizes_wh
        self._settings = settings
        self._groups = _groups(self._sizes, settings)
        self._source = BatchSource(_graph(settings, decoded=False), ImageBytes(index), index.paths)

    @property
    def shapes(self) -> dict[Size, int]:
        """Maximum batch size by batch shape (height, width)."""
        return {self._settings.fit(self._sizes[group[0][0]]).output_hw: len(group[0]) for group in self._groups}

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass and return its batches; this stops the previous pass."""
        numbers = [batch for group in self._groups for batch in group]
        return self._source.batches(
            _plan(batch, [self._sizes[number] for number in batch], self._settings) for batch in numbers
        )

    def close(self) -> None:
        """Stop all threads."""
        self._source.close()


def _groups(sizes: Sequence[Size], settings: PredictSettings) -> list[list[list[int]]]:
    """Return the image indices by [shape][batch]."""
    by_shape: dict[Size, list[int]] = {}
    for number, size in enumerate(sizes):
        by_shape.setdefault(settings.fit(size).output_hw, []).append(number)
    groups = []
    for numbers in by_shape.values():
        batches = -(-len(numbers) // settings.batch_size)
        per_batch = -(-len(numbers) // batches)
        groups.append([numbers[start : start + per_batch] for start in range(0, len(numbers), per_batch)])
    return groups


class FrameBatches(DecodedImages):
    """Batches of the frames of a video; `indices` are positions in the batch."""

    def __init__(self, path: Path, image_wh: Size, settings: PredictSettings) -> None:
        super().__init__(())
        self._size, self._settings = image_wh, settings
        self._waiting: deque[list[np.ndarray]] = deque()
        self._source = BatchSource(_graph(settings, decoded=True), self, [path] * settings.batch_size)

    @property
    def shape_hw(self) -> Size:
        """Height and width of the batches."""
        return self._settings.fit(self._size).output_hw

    def batches(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        """Yield each batch with its frames, (h, w, 3) uint8 RGB."""
        for batch in self._source.batches(self._plans(iter(frames))):
            yield batch, self._waiting.popleft()

    def _plans(self, frames: Iterator[np.ndarray]) -> Iterator[BatchPlan]:
        while group := [frame for _, frame in zip(range(self._settings.batch_size), frames, strict=False)]:
            self._waiting.append(group)
            self._images = group  # the tiles of a plan are read before the next plan is made
            yield _plan(range(len(group)), [self._size] * len(group), self._settings)

    def close(self) -> None:
        """Stop all threads."""
        self._source.close()


class PixelBatches(DecodedImages):
    """Batches of decoded images of any sizes, grouped by shape as in `ImageBatches`; `indices` refer to the call."""

    def __init__(self, settings: PredictSettings) -> None:
        super().__init__(())
        self._settings = settings
        self._names: list[Path] = []
        self._source = BatchSource(_graph(settings, decoded=True), self, self._names)

    def batches(self, images: Sequence[np.ndarray]) -> Generator[Batch, None, None]:
        """Yield batches of images (h, w, 3) uint8 RGB; a new call stops the previous one."""
        self._source.stop()
        self._images, self._names[:] = images, [Path(f"image {number}") for number in range(len(images))]
        sizes = [(image.shape[1], image.shape[0]) for image in images]
        numbers = [batch for group in _groups(sizes, self._settings) for batch in group]
        try:
            yield from self._source.batches(
                _plan(batch, [sizes[number] for number in batch], self._settings) for batch in numbers
            )
        finally:
            self._images = ()

    def close(self) -> None:
        """Stop all threads."""
        self._source.close()


def _graph(settings: PredictSettings, *, decoded: bool) -> GraphSettings:
    return GraphSettings.without_warp(
        batch_size=settings.batch_size,
        threads=settings.workers,
        backend=Backend.of(settings.device),
        decoded=decoded,
    )


def _plan(numbers: Sequence[int], sizes: Sequence[Size], settings: PredictSettings) -> BatchPlan:
    """Plan a batch of images with the same letterboxed shape."""
    pictures, geometry, output_hw = [], [], (0, 0)
    for row, (number, size) in enumerate(zip(numbers, sizes, strict=True)):
        fit = settings.fit(size)
        output_hw = fit.output_hw
        left, top, right, bottom = fit.content_xyxy
        output_wh = (output_hw[1], output_hw[0])
        placement = place((right - left, bottom - top), (left, top), output_wh)
        pictures.append(Picture((placed_image(number, placement, size, output_wh),), 1.0, None, row))
        geometry.append(FileGeometry((size[1], size[0]), (fit.ratio_wh[1], fit.ratio_wh[0]), fit.pad_wh))
    return BatchPlan(tuple(pictures), output_hw, _NO_LABELS, np.asarray(numbers, np.int64), tuple(geometry))
