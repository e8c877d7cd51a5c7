"""Images as the first activation of a network."""

from kernels.framework import dispatch
from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor


def pixels(images: Tensor, activation_type: ActivationType) -> Tensor:
    """Return the scale pixels to [0, 1] and put channels last.

    Args:
        images: (B, 3, H, W) uint8.
        activation_type: data type of the result.
    Returns:
        (B, H, W, 3): value / 255, rounded to float32 and then to the type; without a gradient.
    """
    op = dispatch.op_of("graph_train_pixels", "images")
    return dispatch.call(op, (images,), integers=(int(activation_type),))
