"""The head of an ONNX model: decoding of the raw maps, and NMS."""

from collections.abc import Sequence

import numpy as np

from graph_train.detection.nms import CLASS_SHIFT_PX, NmsSettings
from graph_train.exporting.onnx.writer import GraphWriter
from models.head import Detect

CellSize = tuple[int, int]
"""Number of rows and columns of a level."""


def write_decoding(writer: GraphWriter, head: Detect, features: Sequence[str], cells: Sequence[CellSize] | None) -> str:
    """Add the head, equivalent to `Detect.forward` and `Detect.decode`.

    Args:
        features: output tensor of each level.
        cells: size of each level, or None for a dynamic image size.
    Returns:
        Name of the predictions (B, N, 5 + classes).
    """
    levels = []
    outputs, anchors = head.num_classes + 5, head.anchors_per_level
    for level, feature in enumerate(features):
        with writer.scope(f"level{level}"):
            weight, bias = head.m[level].weight.numpy(), head.m[level].bias.numpy()
            given = [feature, writer.constant(weight, "weight"), writer.constant(bias, "bias")]
            raw = writer.add("Conv", given, "raw", kernel_shape=[1, 1])
            split = writer.reshaped(raw, [0, anchors, outputs, -1], "by_anchor")
            rows = writer.add("Sigmoid", [writer.add("Transpose", [split], "rows", perm=[0, 1, 3, 2])], "sigmoid")
            corner = _fixed_corner(writer, cells[level]) if cells else _computed_corner(writer, raw)
            decoded = _decoded(writer, rows, corner, head, level)
            levels.append(writer.reshaped(decoded, [0, -1, outputs], "boxes"))
    return writer.add("Concat", levels, "predictions", axis=1) if len(levels) > 1 else levels[0]


def _decoded(writer: GraphWriter, rows: str, corner: str, head: Detect, level: int) -> str:
    """Convert values (B, anchors, cells, 5 + classes) after the sigmoid to boxes in px and confidences."""
    two, stride = writer.constant(2.0, "two"), writer.constant(head.stride[level], "stride")
    sides_px = (head.anchors.numpy()[level] * np.float32(head.stride[level])).reshape(1, -1, 1, 2)
    xy = writer.add("Mul", [writer.part(rows, "xy", axis=3, start=0, end=2), two], "xy_doubled")
    xy = writer.add("Mul", [writer.add("Add", [xy, corner], "xy_cells"), stride], "xy_px")
    wh = writer.add("Mul", [writer.part(rows, "wh", axis=3, start=2, end=4), two], "wh_doubled")
    wh = writer.add("Mul", [writer.add("Mul", [wh, wh], "wh_squared"), writer.constant(sides_px, "anchors")], "wh_px")
    confidences = writer.part(rows, "confidences", axis=3, start=4, end=head.num_classes + 5)
    return writer.add("Concat", [xy, wh, confidences], "decoded", axis=3)


def _fixed_corner(writer: GraphWriter, cells: CellSize) -> str:
    """Return cell corners minus one half (1, 1, cells, 2): column, row."""
    y, x = np.meshgrid(np.arange(cells[0]), np.arange(cells[1]), indexing="ij")
    grid = np.stack((x, y), axis=-1).reshape(1, 1, -1, 2).astype(np.float32)
    return writer.constant(grid - np.float32(0.5), "corner")


def _computed_corner(writer: GraphWriter, raw: str) -> str:
    """Return the cell corners minus one half for a dynamic image size."""
    size = writer.part(writer.add("Shape", [raw], "shape"), "size", axis=0, start=2, end=4)
    zero, one = writer.constant(0.0, "zero"), writer.constant(1.0, "one")
    axes = []
    for axis, (name, shape) in enumerate((("y", [-1, 1]), ("x", [1, -1]))):
        side = writer.part(size, f"{name}_side", axis=0, start=axis, end=axis + 1)
        limit = writer.add("Cast", [writer.reshaped(side, [], f"{name}_count")], f"{name}_limit", to=_FLOAT)
        line = writer.reshaped(writer.add("Range", [zero, limit, one], f"{name}_line"), shape, f"{name}_axis")
        axes.append(writer.reshaped(writer.add("Expand", [line, size], f"{name}_grid"), [1, 1, -1, 1], name))
    grid = writer.add("Concat", [axes[1], axes[0]], "grid", axis=3)
    return writer.add("Sub", [grid, writer.constant(0.5, "half")], "corner")


_FLOAT, _INT64 = 1, 7
"""ONNX's data type codes."""


def write_suppression(
    writer: GraphWriter, predictions: str, settings: NmsSettings, *, classes: int, boxes: int | None
) -> tuple[str, str]:
    """Add NMS as in `graph_train.detection.nms`, without `multi_label`, `classes` and `max_candidates`.

    Args:
        predictions: name of the predictions.
        classes: number of classes.
        boxes: number of predictions N, or None for a dynamic image size.
    Returns:
        Names of the counts (B,) int64 and the detections (B, K, 6) float32: x1, y1, x2, y2 in px, confidence, class;
        sorted by decreasing confidence and padded with zeros. K is the smaller of `max_det` and N.
    """
    corners, confidence, category = _candidates(writer, predictions, classes)
    as_number = writer.add("Cast", [category], "class", to=_FLOAT)
    shifted = corners
    if not settings.agnostic:
        shift = writer.add("Mul", [as_number, writer.constant(CLASS_SHIFT_PX, "class_shift")], "shift")
        shifted = writer.add("Add", [corners, shift], "apart")
    scores = writer.add("Transpose", [confidence], "scores", perm=[0, 2, 1])
    limits = [
        writer.constant([settings.max_det], "max_det", np.int64),
        writer.constant([settings.iou_thres], "iou_thres"),
        writer.constant([settings.conf_thres], "conf_thres"),
    ]
    chosen = writer.add("NonMaxSuppression", [shifted, scores, *limits], "chosen")
    place = writer.part(chosen, "place", axis=1, start=0, end=3, step=2)
    by_box = writer.reshaped(confidence, [0, -1], "by_box")
    nothing = writer.add("Mul", [by_box, writer.constant(0.0, "zero")], "nothing")
    kept = writer.add("GatherND", [by_box, place], "kept")
    kept_scores = writer.add("ScatterND", [nothing, place, kept], "kept_scores")
    count = _number_of_rows(writer, predictions, settings.max_det, boxes)
    best, rows = writer.add_many("TopK", [kept_scores, count], ["best", "rows"], axis=1)
    rows = writer.reshaped(rows, [0, -1, 1], "row_numbers")
    columns = [
        writer.add("GatherND", [corners, rows], "best_corners", batch_dims=1),
        writer.reshaped(best, [0, -1, 1], "best_confidence"),
        writer.add("GatherND", [as_number, rows], "best_class", batch_dims=1),
    ]
    found = writer.add("Greater", [columns[1], writer.constant(0.0, "zero")], "found")
    found_1 = writer.add("Cast", [found], "found_1", to=_FLOAT)
    detections = writer.add("Mul", [writer.add("Concat", columns, "columns", axis=2), found_1], "all_detections")
    counted = writer.summed(writer.reshaped(found_1, [0, -1], "found_rows"), 1, "counted")
    return writer.add("Cast", [counted], "count", to=_INT64), detections


def _candidates(writer: GraphWriter, predictions: str, classes: int) -> tuple[str, str, str]:
    """Return corners (B, N, 4), confidence (B, N, 1) and class (B, N, 1) of each box's best class."""
    centre = writer.part(predictions, "centre", axis=2, start=0, end=2)
    half = writer.add(
        "Div", [writer.part(predictions, "sides", axis=2, start=2, end=4), writer.constant(2.0, "two")], "half_sides"
    )
    ends = [writer.add("Sub", [centre, half], "low"), writer.add("Add", [centre, half], "high")]
    corners = writer.add("Concat", ends, "corners", axis=2)
    objectness = writer.part(predictions, "objectness", axis=2, start=4, end=5)
    scores = writer.part(predictions, "class_scores", axis=2, start=5, end=5 + classes)
    joint = writer.add("Mul", [scores, objectness], "joint")
    confidence, category = writer.add_many("TopK", [joint, writer.integers([1])], ["confidence", "category"], axis=2)
    return corners, confidence, category


def _number_of_rows(writer: GraphWriter, predictions: str, max_det: int, boxes: int | None) -> str:
    if boxes is not None:
        return writer.integers([min(max_det, boxes)])
    box_count = writer.part(writer.add("Shape", [predictions], "shape"), "boxes", axis=0, start=1, end=2)
    return writer.add("Min", [box_count, writer.integers([max_det])], "row_count")
