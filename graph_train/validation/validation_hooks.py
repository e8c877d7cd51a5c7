"""Tells callbacks how a validation goes on, from outside: the measuring itself knows nothing of them."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from graph_train.hooks.callbacks import Callbacks
from graph_train.validation.measuring import ImageDetections, ValidationBatch, ValidationResult


class ValidationHooks:
    """Runs the `on_val_…` hooks of one validation.

    Args:
        callbacks: who listens.
        class_names: handed on to `on_val_image_end`.
    """

    def __init__(self, callbacks: Callbacks, class_names: Sequence[str]) -> None:
        self._callbacks, self._names = callbacks, tuple(class_names)
        self._batch: ValidationBatch | None = None
        self._found: list[np.ndarray] = []

    def batches(self, source: Iterable[ValidationBatch]) -> Iterator[ValidationBatch]:
        """The batches of the source, with the hooks before and after each."""
        self._callbacks.run("on_val_start")
        for number, batch in enumerate(source):
            self._batch, self._found = batch, []
            self._callbacks.run("on_val_batch_start")
            yield batch
            paths = [str(path) for path in batch.paths]
            self._callbacks.run(
                "on_val_batch_end", number, batch.images, batch.labels, paths, batch.geometry, self._found
            )

    def image(self, image: ImageDetections) -> None:
        """One image of the current batch, in their order."""
        if not self._callbacks.listens("on_val_image_end") and not self._callbacks.listens("on_val_batch_end"):
            return
        batch, number = self._batch, len(self._found)
        if batch is None:
            raise RuntimeError("an image came before its batch")
        place = batch.geometry[number]
        in_batch = image.detections.copy()
        in_batch[:, :4] = in_batch[:, :4] * place.ratio_hw[0] + np.tile(place.pad_wh, 2)
        self._found.append(in_batch)
        self._callbacks.run(
            "on_val_image_end", in_batch, image.detections, str(image.path), self._names, batch.images[number]
        )

    def end(self, result: ValidationResult) -> None:
        """The validation is over."""
        c = result.classes
        self._callbacks.run(
            "on_val_end",
            result.labels_per_class,
            c.true_positives,
            c.false_positives,
            c.precision,
            c.recall,
            c.f1,
            c.ap50_95,
            c.ap50,
            c.classes,
            result.confusion.counts,
        )
