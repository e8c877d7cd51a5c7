"""The work of `graph-val`: validate weights on a data set; write label files, COCO results and plots."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.detection.detector import Detector, load_detector
from graph_train.detection.label_files import ProtectedFiles, write_label_file
from graph_train.engine.precision import load_kernels
from graph_train.engine.schedule import check_image_size
from graph_train.host.devices import select_device
from graph_train.host.published_weights import located_weights
from graph_train.ranks.exchange import Exchange
from graph_train.runs.run_folder import make_unused_folder, require_possible_folder
from graph_train.settings.val_options import ValOptions
from graph_train.validation.coco_evaluation import CocoSplit, DetectionCollector, write_and_evaluate
from graph_train.validation.measuring import ImageDetections, ValidationSettings, validate
from graph_train.validation.result import TABLE_HEADER, ValidationResult
from kernels.host.files import write_atomically
from kernels.host.paths import printable
from kernels.host.quantity import quantity
from pipelines.augmentation.letterbox import BORDER_GREY
from pipelines.data.dataset import Dataset, Split, is_coco_2017, load_dataset
from pipelines.data.index import ImageIndex, index_images
from pipelines.settings import BatchSettings, worker_threads
from pipelines.val import ValPipeline

LOG = logging.getLogger("graph_train")

STUDY_SIZES = tuple(range(256, 1536 + 128, 128))
"""Image sizes of `--task study` in px."""
_LONG_TABLE = 50


@dataclass(frozen=True)
class EvaluationResult:
    """The results folder of `graph-val`, and one result per detector (in a study, per detector and image size)."""

    folder: Path
    results: tuple[ValidationResult, ...]


def evaluate(options: ValOptions) -> EvaluationResult:
    """Run `graph-val`.

    Raises:
        ValueError, OSError: a setting or a file is invalid.
    """
    split: Split = options.task if options.task in ("train", "test") else "val"  # type: ignore[assignment]
    require_possible_folder(options.project, options.name, exist_ok=options.exist_ok)
    device = select_device(options.device)
    load_kernels(options.kernels, device)  # type: ignore[arg-type]
    dataset = load_dataset(options.data, require=(split,), allow_download=options.allow_download)
    index = _index(dataset, split, options)
    groups = [options.weights] if options.task not in ("speed", "study") else [(path,) for path in options.weights]
    detectors = [_detector(group, options, device) for group in groups]
    for detector, group in zip(detectors, groups, strict=True):
        _check_classes(detector, index, group[0], options)
    _warn_of_unusual_metrics(options)
    folder = make_unused_folder(options.project, options.name, exist_ok=options.exist_ok)
    results: list[ValidationResult] = []
    for number, (detector, group) in enumerate(zip(detectors, groups, strict=True)):
        validation = _SplitValidation(options, dataset, split, index, detector, Path(group[0]), folder, device, number)
        results += validation.study() if options.task == "study" else [validation.measure()]
    if options.task == "study" and not options.noplots:
        _draw_study(options, results, folder)
    LOG.info("Results saved to %s", printable(folder))
    return EvaluationResult(folder, tuple(results))


def _warn_of_unusual_metrics(options: ValOptions) -> None:
    """Warn, as YOLOv5 does, of settings that change the metrics' meaning."""
    if options.task != "speed" and options.conf_thres > ValOptions.conf_thres:
        LOG.warning(
            "--conf-thres %g: above %g, precision-recall curves and mAP are incomplete",
            options.conf_thres,
            ValOptions.conf_thres,
        )
    if options.save_hybrid:
        LOG.warning("--save-hybrid: labels count as detections, so the metrics are not those of the network")


def _detector(group: Sequence[str], options: ValOptions, device: str) -> Detector:
    paths = [located_weights(path, allow_download=options.allow_download) for path in group]
    return load_detector(paths, device=device, graph=None if options.graph else False, augment=options.augment)


def _index(dataset: Dataset, split: Split, options: ValOptions) -> ImageIndex:
    index = index_images(
        dataset.split(split),
        dataset.class_names,
        single_class=options.single_cls,
        workers=worker_threads(options.workers),
        progress=split,
    )
    if unlabelled := index.missing_labels(dataset.split(split)):
        LOG.warning("%s: %s; all metrics are 0", split, unlabelled)
    if options.save_txt or options.save_hybrid:
        seen: dict[str, Path] = {}
        for path in index.paths:
            if path.stem in seen:
                flag = "--save-txt" if options.save_txt else "--save-hybrid"
                raise ValueError(
                    f"{flag}: {path} and {seen[path.stem]} would have the same label file {path.stem}.txt; rename one"
                )
            seen[path.stem] = path
    return index


def _check_classes(detector: Detector, index: ImageIndex, weights: str, options: ValOptions) -> None:
    if len(detector.class_names) != len(index.class_names) and not options.single_cls:
        raise ValueError(
            f"{weights}: has {quantity(len(detector.class_names), 'class')}, but {options.data} has "
            f"{len(index.class_names)}; use the data set that it was trained on, or --single-cls to ignore classes"
        )
    for category, (known, named) in enumerate(zip(detector.class_names, index.class_names, strict=False)):
        if known not in (named, str(category)) and not options.single_cls:
            LOG.warning(
                "%s: class %d is %r, but in %s it is %r; check that this is the data set it was trained on",
                printable(weights),
                category,
                known,
                printable(options.data),
                named,
            )
            return


@dataclass(frozen=True)
class _SplitValidation:
    """Validation of one detector on one split."""

    options: ValOptions
    dataset: Dataset
    split: Split
    index: ImageIndex
    detector: Detector
    weights: Path
    folder: Path
    device: str
    number: int
    """Index of the detector."""

    def measure(self) -> ValidationResult:
        """Validate once and write the requested files."""
        options, split = self.options, None
        sources = self.dataset.split(self.split)
        if options.save_json or (is_coco_2017(sources) and options.may_save_json):
            split = CocoSplit.of(sources, self.index, single_cls=options.single_cls)
        writers: list[Callable[[ImageDetections], None]] = []
        if options.save_txt or options.save_hybrid:
            (self.folder / "labels").mkdir(exist_ok=True)
            protected = ProtectedFiles(self.index.paths)
            writers.append(
                lambda image: write_label_file(
                    protected.without_overwriting(self.folder / "labels" / f"{image.path.stem}.txt"),
                    image.detections,
                    image_hw=image.image_hw,
                    confidence=options.save_conf,
                )
            )
        collector = DetectionCollector(self.index.paths)
        if split is not None:
            writers.append(collector.add)
        result = self._pass(options.imgsz, lambda image: [write(image) for write in writers])
        if split is not None:
            file = self.folder / f"{self.weights.stem}_predictions.json"
            write_and_evaluate(file, collector.gathered(Exchange()), split)
        return result

    def study(self) -> list[ValidationResult]:
        """Validate at each image size, and write YOLOv5's table: P, R, mAP50, mAP50-95, losses (0), times."""
        results: list[ValidationResult] = []
        # The weights of several runs may all be called `best`.
        earlier = [Path(path).stem for path in self.options.weights[: self.number]].count(self.weights.stem)
        name = f"study_{self.dataset.name}_{self.weights.stem}{earlier + 1 if earlier else ''}.txt"
        for size in STUDY_SIZES:
            LOG.info("\n%s at %d px", printable(self.weights), size)
            results.append(self._pass(size, None))
            # Written after each size, because a larger one may run out of memory.
            write_atomically(self.folder / name, "".join(map(_study_line, results)))
        return results

    def _pass(self, size: int, on_image: Callable[[ImageDetections], Any] | None) -> ValidationResult:
        options, speed = self.options, self.options.task == "speed"
        image_px = check_image_size(size, self.detector.stride)
        if image_px != size:
            LOG.info("--imgsz %d must be a multiple of the stride %d; using %d", size, self.detector.stride, image_px)
        plots = options.task not in ("speed", "study") and not options.noplots
        settings = ValidationSettings(
            conf_thres=0.25 if speed else options.conf_thres,
            iou_thres=0.45 if speed else options.iou_thres,
            max_det=options.max_det,
            single_cls=options.single_cls,
            label_hints=options.save_hybrid,
            plots_dir=self.folder if plots else None,
        )
        batches = BatchSettings(
            batch_size=min(options.batch_size, len(self.index)),
            image_px=image_px,
            workers=worker_threads(options.workers),
            device=self.device,
            stride=self.detector.stride,
        )
        pipeline = ValPipeline(self.index, batches, rect=not speed)
        try:
            warm_up(self.detector, pipeline, batches.batch_size, len(self.index))
            total = pipeline.batches_per_epoch
            LOG.info("%s", TABLE_HEADER)
            result = validate(self.detector, pipeline, self.index.class_names, settings, total=total, on_image=on_image)
        finally:
            pipeline.close()
        number = len(self.index.class_names)
        LOG.info("%s", result.table(per_class=(options.verbose or number < _LONG_TABLE) and number > 1))
        LOG.info("%s", result.speed_line())
        return result


def _study_line(result: ValidationResult) -> str:
    row = (*result.means, 0.0, 0.0, 0.0, result.speed.load, result.speed.inference, result.speed.suppression)
    return " ".join(f"{value:10.4g}" for value in row) + "\n"


def warm_up(detector: Detector, pipeline: ValPipeline, batch_size: int, images: int) -> None:
    """Compile the graphs of all input shapes before timing."""
    shapes = pipeline.shapes_hw
    sizes = [batch_size] * (len(shapes) - 1) + [images - batch_size * (len(shapes) - 1)]
    for size, (height, width) in dict.fromkeys(zip(sizes, shapes, strict=True)):
        detector(np.full((size, 3, height, width), BORDER_GREY, np.uint8))


def _draw_study(options: ValOptions, results: list[ValidationResult], folder: Path) -> None:
    from graph_train.plots.curves import plot_study

    count = len(STUDY_SIZES)
    curves = [results[number * count : (number + 1) * count] for number in range(len(options.weights))]
    points = {
        name: [(size, r.speed.inference, r.map50_95) for size, r in zip(STUDY_SIZES, part, strict=True)]
        for name, part in zip(_distinct_labels(options.weights), curves, strict=True)
    }
    plot_study(points, folder / "study.png")
    LOG.info("\nmAP50-95 against speed: %s", printable(folder / "study.png"))


def _distinct_labels(weights: Sequence[str]) -> list[str]:
    """Return the paths without their common folder."""
    if len(weights) == 1:
        return [Path(weights[0]).name]
    paths = [os.path.abspath(path) for path in weights]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, shared) for path in paths]
