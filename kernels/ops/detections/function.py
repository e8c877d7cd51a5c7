"""From a head's raw maps to detections on the device: decoding and class-aware non-maximum suppression, an op each.

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
        stride: px per cell of each level, whole numbers.
    Returns:
        (B, N, 5 + classes) float32: centre x, centre y, width, height in px, then sigmoid confidences; N runs over
        levels, then anchors, rows, columns.
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
    """Choose the detections of each image, highest confidence first; equal confidences in the order of the predictions.

    Args:
        predictions: (B, N, 5 + classes) float32: centre x, centre y, width, height in px, objectness, class
            confidences, all after the sigmoid.
        confidence: what the objectness, and its product with the class confidence, must exceed; compared as float32.
        iou: a box goes when its IoU with a kept one is greater; compared as float32, so pass the largest float32 not
            above a float64 threshold.
        class_shift: px that the boxes of class c are moved c times, which keeps classes apart.
        multi_label: a box is a candidate with every class above the threshold, not just with its best one.
        agnostic: boxes of different classes suppress one another.
        max_det, max_candidates: how many detections of an image there may be, and how many candidates of highest
            confidence are looked at. With confidences that are not numbers the latter may be other ones than in NumPy.
        classes: only these class numbers; None: all.
    Returns:
        (B, max_det, 6) float32: x1, y1, x2, y2 in px, confidence, class; zeros behind the last one. And (B,) int32: how
        many there are.
    """
    op = dispatch.op_of("graph_train_suppress", "predictions", outputs=2)
    # An empty choice is a choice too: a number that no class has.
    wanted = [] if classes is None else [int(number) for number in classes] or [-1]
    integers = (int(multi_label), int(agnostic), max_det, max_candidates, *wanted)
    with flow.no_grad():
        detections, counts = dispatch.call_many(
            op, (predictions,), integers=integers, floats=(confidence, iou, class_shift)
        )
    return detections, counts
