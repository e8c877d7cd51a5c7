"""The validation within a run: the averaged weights on the val split, with callbacks, and left when a signal asks."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.hooks.callbacks import Callbacks
from graph_train.training.assembly import TrainingRun
from graph_train.validation.measuring import (
    TABLE_HEADER,
    ImageDetections,
    ValidationBatch,
    ValidationResult,
    ValidationSettings,
    validate,
)
from graph_train.validation.sharded_validation import Sharing

LOG = logging.getLogger("graph_train")


def measured(validation: ValidationResult | None) -> tuple[float, ...]:
    """The seven numbers of a validation in the order of `results.csv`."""
    if validation is None:
        return (0.0,) * 7
    losses = (0.0,) * 3 if validation.loss is None else validation.loss
    return (*validation.means, *(float(value) for value in losses))


class EpochValidation:
    """Measures the averaged weights of a run as often as asked."""

    def __init__(self, run: TrainingRun, folder: Path, callbacks: Callbacks, before_batch: Callable[[], None]) -> None:
        """`before_batch` may raise to leave a validation; it begins anew when the run goes on."""
        self._run, self._folder, self._callbacks, self._before_batch = run, folder, callbacks, before_batch
        self._images = 0
        self.last: ValidationResult | None = None

    def measure(self, *, plots: bool = False, per_class: bool = False) -> ValidationResult:
        """Measures them and prints the table; `plots` go into the run's folder."""
        run, options = self._run, self._run.setup.options
        settings = ValidationSettings(
            single_cls=options.data.single_cls,
            plots_dir=self._folder if plots and not options.run.noplots else None,
        )
        hooks = ValidationHooks(self._callbacks, run.setup.data.class_names)
        LOG.info("%s", TABLE_HEADER)
        result = validate(
            self._forward,
            self._batches(hooks.batches(run.val_pipeline)),
            run.setup.data.class_names,
            settings,
            total=run.val_pipeline.batches_per_epoch,
            on_image=hooks.image,
            sharing=Sharing(run.setup.exchange, run.val_pipeline.images_of),
        )
        self.last = result
        hooks.end(result)
        LOG.info("%s", result.table(per_class=per_class))
        return result

    def _batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            self._before_batch()
            self._images = self._run.val_pipeline.images_of(number)
            yield batch

    def _forward(self, images: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self._run.inference(images, rows, self._images)


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
