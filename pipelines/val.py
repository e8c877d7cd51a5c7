"""Validation batches: letterboxed images in rectangular shapes with little border, in a fixed order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.augmentation.boxes import normalise
from pipelines.augmentation.draws import LABEL_CLIP_MARGIN_PX, canvas_labels, letterboxed
from pipelines.augmentation.letterbox import rectangular_batches
from pipelines.augmentation.plans import BatchPlan, FileGeometry, Picture
from pipelines.augmentation.rendering import placed_image
from pipelines.batches import Batch, BatchSource, check_arguments
from pipelines.data.index import ImageIndex
from pipelines.pixels.backend import Backend
from pipelines.pixels.canvas_graph import GraphSettings
from pipelines.pixels.image_cache import CacheKind, open_images
from pipelines.pixels.timings import Timings
from pipelines.shard import Shard
from pipelines.train import batch_labels


class ValPipeline:
    """Validation batches of a data set: each image once, without randomness.

    Args:
        index: the images.
        batch_size: maximum number of images per batch.
        image_px: long side of the images without border; a multiple of `stride`.
        workers: number of decoding threads, and of drawing threads.
        device: "cpu" or, for instance, "cuda:1" to decode and draw on the second GPU.
        stride: sides of batches are multiples of it.
        rect: sort images by aspect ratio and use the smallest shape for each batch plus half a stride of border, as in
            YOLOv5; otherwise keep the order and use squares of `image_px`.
        shard: this rank's part of every batch.
        cache, cache_dir, progress: see `pipelines.pixels.image_cache.open_images`.
    Raises:
        ValueError: an argument is invalid, or the cache does not fit.
    """

    def __init__(
        self,
        index: ImageIndex,
        *,
        batch_size: int,
        image_px: int,
        workers: int,
        device: str = "cpu",
        stride: int = 32,
        rect: bool = True,
        shard: Shard = Shard(),  # noqa: B008 - a frozen value
        cache: CacheKind | None = None,
        cache_dir: Path | None = None,
        progress: str | None = None,
    ) -> None:
        check_arguments("val", index, batch_size=batch_size, image_px=image_px, workers=workers, stride=stride)
        backend = Backend.of(device)
        self._index, self._batch_size, self._image_px, self._shard = index, batch_size, image_px, shard
        self._sizes = index.sizes_wh
        if rect:
            self._order, self._shapes = rectangular_batches(
                index.sizes, batch_size=batch_size, image_px=image_px, stride=stride, pad_strides=0.5
            )
        else:
            self._order = np.arange(len(index))
            self._shapes = np.full((-(-len(index) // batch_size), 2), image_px)
        images = open_images(index, cache, folder=cache_dir, workers=workers, progress=progress)
        self._source = BatchSource(
            GraphSettings(
                slots=1,
                warp=False,
                paste=False,
                batch_size=shard.max_rows(batch_size),
                threads=workers,
                backend=backend,
                finish=backend.gpu is not None,
                decoded=images.decoded,
            ),
            images,
            index.paths,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches, the same on all ranks."""
        return len(self._shapes)

    @property
    def shapes_hw(self) -> list[tuple[int, int]]:
        """Image shape of each batch."""
        return [(int(h), int(w)) for h, w in self._shapes]

    def images_of(self, batch: int) -> int:
        """Return the number of images of a batch over all ranks."""
        return min(self._batch_size, len(self._index) - batch * self._batch_size)

    @property
    def timings(self) -> Timings:
        """Times of the pipeline's stages and of waiting."""
        return self._source.timings

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass over this rank's rows of all batches; this stops the previous pass."""
        return self._source.batches(self._plan(batch) for batch in range(len(self._shapes)))

    def close(self) -> None:
        """Stop all threads. Batches already returned remain valid on a CPU."""
        self._source.close()

    def _plan(self, batch: int) -> BatchPlan:
        height, width = (int(side) for side in self._shapes[batch])
        numbers = self._order[batch * self._batch_size : (batch + 1) * self._batch_size]
        numbers = numbers[self._shard.rows(len(numbers))]
        pictures, labels, geometry = [], [], []
        for row, number in enumerate(int(n) for n in numbers):
            size = self._sizes[number]
            fit = letterboxed(size, (width, height), image_px=self._image_px, enlarge=False)
            view = placed_image(number, fit.placement, size, (width, height), by_area=True)
            pictures.append(Picture((view,), 1.0, None, row))
            rows = canvas_labels([fit.placement], [self._index.labels[number]], canvas_wh=None)
            # As in YOLOv5, boxes move by the border before rounding, on the way here and back.
            rows[:, 1:] += np.tile(np.subtract(fit.pad_wh, fit.placement.offset_xy), 2)
            rows[:, 1:] = normalise(rows[:, 1:], width=width, height=height, clip_margin=LABEL_CLIP_MARGIN_PX)
            labels.append(rows)
            geometry.append(FileGeometry((size[1], size[0]), fit.ratio_hw, fit.pad_wh))
        indices = np.asarray(numbers, np.int64)
        return BatchPlan(tuple(pictures), (height, width), batch_labels(labels), indices, tuple(geometry))
