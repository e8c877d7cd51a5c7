"""The validation within a run: the averaged weights on the val split, with callbacks, and left when a signal asks."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.hooks.callbacks import Callbacks
from graph_train.training.assembly import TrainingRun
from graph_train.validation.measuring import TABLE_HEADER, ValidationResult, ValidationSettings, validate
from graph_train.validation.sharded_validation import Sharing
from graph_train.validation.validation_hooks import ValidationHooks

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
