"""What an epoch of a run is fed: its batches, their sizes, their labels in shapes that are few enough to compile."""

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
from pipelines.augmentation.draws import multi_scale_sizes

LOG = logging.getLogger("graph_train")
GRAPH_SHARE = 0.9
"""How much of the free memory graphs may take; the rest is for data and validation."""


class EpochBatches:
    """Asks the training pipeline of a run for what each epoch needs."""

    def __init__(self, run: TrainingRun) -> None:
        self._run, self._options = run, run.setup.options

    def remaining(self, cursor: Cursor) -> Iterator[Any]:
        """Iterate over the batches that the epoch has not seen yet."""
        return iter(
            self._run.train_pipeline.epoch(
                cursor.epoch,
                first_batch=cursor.next_batch,
                image_weights=self._weights(cursor.maps),
                sizes=self._sizes(cursor.epoch) if self._options.data.multi_scale else None,
            )
        )

    def padded_labels(self, batch: Any, total: int, most_labels: int) -> Tensor:
        """Labels (B, T, 5); T below the data set's typical capacity is not used, so that few shapes are compiled.

        Args:
            batch: this rank's part of a batch.
            total: images of the whole batch.
            most_labels: of one image, on any rank.
        """
        capacity = label_capacity(max(most_labels, self._run.label_floor))
        padded = pad_labels(batch.labels, int(batch.images.shape[0]), capacity)
        return self._run.setup.placement.shard_batch(padded, total)

    def reserve_largest(self, first_epoch: int) -> None:
        """Compiles the largest batch that `--multi-scale` will draw, so that a lack of memory shows before it comes.

        Raises:
            ValueError: on a CPU, where the graphs of all sizes will not fit beside each other.
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
        """Side in px of each batch of an epoch with `--multi-scale`."""
        return multi_scale_sizes(
            self._options.optim.seed,
            epoch,
            self._run.train_pipeline.batches_per_epoch,
            image_px=self._run.setup.image_px,
            stride=self._run.state.network.spec.grid_px,
        )

    def _weights(self, maps: Sequence[float]) -> npt.NDArray[Any] | None:
        """Weights of the images for `--image-weights`: rare classes and badly found ones count more."""
        if not self._options.data.image_weights:
            return None
        data = self._run.setup.data
        labels, classes = data.train.labels, len(data.class_names)
        found = np.asarray(maps or [0.0] * classes)
        return image_weights(labels, classes, epoch_class_weights(class_weights(labels, classes) * classes, found))


def _require_graph_memory(largest: int, sizes: set[int]) -> None:
    """Refuses image sizes whose graphs will not fit beside each other; OneFlow shares their memory on a GPU only.

    Args:
        largest: bytes that the graph of the largest size has taken.
        sizes: all sides in px.
    Raises:
        ValueError: says how much is missing.
    """
    others = largest * sum((size / max(sizes)) ** 2 for size in sizes) - largest
    free = free_memory()
    LOG.info(
        "Multi-scale: graphs of all sizes need about %.1f GB, %.1f GB are free", (largest + others) / 1e9, free / 1e9
    )
    if others > free * GRAPH_SHARE:
        raise ValueError(
            f"--multi-scale: graphs of the other {len(sizes) - 1} image sizes need about {others / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; take a smaller --batch-size or --imgsz, or --eager (equal numbers)"
        )
