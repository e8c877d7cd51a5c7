"""Test-time augmentation: rendering of views and joining of their predictions, one op each, without gradients.

Reference: `scaled` and `back_to_image` of `graph_train.detection.augmented_views`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


def augmented_view(
    images: Tensor, scaled_size: tuple[int, int], size: tuple[int, int], *, mirrored: bool, border: float
) -> Tensor:
    """Flip images horizontally if requested, scale them bilinearly, and pad them right and below.

    Args:
        images: (B, C, H, W) uint8.
        scaled_size: height and width after scaling, with `align_corners=False`.
        size: height and width of the result, not smaller.
        mirrored: whether to flip horizontally.
        border: value of the border, in [0, 1].
    Returns:
        (B, C, *size) float32 in [0, 1].
    """
    op = dispatch.op_of("graph_train_augmented_view", "images")
    with flow.no_grad():
        return dispatch.call(op, (images,), integers=(*scaled_size, *size, int(mirrored)), floats=(border,))


@dataclass(frozen=True)
class ViewRows:
    """The range of a view's predictions to keep, and the view's scale and flip."""

    first: int
    kept: int
    scale: float
    mirrored: bool


def join_views(predictions: Sequence[Tensor], rows: Sequence[ViewRows], width_px: int) -> Tensor:
    """Join the predictions of several views, in px of the image.

    Args:
        predictions: per view (B, N, 5 + classes) float32: centre x, centre y, width, height in px of the view,
            confidences.
        rows: range to keep of each view.
        width_px: image width, to undo the flip.
    Returns:
        (B, sum of kept rows, 5 + classes) float32.
    """
    op = dispatch.build_op("graph_train_join_views", (("rows", len(predictions)),))
    integers = [number for own in rows for number in (own.first, own.kept, int(own.mirrored))]
    with flow.no_grad():
        return dispatch.call(op, predictions, integers=(width_px, *integers), floats=[own.scale for own in rows])
