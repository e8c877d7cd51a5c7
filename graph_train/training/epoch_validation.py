"""Validation during training: the averaged weights on the val split, with callbacks."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.hooks.callbacks import Callbacks
from graph_train.training.assembly import TrainingRun
from graph_train.validation.coco_evaluation import CocoSplit, DetectionCollector, write_and_evaluate
from graph_train.validation.coco_results import CocoMetrics
from graph_train.validation.measuring import ImageDetections, ValidationBatch, ValidationSettings, validate
from graph_train.validation.result import TABLE_HEADER, ValidationResult
from graph_train.validation.sharded_validation import BatchSharding
from pipelines.data.dataset import is_coco_2017

LOG = logging.getLogger("graph_train")
COCO_IOU = 0.65
"""IoU threshold of NMS for the final validation on COCO, as in YOLOv5."""


def result_values(validation: ValidationResult | None, coco: CocoMetrics | None = None) -> tuple[float, ...]:
    """Return a validation's seven values in the order of `results.csv`; mAP is COCO's if that was evaluated."""
    if validation is None:
        return (0.0,) * 7
    losses = (0.0,) * 3 if validation.loss is None else validation.loss
    precision, recall, map50, map50_95 = validation.means
    if coco is not None:
        map50, map50_95 = coco.map50, coco.map50_95
    return (precision, recall, map50, map50_95, *(float(value) for value in losses))


class EpochValidation:
    """Validation of a run's averaged weights."""

    def __init__(self, run: TrainingRun, folder: Path, callbacks: Callbacks, before_batch: Callable[[], None]) -> None:
        """`before_batch` is called before each batch and may raise to abort the validation."""
        self._run, self._folder, self._callbacks, self._before_batch = run, folder, callbacks, before_batch
        self._batch_images = 0
        self.last: ValidationResult | None = None
        self.coco: CocoMetrics | None = None
        """COCO metrics of the best weights, set by `measure_best` on COCO."""

    def measure(self) -> ValidationResult:
        """Validate and print the table."""
        return self._validate(ValidationSettings(single_cls=self._run.setup.options.data.single_cls))

    def measure_best(self, weights: Path) -> ValidationResult:
        """Validate the best weights at the end of a run, with plots and, on COCO, COCO's own evaluation.

        Args:
            weights: the file they were loaded from; the COCO result file is named after it.
        """
        options, is_coco = self._run.setup.options, is_coco_2017(self._run.setup.data.dataset.val)
        settings = ValidationSettings(
            iou_thres=COCO_IOU if is_coco else ValidationSettings.iou_thres,
            single_cls=options.data.single_cls,
            plots_dir=None if options.run.noplots else self._folder,
        )
        collector = DetectionCollector(self._run.setup.data.val.paths) if is_coco else None
        result = self._validate(settings, collector, per_class=True)
        if collector is not None:
            self.coco = self._evaluate_as_coco(collector, self._folder / f"{weights.stem}_predictions.json")
        return result

    def _evaluate_as_coco(self, collector: DetectionCollector, file: Path) -> CocoMetrics | None:
        """Return COCO's metrics on every rank; None, with a log message, if they cannot be computed."""
        exchange, metrics, write_error = self._run.setup.exchange, None, None
        rows = collector.gathered(exchange)
        if exchange.is_main and (split := self._coco_split()) is not None:
            try:
                metrics = write_and_evaluate(file, rows, split)
            except OSError as error:
                write_error = error  # raised after the broadcast that the other ranks wait for
        sent = exchange.broadcast(None if metrics is None else [list(metrics.stats), metrics.table])
        if write_error is not None:
            raise write_error
        return None if sent is None else CocoMetrics(tuple(sent[0]), sent[1])

    def _coco_split(self) -> CocoSplit | None:
        data, options = self._run.setup.data, self._run.setup.options
        try:
            return CocoSplit.of(data.dataset.val, data.val, single_cls=options.data.single_cls)
        except (ValueError, OSError) as error:  # not fatal: the run is over and its weights are saved
            LOG.warning("COCO evaluation skipped: %s", error)
            return None

    def _validate(
        self, settings: ValidationSettings, collector: DetectionCollector | None = None, *, per_class: bool = False
    ) -> ValidationResult:
        run = self._run
        hooks = ValidationHooks(self._callbacks, run.setup.data.class_names)

        def on_image(image: ImageDetections) -> None:
            hooks.image(image)
            if collector is not None:
                collector.add(image)

        LOG.info("%s", TABLE_HEADER)
        result = validate(
            self._forward,
            self._batches(hooks.batches(run.val_pipeline)),
            run.setup.data.class_names,
            settings,
            total=run.val_pipeline.batches_per_epoch,
            on_image=on_image,
            sharding=BatchSharding(run.setup.exchange, run.val_pipeline.images_of),
        )
        self.last = result
        hooks.end(result)
        LOG.info("%s", result.table(per_class=per_class))
        return result

    def _batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            self._before_batch()
            self._batch_images = self._run.val_pipeline.images_of(number)
            yield batch

    def _forward(self, images: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self._run.inference(images, rows, self._batch_images)


class ValidationHooks:
    """The `on_val_…` hooks of one validation.

    Args:
        callbacks: the callbacks to run.
        class_names: passed to `on_val_image_end`.
    """

    def __init__(self, callbacks: Callbacks, class_names: Sequence[str]) -> None:
        self._callbacks, self._names = callbacks, tuple(class_names)
        self._batch: ValidationBatch | None = None
        self._detections: list[np.ndarray] = []

    def batches(self, source: Iterable[ValidationBatch]) -> Iterator[ValidationBatch]:
        """Yield the batches of `source`, running the hooks before and after each."""
        self._callbacks.run("on_val_start")
        for number, batch in enumerate(source):
            self._batch, self._detections = batch, []
            self._callbacks.run("on_val_batch_start")
            yield batch
            paths = [str(path) for path in batch.paths]
            self._callbacks.run(
                "on_val_batch_end", number, batch.images, batch.labels, paths, batch.geometry, self._detections
            )

    def image(self, image: ImageDetections) -> None:
        """Run the hook for the next image of the current batch."""
        if not self._callbacks.listens("on_val_image_end") and not self._callbacks.listens("on_val_batch_end"):
            return
        batch, number = self._batch, len(self._detections)
        if batch is None:
            raise RuntimeError("image() was called before the first batch")
        place = batch.geometry[number]
        in_batch = image.detections.copy()
        in_batch[:, :4] = in_batch[:, :4] * place.ratio_hw[0] + np.tile(place.pad_wh, 2)
        self._detections.append(in_batch)
        self._callbacks.run(
            "on_val_image_end", in_batch, image.detections, str(image.path), self._names, batch.images[number]
        )

    def end(self, result: ValidationResult) -> None:
        """Run `on_val_end`."""
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
