"""Validation of a detector on a data set, with YOLOv5's metrics; NMS has no time limit."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from graph_train.detection.inference import on_host
from graph_train.detection.nms import NmsSettings, non_max_suppression
from graph_train.host.terminal import BAR_FORMAT
from graph_train.metrics.average_precision import (
    IOU_THRESHOLDS,
    match_detections,
    metrics_per_class,
)
from graph_train.metrics.confusion import ConfusionMatrix
from graph_train.ranks.exchange import Exchange
from graph_train.settings.val_options import ValOptions
from graph_train.validation.result import Speed, ValidationResult
from graph_train.validation.sharded_validation import BatchSharding, MatchedImages, gather_matched_images
from kernels.host.quantity import quantity
from pipelines.augmentation.boxes import cxcywh_to_xyxy
from pipelines.augmentation.letterbox import unletterbox_boxes

Array = npt.NDArray[Any]

Forward = Callable[[Any, Array], tuple[Array, Array | None]]
"""Inference on uint8 images (B, 3, H, W) and labels (n, 6). It returns decoded predictions (B, N, 5 + nc) float32, with
boxes in px of the letterboxed image and confidences after the sigmoid; and the parts of the loss (3,), or None."""

DRAWN_BATCHES = 3


class Geometry(Protocol):
    """The mapping from an image file to its image in a batch."""

    @property
    def original_hw(self) -> tuple[int, int]:
        """Height and width of the file in px."""

    @property
    def ratio_hw(self) -> tuple[float, float]:
        """Scale from the file to the batch."""

    @property
    def pad_wh(self) -> tuple[float, float]:
        """Left and top padding in px."""


class ValidationBatch(Protocol):
    """The interface of a batch for validation."""

    @property
    def images(self) -> Any:
        """(B, 3, H, W) uint8 RGB: a NumPy array, or a tensor with `numpy()`."""

    @property
    def labels(self) -> Array:
        """(n, 6) float32: image index in the batch, class, cx, cy, w, h normalised to the letterboxed image."""

    @property
    def paths(self) -> Sequence[str | Path]:
        """The B image files."""

    @property
    def geometry(self) -> Sequence[Geometry]:
        """The geometry of each of the B images."""


@dataclass(frozen=True)
class ImageDetections:
    """Detections and labels of an image, in px of its file.

    Attributes:
        detections: (k, 6) x1, y1, x2, y2, confidence, class; sorted by decreasing confidence.
        labels: (m, 5) class, x1, y1, x2, y2.
    """

    path: Path
    image_hw: tuple[int, int]
    detections: Array
    labels: Array


@dataclass(frozen=True)
class ValidationSettings:
    """Settings of a validation, with the defaults of YOLOv5's `val.py`.

    Attributes:
        single_cls: treat all detections and labels as class 0.
        label_hints: add the labels to the NMS candidates (`--save-hybrid`, for label files; metrics are meaningless).
        plots_dir: folder for the first batches with their boxes, the curves and the confusion matrix.
    """

    conf_thres: float = ValOptions.conf_thres
    iou_thres: float = ValOptions.iou_thres
    max_det: int = ValOptions.max_det
    single_cls: bool = False
    label_hints: bool = False
    plots_dir: Path | None = None

    def suppression(self) -> NmsSettings:
        """Return the settings of NMS."""
        return NmsSettings(
            self.conf_thres, self.iou_thres, agnostic=self.single_cls, multi_label=True, max_det=self.max_det
        )


def validate(
    forward: Forward,
    batches: Iterable[ValidationBatch],
    class_names: Sequence[str],
    settings: ValidationSettings | None = None,
    *,
    total: int | None = None,
    on_image: Callable[[ImageDetections], None] | None = None,
    sharding: BatchSharding | None = None,
) -> ValidationResult:
    """Validate a detector.

    Args:
        forward: the network, see `Forward`.
        batches: the data set.
        class_names: name of each class.
        settings: the settings; None for the defaults.
        total: number of batches, for the progress bar.
        on_image: called with each image after NMS, for instance to write result files.
        sharding: if given, `batches` are this rank's shards, and the result is that of all ranks.

    Raises:
        ValueError: labels or predictions do not match the class names, or a setting is invalid.
    """
    run = _ValidationRun(forward, tuple(class_names), settings or ValidationSettings(), on_image, sharding)
    bar = tqdm(
        batches,
        desc=f"{'validating':>22}",
        total=total,
        bar_format=BAR_FORMAT,
        leave=False,
        disable=None,  # no bar where stderr is a file or a pipe
    )
    started = time.perf_counter()
    for batch in bar:
        run.timer["load"] += time.perf_counter() - started
        run.add(batch)
        started = time.perf_counter()
    return run.result()


class _ValidationRun:
    """The accumulated state of a validation."""

    def __init__(
        self,
        forward: Forward,
        class_names: tuple[str, ...],
        settings: ValidationSettings,
        on_image: Callable[[ImageDetections], None] | None,
        sharding: BatchSharding | None,
    ) -> None:
        self._sharding = sharding
        self._forward, self._names, self._settings, self._on_image = forward, class_names, settings, on_image
        self._suppression = settings.suppression()
        self._confusion = ConfusionMatrix(len(class_names))
        self._matched: list[tuple[Array, Array, Array]] = []
        self._batch_of_image: list[int] = []
        self._label_classes: list[Array] = []
        self._losses: list[Array] = []
        self._batches, self._images = 0, 0
        self._batch_shape: tuple[int, ...] = ()
        self.timer = {"load": 0.0, "inference": 0.0, "suppression": 0.0}

    def add(self, batch: ValidationBatch) -> None:
        labels = np.array(batch.labels, np.float32)
        if self._settings.single_cls:
            labels[:, 1] = 0
        started = time.perf_counter()
        predictions, loss = self._forward(batch.images, labels)
        predicted = time.perf_counter()
        self._check(predictions, labels)
        if loss is not None:
            self._losses.append(np.asarray(loss, np.float64))
        self._batches += 1
        if self._sharding is not None and not self._sharding.owns_rows(self._batches - 1):
            return
        network_hw = (int(batch.images.shape[2]), int(batch.images.shape[3]))
        per_image = [labels[labels[:, 0] == image, 1:] for image in range(len(predictions))]
        hints = [_in_px(rows, network_hw) for rows in per_image] if self._settings.label_hints else None
        found = non_max_suppression(predictions, self._suppression, known_labels=hints)
        self.timer["inference"] += predicted - started
        self.timer["suppression"] += time.perf_counter() - predicted
        if self._settings.single_cls:
            for rows in found:
                rows[:, 5] = 0
        for image, rows in enumerate(found):
            self._add_image(Path(batch.paths[image]), batch.geometry[image], network_hw, rows, per_image[image])
        if self._settings.plots_dir is not None and self._batches <= DRAWN_BATCHES:
            self._draw(batch, labels, found, self._settings.plots_dir)
        self._batch_shape = self._batch_shape or tuple(int(side) for side in batch.images.shape)

    def _check(self, predictions: Array, labels: Array) -> None:
        if predictions.shape[2] != 5 + len(self._names) and not self._settings.single_cls:
            raise ValueError(
                f"the network predicts {quantity(predictions.shape[2] - 5, 'class')}, but the data set has "
                f"{len(self._names)}; use the data set that the weights were trained on"
            )
        if len(labels) and labels[:, 1].max() >= len(self._names):
            raise ValueError(
                f"label with class {labels[:, 1].max():g}, but the data set has only "
                f"{quantity(len(self._names), 'class')}"
            )

    def _add_image(
        self, path: Path, geometry: Geometry, network_hw: tuple[int, int], detections_px: Array, label_rows: Array
    ) -> None:
        # As in YOLOv5, the ratio of the heights is used for both axes; that of the widths differs only by rounding.
        ratio_pad = (geometry.ratio_hw[0], geometry.pad_wh)
        to_file = partial(unletterbox_boxes, from_hw=network_hw, to_hw=geometry.original_hw, ratio_pad=ratio_pad)
        detections = detections_px.copy()
        detections[:, :4] = to_file(detections_px[:, :4])
        corners = cxcywh_to_xyxy(_in_px(label_rows, network_hw)[:, 1:])
        labels = np.concatenate((label_rows[:, :1], to_file(corners)), axis=1)
        self._matched.append((match_detections(detections, labels), detections[:, 4], detections[:, 5]))
        self._batch_of_image.append(self._batches - 1)
        self._label_classes.append(labels[:, 0].astype(np.int64))
        self._confusion.add(detections, labels)
        self._images += 1
        if self._on_image is not None:
            self._on_image(ImageDetections(path, geometry.original_hw, detections, labels))

    def _draw(self, batch: ValidationBatch, labels: Array, detections: Sequence[Array], folder: Path) -> None:
        from graph_train.plots.images import plot_detections, plot_labelled
        from graph_train.plots.style import optional_plot

        images = on_host(batch.images)
        stem = f"val_batch{self._batches - 1}"
        with optional_plot(folder / stem):
            plot_labelled(images, labels, self._names, folder / f"{stem}_labels.jpg", paths=batch.paths)
            plot_detections(images, detections, self._names, folder / f"{stem}_pred.jpg", paths=batch.paths)

    def _gather(self, exchange: Exchange) -> None:
        """Combine the results of all ranks, on every rank."""
        gathered = gather_matched_images(
            MatchedImages(self._batch_of_image, self._matched, self._label_classes), exchange
        )
        self._matched, self._label_classes = list(gathered.matched), list(gathered.label_classes)
        self._confusion.counts = np.sum(exchange.all_gather_arrays(self._confusion.counts), axis=0)
        self._images = len(self._matched)

    def result(self) -> ValidationResult:
        if self._sharding is not None and not self._sharding.exchange.single_rank:
            self._gather(self._sharding.exchange)
        number = len(self._names)
        counts = [np.bincount(categories, minlength=number) for categories in self._label_classes]
        no_label = np.zeros(number, np.int64)
        no_match = (np.zeros((0, len(IOU_THRESHOLDS)), bool), np.zeros(0, np.float32), np.zeros(0, np.float32))
        correct, confidence, category = (
            np.concatenate(column) for column in zip(no_match, *self._matched, strict=True)
        )
        label_class = np.concatenate((np.zeros(0, np.int64), *self._label_classes))
        milliseconds = {part: 1000 * seconds / max(self._images, 1) for part, seconds in self.timer.items()}
        result = ValidationResult(
            class_names=self._names,
            images=self._images,
            labels_per_class=sum(counts, no_label),
            images_per_class=sum((count > 0 for count in counts), no_label),
            classes=metrics_per_class(correct, confidence, category, label_class),
            confusion=self._confusion,
            loss=np.mean(self._losses, axis=0) if self._losses else None,
            speed=Speed(**milliseconds),
            batch_shape=self._batch_shape,
        )
        if self._settings.plots_dir is not None:
            from graph_train.plots.curves import plot_validation
            from graph_train.plots.style import optional_plot

            with optional_plot(self._settings.plots_dir):
                plot_validation(result.classes, result.confusion, self._names, self._settings.plots_dir)
        return result


def _in_px(rows: Array, image_hw: tuple[int, int]) -> Array:
    """Convert (n, 5) class, cx, cy, w, h from normalised to px."""
    height, width = image_hw
    return rows * np.asarray([1, width, height, width, height], np.float32)
