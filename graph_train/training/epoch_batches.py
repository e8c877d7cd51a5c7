"""The batches of an epoch: image weights, multi-scale sizes, and labels padded to few distinct shapes."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.host.memory import resident_bytes
from graph_train.runs.cursor import Cursor
from graph_train.training.assembly import TrainingRun
from graph_train.training.image_weights import class_weights, epoch_class_weights, image_weights
from kernels.host.free_memory import free_memory
from kernels.runtime import Tensor
from models.padded_labels import label_capacity, pad_labels
from pipelines.augmentation.random_samples import multi_scale_sizes
from pipelines.batches import Batch

LOG = logging.getLogger("graph_train")
GRAPH_MEMORY_FRACTION = 0.9
"""Fraction of the free memory that graphs may use; the rest is for data and validation."""


class EpochBatches:
    """Source of a run's training batches."""

    def __init__(self, run: TrainingRun) -> None:
        self._run, self._options = run, run.setup.options

    def remaining(self, cursor: Cursor) -> Iterator[Batch]:
        """Iterate over the remaining batches of the epoch."""
        return iter(
            self._run.train_pipeline.epoch(
                cursor.epoch,
                first_batch=cursor.next_batch,
                image_weights=self._weights(cursor.maps),
                sizes=self._sizes(cursor.epoch) if self._options.data.multi_scale else None,
            )
        )

    def padded_labels(self, batch: Batch, total: int, max_labels: int) -> Tensor:
        """Return labels (B, T, 5); T is at least the data set's typical capacity, so that few shapes are compiled.

        Args:
            batch: this rank's part of a batch.
            total: number of images of the whole batch.
            max_labels: largest number of labels of an image, over all ranks.
        """
        capacity = label_capacity(max(max_labels, self._run.label_floor))
        padded = pad_labels(batch.labels, int(batch.images.shape[0]), capacity)
        return self._run.setup.placement.shard_batch(padded, total)

    def compile_largest(self, first_epoch: int) -> None:
        """Compile for the largest `--multi-scale` size first, so that a lack of memory shows at the start.

        Raises:
            ValueError: on a CPU, if the graphs of all sizes together do not fit in memory.
        """
        run, step = self._run, self._run.step
        epochs = range(first_epoch, self._options.optim.epochs)
        sizes = {size for epoch in epochs for size in self._sizes(epoch)} if self._options.data.multi_scale else set()
        if not sizes or not step.compiles:
            return
        LOG.info("Multi-scale: %d image sizes from %d to %d px, one graph for each", len(sizes), min(sizes), max(sizes))
        images, side = self._options.optim.batch_size, max(sizes)
        if self._options.data.quad:
            images, side = images // 4, side * 2
        images = min(images, len(run.setup.data.train))
        before = resident_bytes()
        step.prepare((images, 3, side, side), (images, run.label_floor, 5), run.schedule.at(0, 0))
        if run.setup.device == "cpu":
            _require_graph_memory(resident_bytes() - before, sizes)

    def _sizes(self, epoch: int) -> list[int]:
        """Return the image size in px of each batch of an epoch with `--multi-scale`."""
        return multi_scale_sizes(
            self._options.optim.seed,
            epoch,
            self._run.train_pipeline.batches_per_epoch,
            image_px=self._run.setup.image_px,
            stride=self._run.state.network.spec.grid_px,
        )

    def _weights(self, maps: Sequence[float]) -> npt.NDArray[Any] | None:
        """Return image weights for `--image-weights`: images of rare classes and of classes with low mAP weigh more."""
        if not self._options.data.image_weights:
            return None
        data = self._run.setup.data
        labels, classes = data.train.labels, len(data.class_names)
        class_maps = np.asarray(maps or [0.0] * classes)
        return image_weights(labels, classes, epoch_class_weights(class_weights(labels, classes) * classes, class_maps))


def _require_graph_memory(largest: int, sizes: set[int]) -> None:
    """Check that the graphs of all image sizes fit in memory together; OneFlow shares their memory on GPUs only.

    Args:
        largest: memory of the graph of the largest size, in bytes.
        sizes: all image sizes in px.
    Raises:
        ValueError: they do not fit.
    """
    others = largest * sum((size / max(sizes)) ** 2 for size in sizes) - largest
    free = free_memory()
    LOG.info(
        "Multi-scale: the graphs of all sizes need about %.1f GB of memory; %.1f GB are free",
        (largest + others) / 1e9,
        free / 1e9,
    )
    if others > free * GRAPH_MEMORY_FRACTION:
        raise ValueError(
            f"--multi-scale: the graphs of the other {len(sizes) - 1} image sizes need about {others / 1e9:.1f} GB, "
            f"but only {free / 1e9:.1f} GB is free; use a smaller --batch-size or --imgsz, or --eager (same results)"
        )
