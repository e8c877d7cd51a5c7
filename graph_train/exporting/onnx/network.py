"""Conversion of a network to an ONNX model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, TensorProto, helper

from graph_train.detection.nms import NmsSettings
from graph_train.exporting.onnx.blocks import write_module
from graph_train.exporting.onnx.head import write_decoding, write_suppression
from graph_train.exporting.onnx.writer import GraphWriter
from models.network import DetectionModel

INPUT, PREDICTIONS = "images", "output0"
"""Input and output names as in YOLOv5's exports."""
COUNTS, DETECTIONS = "num_detections", "detections"


@dataclass(frozen=True)
class OnnxSettings:
    """Settings of an ONNX model.

    Attributes:
        image_hw: height and width in px, multiples of the largest stride.
        dynamic: dynamic batch and image size; then the given sizes are only used for verification.
        suppression: settings of NMS; None outputs the predictions.
    """

    batch_size: int
    image_hw: tuple[int, int]
    dynamic: bool
    opset: int
    suppression: NmsSettings | None


def build_onnx(network: DetectionModel, settings: OnnxSettings, *, keep_predictions: bool = False) -> ModelProto:
    """Convert a network in evaluation mode to ONNX.

    The input is `images` (B, 3, H, W) float32 RGB in [0, 1]. The output is `output0` (B, N, 5 + classes) float32, see
    `DetectionModel.decode`; or, with NMS, `num_detections` (B,) int64 and `detections` (B, K, 6) float32, see
    `write_suppression`.

    Args:
        keep_predictions: whether to output `output0` in addition to the detections.
    Raises:
        ValueError: a block or the opset is not supported, or the network is too large.
    """
    writer = GraphWriter(settings.opset)
    predictions = _write_layers(writer, network, settings)
    head, dynamic = network.head, settings.dynamic
    cells = sum(rows * columns for rows, columns in _cells(network, settings))
    boxes = None if dynamic else head.anchors_per_level * cells
    batch: int | str = "batch" if dynamic else settings.batch_size
    outputs = []
    if settings.suppression is None or keep_predictions:
        writer.add("Identity", [predictions], PREDICTIONS)
        shape = [batch, boxes or "anchors", head.num_classes + 5]
        outputs.append(helper.make_tensor_value_info(PREDICTIONS, TensorProto.FLOAT, shape))
    if settings.suppression is not None:
        with writer.scope("nms"):
            counts, found = write_suppression(
                writer, predictions, settings.suppression, classes=head.num_classes, boxes=boxes
            )
        writer.add("Identity", [counts], COUNTS)
        writer.add("Identity", [found], DETECTIONS)
        rows = min(settings.suppression.max_det, boxes) if boxes else "detections_per_image"
        outputs.append(helper.make_tensor_value_info(COUNTS, TensorProto.INT64, [batch]))
        outputs.append(helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, [batch, rows, 6]))
    sides: list[Any] = ["height", "width"] if dynamic else list(settings.image_hw)
    images = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, network.spec.channels, *sides])
    return writer.model([images], outputs, _metadata(network, settings))


def _write_layers(writer: GraphWriter, network: DetectionModel, settings: OnnxSettings) -> str:
    made: dict[int, str] = {-1: INPUT}
    for layer, module in zip(network.spec.layers, network.model, strict=True):
        sources = [made[index] for index in layer.inputs]
        name = f"model.{layer.index}"
        if layer.kind == "Detect":
            cells = None if settings.dynamic else _cells(network, settings)
            with writer.scope(name):
                return write_decoding(writer, module, sources, cells)
        made[layer.index] = write_module(writer, module, sources if layer.kind == "Concat" else sources[0], name)
    raise AssertionError("the last layer must be the head")


def _cells(network: DetectionModel, settings: OnnxSettings) -> Sequence[tuple[int, int]]:
    height, width = settings.image_hw
    return [(height // stride, width // stride) for stride in network.stride]


def _metadata(network: DetectionModel, settings: OnnxSettings) -> dict[str, str]:
    """Return the metadata: `stride` and `names` in YOLOv5's format, and the settings."""
    entries: dict[str, Any] = {
        "stride": network.spec.coarsest_stride,
        "names": dict(enumerate(network.names)),
        "imgsz": list(settings.image_hw),
        "batch": "dynamic" if settings.dynamic else settings.batch_size,
    }
    if settings.suppression is not None:
        chosen = settings.suppression
        entries |= {"conf_thres": chosen.conf_thres, "iou_thres": chosen.iou_thres, "max_det": chosen.max_det}
        entries["agnostic_nms"] = chosen.agnostic
    return {key: str(value) for key, value in entries.items()}
