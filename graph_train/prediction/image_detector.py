"""A detector that programs call with images; `graph-predict` uses it too."""

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from graph_train.detection.detector import load_detector, named_classes
from graph_train.detection.nms import NmsSettings, non_max_suppression
from graph_train.engine.precision import load_kernels
from graph_train.engine.schedule import check_image_size
from graph_train.host.devices import select_device
from graph_train.host.published_weights import located_weights
from graph_train.prediction.image_inputs import FileOrImage, OpenedImage, is_batch, open_image
from graph_train.prediction.image_result import ImageResult
from graph_train.settings.predict_options import DetectorOptions
from kernels.host.process_settings import require_unforked
from kernels.host.quantity import quantity
from models.network import DetectionModel
from pipelines.augmentation.letterbox import BORDER_GREY, unletterbox_boxes
from pipelines.batches import Batch
from pipelines.predict import PixelBatches, PredictSettings
from pipelines.settings import worker_threads

Array = npt.NDArray[Any]
LOG = logging.getLogger("graph_train")


@dataclass(frozen=True)
class BatchDetections:
    """Detections of each image of a batch, (k, 6) x1, y1, x2, y2 in px of its file, confidence, class, and timings."""

    rows: tuple[Array, ...]
    inference_seconds: float
    suppression_seconds: float


class ImageDetector:
    """A detector to call with an image or a list of images; a graph is compiled for each frequent input shape.

    It is thread-safe: concurrent calls are serialised. A pickled copy reads the weights again.

    Attributes:
        class_names: class names by class number.
        batches: settings of the batches.
    """

    def __init__(self, options: DetectorOptions) -> None:
        """Load the weights, without compiling yet.

        Raises:
            ValueError, OSError: a setting or a file is invalid.
        """
        self._options = options
        device = select_device(options.device)
        load_kernels(options.kernels, device)  # type: ignore[arg-type]
        self._graph = options.graph
        paths = [located_weights(path, allow_download=options.allow_download) for path in options.weights]
        self._detector = load_detector(paths, device=device, graph=options.graph, augment=options.augment)
        known = len(self._detector.class_names)
        self.class_names = tuple(named_classes(options.data, known) if options.data else self._detector.class_names)
        if options.classes is not None and max(options.classes) >= known:
            raise ValueError(
                f"--classes {max(options.classes)}: the weights have {quantity(known, 'class')}, numbered from 0"
            )
        self._suppression = NmsSettings(
            options.conf_thres,
            options.iou_thres,
            classes=options.classes,
            agnostic=options.agnostic_nms,
            max_det=options.max_det,
        )
        self.batches = PredictSettings(
            image_hw=_image_hw(options.imgsz, self._detector.stride),
            stride=self._detector.stride,
            batch_size=options.batch_size,
            workers=worker_threads(options.workers),
            device=device,
        )
        self._lock = threading.Lock()
        self._pixels: PixelBatches | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Reload the weights when unpickled in another process."""
        return type(self), (self._options,)

    @property
    def network(self) -> DetectionModel:
        """The network; of an ensemble, the first one."""
        return self._detector.networks[0]

    @overload
    def __call__(self, images: FileOrImage) -> ImageResult: ...

    @overload
    def __call__(self, images: Array) -> Any: ...  # one image if the array has three axes, several if it has four

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[ImageResult]: ...

    def __call__(self, images: Any) -> ImageResult | list[ImageResult]:
        """Detect objects.

        Args:
            images: an image or a list of images of any sizes. An image is a path, the bytes of an image file, a PIL
                image, or an array (h, w, 3) uint8 RGB. An array (B, h, w, 3) is a list of images.
        Returns:
            The result for one image, or a list of results in the order of the images.
        Raises:
            ValueError, OSError: an image is invalid (the message has its index) or too large for the memory, or the
                detector was loaded before this process was forked.
        """
        require_unforked()
        is_list = is_batch(images)
        opened = [
            open_image(image, number if is_list else None)
            for number, image in enumerate(images if is_list else [images])
        ]
        with self._lock:
            detections = self._detect_all(opened)
        results = [ImageResult(rows, image, self.class_names) for rows, image in zip(detections, opened, strict=True)]
        return results if is_list else results[0]

    def _detect_all(self, images: Sequence[OpenedImage]) -> list[Array]:
        if self._pixels is None:
            self._pixels = PixelBatches(self.batches)
        detections: list[Array] = [np.zeros((0, 6), np.float32)] * len(images)
        with contextlib.closing(self._pixels.batches([image.pixels for image in images])) as batches:
            for batch in batches:
                for number, rows in zip(batch.indices, self.detect(batch).rows, strict=True):
                    detections[int(number)] = rows
        return detections

    def detect(self, batch: Batch) -> BatchDetections:
        """Return the detections in a batch made with the settings `batches`; not thread-safe."""
        images = batch.images
        started = time.perf_counter()
        predictions = self._detector(images)[0]
        predicted = time.perf_counter()
        detections = non_max_suppression(predictions, self._suppression)
        suppressed = time.perf_counter()
        for rows, place in zip(detections, batch.geometry, strict=True):
            # As in YOLOv5, the ratio of the heights is used for both axes; that of the widths differs only by rounding.
            rows[:, :4] = unletterbox_boxes(
                rows[:, :4],
                from_hw=images.shape[2:],
                to_hw=place.original_hw,
                ratio_pad=(place.ratio_hw[0], place.pad_wh),
            )
        return BatchDetections(tuple(detections), predicted - started, suppressed - predicted)

    def warm_up(self, shapes: Mapping[tuple[int, int], int]) -> None:
        """Compile for input shapes, given as (height, width) in px -> batch size; does nothing unless `graph=True`."""
        if self._graph:
            for (height, width), count in shapes.items():
                self._detector(np.full((count, 3, height, width), BORDER_GREY, np.uint8))

    def close(self) -> None:
        """Stop the preprocessing threads; the next call restarts them."""
        with self._lock:
            if self._pixels is not None:
                self._pixels.close()
                self._pixels = None


def _image_hw(imgsz: tuple[int, ...], stride: int) -> tuple[int, int]:
    height, width = (check_image_size(side, stride) for side in (imgsz[0], imgsz[-1]))
    if (height, width) != (imgsz[0], imgsz[-1]):
        LOG.info("--imgsz must be a multiple of the stride %d; using %d x %d", stride, height, width)
    return height, width
