"""Decoding of raw maps and class-aware non-maximum suppression on the device, one op each.

References: `Detect.decode` of `models.head`; `graph_train.detection.nms` and `suppression`.
"""

from collections.abc import Sequence

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


def decode_maps(maps: Sequence[Tensor], anchors_cells: Tensor, stride: Sequence[int]) -> Tensor:
    """Decode raw maps into boxes; without gradients.

    Args:
        maps: per level (B, rows, columns, anchors * (5 + classes)) float32.
        anchors_cells: (levels, anchors, 2) float32, width and height in cells of the level.
        stride: px per cell of each level, integers.
    Returns:
        (B, N, 5 + classes) float32: centre x, centre y, width, height in px, then sigmoid confidences; N is ordered by
        level, anchor, row, column.
    """
    op = dispatch.build_op("graph_train_decode", (("map", len(maps)), ("anchors_cells", 1)))
    with flow.no_grad():
        return dispatch.call(op, (*maps, anchors_cells), integers=[int(pixels) for pixels in stride])


def suppress_detections(
    predictions: Tensor,
    *,
    confidence: float,
    iou: float,
    class_shift: float,
    multi_label: bool,
    agnostic: bool,
    max_det: int,
    max_candidates: int,
    classes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run NMS per image, in order of descending confidence; equal confidences keep the order of predictions.

    Args:
        predictions: (B, N, 5 + classes) float32: centre x, centre y, width, height in px, objectness, class
            confidences, all after the sigmoid.
        confidence: threshold that objectness and its product with the class confidence must exceed, in float32.
        iou: boxes with a greater IoU with a kept box are removed; in float32, so pass the largest float32 not above a
            float64 threshold.
        class_shift: px by which boxes are offset per class index, so that classes do not overlap.
        multi_label: a box is a candidate for every class above the threshold, not only for its best one.
        agnostic: boxes of different classes suppress each other.
        max_det, max_candidates: maximum detections per image, and maximum candidates, of highest confidence. With NaN
            confidences the candidates may differ from NumPy's.
        classes: class indices to keep; None: all.
    Returns:
        (B, max_det, 6) float32: x1, y1, x2, y2 in px, confidence, class; padded with zeros. And (B,) int32: their
        number.
    """
    op = dispatch.op_of("graph_train_suppress", "predictions", outputs=2)
    # An empty list selects nothing: pass an index that no class has.
    selected = [] if classes is None else [int(number) for number in classes] or [-1]
    integers = (int(multi_label), int(agnostic), max_det, max_candidates, *selected)
    with flow.no_grad():
        detections, counts = dispatch.call_many(
            op, (predictions,), integers=integers, floats=(confidence, iou, class_shift)
        )
    return detections, counts
