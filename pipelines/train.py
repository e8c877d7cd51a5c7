"""Training batches, augmented as in YOLOv5 and reproducible from (seed, epoch, batch)."""

from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.augmentation.letterbox import rectangular_batches
from pipelines.augmentation.plans import BatchPlan, Picture
from pipelines.augmentation.random_samples import RandomSamples, SamplePlan, doubled, epoch_order
from pipelines.augmentation.rendering import render_sample
from pipelines.batches import Batch, BatchSource
from pipelines.data.index import ImageIndex
from pipelines.pixels.backend import Backend
from pipelines.pixels.canvas_graph import GraphSettings
from pipelines.pixels.timings import Timings
from pipelines.settings import BatchSettings


class TrainPipeline:
    """Training batches of a data set.

    A batch depends only on the index, the augmentation, the seed, the epoch, the batch number and the arguments of
    `epoch`, but not on workers, ranks or earlier batches.

    Args:
        index: the images.
        augment: the augmentation settings.
        settings: the batch settings; with `quad`, the batch size is a multiple of 4.
        seed: seed of all draws, >= 0.
    Raises:
        ValueError: an argument is invalid, or the cache does not fit.
    """

    def __init__(self, index: ImageIndex, augment: AugmentConfig, settings: BatchSettings, *, seed: int) -> None:
        settings.check("train", index)
        if seed < 0:
            raise ValueError(f"seed {seed}: must be at least 0")
        backend = Backend.of(settings.device)
        batch_size, per_image = settings.batch_size, 4 if augment.quad else 1
        if batch_size % per_image:
            raise ValueError(f"batch size {batch_size}: must be a multiple of {per_image} with quad")
        self._per_image = per_image
        self._index, self._augment, self._settings, self._seed = index, augment, settings, seed
        self._samples = RandomSamples(index, augment, seed=seed)
        self._sizes = index.sizes_wh
        pastes = augment.copy_paste > 0 and len(index.segments.points) > 0
        self._warp = not augment.axis_aligned or pastes
        images = settings.open_images("train", index)
        self.graph_settings = GraphSettings(
            slots=augment.tiles,
            warp=self._warp,
            paste=pastes,
            batch_size=settings.shard.max_rows(batch_size // per_image) * per_image * (2 if augment.mixup > 0 else 1),
            threads=settings.workers,
            backend=backend,
            finish=backend.gpu is not None,
            quad=augment.quad,
            decoded=images.decoded,
        )
        self._source = BatchSource(self.graph_settings, images, index.paths)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches per epoch, including a smaller last one."""
        return -(-len(self._index) // self._settings.batch_size)

    def images_of(self, batch: int) -> int:
        """Return the number of images of a batch over all ranks; with quad, an image has four samples."""
        samples = min(self._settings.batch_size, len(self._index) - batch * self._settings.batch_size)
        return -(-samples // self._per_image)

    @property
    def timings(self) -> Timings:
        """Times of the pipeline's stages and of waiting."""
        return self._source.timings

    def epoch(
        self,
        epoch: int,
        *,
        first_batch: int = 0,
        image_weights: np.ndarray | None = None,
        sizes: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """Start an epoch and return its batches; a new call stops the previous epoch.

        Args:
            epoch: epoch number, >= 0.
            first_batch: first batch; earlier ones are skipped at no cost.
            image_weights: (images,) relative probabilities to draw images with, with replacement.
            sizes: image size of each batch, multiples of the stride; None uses `image_px`.
        """
        if sizes is not None and len(sizes) != self.batches_per_epoch:
            raise ValueError(f"{len(sizes)} image sizes for {self.batches_per_epoch} batches")
        if self._augment.rect and (sizes is not None or image_weights is not None):
            raise ValueError("rect cannot be used with multi-scale or image weights")
        return self._source.batches(
            self.plans(epoch, first_batch=first_batch, image_weights=image_weights, sizes=sizes)
        )

    def close(self) -> None:
        """Stop all threads. Batches already returned remain valid on a CPU."""
        self._source.close()

    def plans(
        self,
        epoch: int,
        *,
        first_batch: int = 0,
        image_weights: np.ndarray | None = None,
        sizes: Sequence[int] | None = None,
    ) -> Iterator[BatchPlan]:
        """Yield the plans of the batches of `epoch` without rendering them; arguments as in `epoch`."""
        order, repeat, shapes_hw = self._order(epoch, image_weights)
        for batch in range(first_batch, self.batches_per_epoch):
            rows = self._rows(batch)
            side = self._settings.image_px if sizes is None else sizes[batch]
            output_wh = (side, side) if shapes_hw is None else (int(shapes_hw[batch, 1]), int(shapes_hw[batch, 0]))
            samples = [
                self._samples.sample(
                    epoch,
                    int(order[row]),
                    output_wh=output_wh,
                    repeat=int(repeat[row]),
                    partners=None if image_weights is None else order,
                )
                for row in rows
            ]
            if self._augment.quad:
                yield self._quad_plan(samples, epoch, first_group=int(rows[0]) // 4)
            else:
                yield self._plan(samples)

    def _order(self, epoch: int, image_weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the images of an epoch in order, how often each was drawn before, and with rect the batch shapes."""
        count, settings = len(self._index), self._settings
        if not self._augment.rect:
            return *epoch_order(self._seed, epoch, count, image_weights=image_weights), None
        order, shapes_hw = rectangular_batches(
            self._index.sizes,
            batch_size=settings.batch_size,
            image_px=settings.image_px,
            stride=settings.stride,
            pad_strides=0.0,
        )
        return order, np.zeros(count, np.int64), shapes_hw

    def _rows(self, batch: int) -> np.ndarray:
        """Return this rank's positions of a batch in the order of the epoch."""
        size, group = self._settings.batch_size, self._per_image
        rows = np.arange(batch * size, min((batch + 1) * size, len(self._index)))
        # With quad, the four samples of an image stay together.
        own = self._settings.shard.rows(-(-len(rows) // group))
        return rows[own.start * group : own.stop * group]

    def _plan(self, samples: Sequence[SamplePlan]) -> BatchPlan:
        width, height = samples[0].output_wh
        return BatchPlan(
            pictures=tuple(self._picture(sample, row) for row, sample in enumerate(samples)),
            shape_hw=(height, width),
            labels=batch_labels([self._samples.labels(sample) for sample in samples]),
            indices=np.array([sample.index for sample in samples], np.int64),
        )

    def _quad_plan(self, samples: Sequence[SamplePlan], epoch: int, *, first_group: int) -> BatchPlan:
        """Join groups of four samples to images of twice the size; a smaller last group gives one enlarged sample.

        Source: YOLOv5's quad collate, which scales the enlarged sample after drawing and drops a smaller last group.
        """
        side = samples[0].output_wh[0]
        pictures, labels = [], []
        groups = [samples[start : start + 4] for start in range(0, len(samples), 4)]
        for row, group in enumerate(groups):
            if len(group) < 4 or self._samples.enlarged_quad(epoch, first_group + row):
                pictures.append(self._picture(doubled(group[0]), row))
                labels.append(self._samples.labels(group[0]))
                continue
            parts = []
            for quarter, sample in enumerate(group):
                down, across = divmod(quarter, 2)
                pictures.append(self._picture(sample, row, at=(down * side, across * side)))
                boxes = self._samples.labels(sample)
                boxes[:, 1:] /= 2
                boxes[:, 1:3] += (across / 2, down / 2)
                parts.append(boxes)
            labels.append(np.concatenate(parts))
        indices = np.array([group[0].index for group in groups], np.int64)
        return BatchPlan(tuple(pictures), (2 * side, 2 * side), batch_labels(labels), indices)

    def _picture(self, sample: SamplePlan, row: int, at: tuple[int, int] = (0, 0)) -> Picture:
        views = render_sample(sample, self._sizes, warp=self._warp)
        return Picture(views, sample.mix_ratio, sample.hsv_gains, row, at)


def batch_labels(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate the labels (k, 5) of the images of a batch to (n, 6) float32, with the image index in front."""
    numbered = [np.insert(rows, 0, image, axis=1) for image, rows in enumerate(labels)]
    return np.concatenate(numbered).astype(np.float32) if numbered else np.zeros((0, 6), np.float32)
