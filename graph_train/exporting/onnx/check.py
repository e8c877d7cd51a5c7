"""Verification of an ONNX model: compare onnxruntime's results with the network's."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, checker

from graph_train.detection.inference import Inference
from graph_train.detection.nms import NmsSettings, non_max_suppression
from graph_train.exporting.onnx.network import COUNTS, DETECTIONS, INPUT, PREDICTIONS, OnnxSettings, build_onnx
from models.layout import PIXEL_SCALE
from models.network import DetectionModel

Array = npt.NDArray[Any]

TOLERANCE = 1e-4
"""Largest difference allowed, see `largest_difference`: rounding gives some 1e-6, half a pixel of an image 1e-3."""
_CANDIDATES = 400
_NO_LABELS = np.zeros((0, 6), np.float32)


class OnnxSession:
    """An ONNX model in onnxruntime on the CPU."""

    def __init__(self, model: ModelProto | str) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        content = model if isinstance(model, str) else model.SerializeToString()
        self._session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: Array) -> dict[str, Array]:
        """Return outputs by name for (B, 3, H, W) uint8 RGB."""
        return self.run_scaled(images.astype(np.float32) / np.float32(PIXEL_SCALE))

    def run_scaled(self, scaled: Array) -> dict[str, Array]:
        """Return outputs by name for (B, 3, H, W) float32 RGB in [0, 1]."""
        return dict(zip(self.outputs, self._session.run(None, {INPUT: scaled}), strict=True))


def check_onnx(model: ModelProto, network: DetectionModel, settings: OnnxSettings, *, graph: bool = True) -> float:
    """Compare predictions and, for a model with NMS, detections on noise images.

    Args:
        model: the result of `build_onnx` for the network and the settings.
        graph: whether to run the network as a compiled graph.
    Returns:
        The largest difference of the predictions, see `TOLERANCE`.
    Raises:
        RuntimeError: the difference is too large, or NMS keeps different boxes.
    """
    checker.check_model(model)
    # A model with NMS has no predictions among its outputs, so a variant with the same weights is compared.
    raw = OnnxSession(model if settings.suppression is None else build_onnx(network, settings, keep_predictions=True))
    own = Inference(network, graph=graph)
    worst, predictions = 0.0, np.zeros((0, 0, 0), np.float32)
    for images in _noise(network, settings):
        expected, predictions = own(images, _NO_LABELS)[0], raw(images)[PREDICTIONS]
        worst = max(worst, largest_difference(predictions, expected))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"onnxruntime's results differ from the network's by {worst:.2g} (tolerance {TOLERANCE:g})")
    if settings.suppression is not None:
        _check_suppression(network, settings, settings.suppression, predictions)
    return worst


def largest_difference(values: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest magnitude in its column or 1, whichever is larger.

    Rounding errors grow with the size of the image, not with single coordinates: those of a box at the left border are
    as large as any other's.

    Args:
        values: (..., columns), coordinates in px and confidences.
        expected: of the same shape.
    Returns:
        The difference; infinite if shapes differ or a value is not finite.
    """
    if values.shape != expected.shape or not (np.isfinite(values).all() and np.isfinite(expected).all()):
        return float("inf")
    columns = tuple(range(expected.ndim - 1))
    scale = np.abs(expected).max(axis=columns, initial=1.0)
    return float((np.abs(values.astype(np.float64) - expected) / scale).max(initial=0.0))


def _noise(network: DetectionModel, settings: OnnxSettings) -> list[Array]:
    """Return noise images of the model's input size; for a dynamic model, also a batch of another size."""
    shapes = [(settings.batch_size, *settings.image_hw)]
    if settings.dynamic:
        stride = network.spec.coarsest_stride
        height, width = (max(stride, side // 2 // stride * stride) for side in settings.image_hw)
        shapes.append((2, height, width + stride))
    random = np.random.default_rng(0)
    channels = network.spec.channels
    return [random.integers(0, 256, (batch, channels, *side), dtype=np.uint8) for batch, *side in shapes]


def _check_suppression(
    network: DetectionModel, settings: OnnxSettings, suppression: NmsSettings, predictions: Array
) -> None:
    """Compare the model's NMS with our own, at a confidence threshold low enough for boxes in noise."""
    confidences = (predictions[..., 5:] * predictions[..., 4:5]).max(axis=2)
    rank = min(_CANDIDATES, confidences.shape[1]) - 1
    low = float(np.sort(confidences, axis=1)[:, ::-1][:, rank].min())
    lowered = replace(suppression, conf_thres=min(max(low, 0.0), suppression.conf_thres))
    session = OnnxSession(build_onnx(network, replace(settings, suppression=lowered), keep_predictions=True))
    found = session(_noise(network, settings)[-1])
    expected = non_max_suppression(found[PREDICTIONS], lowered)
    for image, rows in enumerate(expected):
        count = int(found[COUNTS][image])
        if count != len(rows) or largest_difference(found[DETECTIONS][image, :count], rows) > TOLERANCE:
            raise RuntimeError(f"onnxruntime's NMS keeps {count} boxes, ours {len(rows)}, or different ones")
