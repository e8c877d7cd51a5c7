"""Conversion of images to the first activation of a network."""

from kernels.framework import dispatch
from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor


def pixels(images: Tensor, activation_type: ActivationType) -> Tensor:
    """Scale pixels to [0, 1] and move channels last.

    Args:
        images: (B, 3, H, W) uint8, or scaled float32.
        activation_type: data type of the result.
    Returns:
        (B, H, W, 3): uint8 / 255, rounded to float32, or the float32 value; then rounded to the type. No gradient.
    """
    op = dispatch.op_of("graph_train_pixels", "images")
    return dispatch.call(op, (images,), integers=(int(activation_type),))
