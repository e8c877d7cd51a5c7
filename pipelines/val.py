"""Validation batches: letterboxed images in rectangular shapes with little border, in a fixed order."""

from collections.abc import Iterator

import numpy as np

from pipelines.augmentation.boxes import normalise
from pipelines.augmentation.letterbox import rectangular_batches
from pipelines.augmentation.plans import BatchPlan, FileGeometry, Picture
from pipelines.augmentation.random_samples import LABEL_CLIP_MARGIN_PX, canvas_labels, letterboxed
from pipelines.augmentation.rendering import placed_image
from pipelines.batches import Batch, BatchSource
from pipelines.data.index import ImageIndex
from pipelines.pixels.backend import Backend
from pipelines.pixels.canvas_graph import GraphSettings
from pipelines.pixels.timings import Timings
from pipelines.settings import BatchSettings
from pipelines.train import batch_labels


class ValPipeline:
    """Validation batches of a data set: each image once, without randomness.

    Args:
        index: the images.
        settings: the batch settings.
        rect: sort images by aspect ratio and use the smallest shape for each batch plus half a stride of border, as in
            YOLOv5; otherwise keep the order and use squares of `image_px`.
    Raises:
        ValueError: an argument is invalid, or the cache does not fit.
    """

    def __init__(self, index: ImageIndex, settings: BatchSettings, *, rect: bool = True) -> None:
        settings.check("val", index)
        backend = Backend.of(settings.device)
        self._index, self._settings = index, settings
        batch_size, image_px = settings.batch_size, settings.image_px
        self._sizes = index.sizes_wh
        if rect:
            self._order, self._shapes = rectangular_batches(
                index.sizes, batch_size=batch_size, image_px=image_px, stride=settings.stride, pad_strides=0.5
            )
        else:
            self._order = np.arange(len(index))
            self._shapes = np.full((-(-len(index) // batch_size), 2), image_px)
        images = settings.open_images("val", index)
        self._source = BatchSource(
            GraphSettings.without_warp(
                batch_size=settings.shard.max_rows(batch_size),
                threads=settings.workers,
                backend=backend,
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
        return min(self._settings.batch_size, len(self._index) - batch * self._settings.batch_size)

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
        numbers = self._order[batch * self._settings.batch_size : (batch + 1) * self._settings.batch_size]
        numbers = numbers[self._settings.shard.rows(len(numbers))]
        pictures, labels, geometry = [], [], []
        for row, number in enumerate(int(n) for n in numbers):
            size = self._sizes[number]
            fit = letterboxed(size, (width, height), image_px=self._settings.image_px, enlarge=False)
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
