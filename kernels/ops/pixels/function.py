"""Images as the first activation of a network."""

from functools import cache

from kernels.framework import dispatch
from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor


def pixels(images: Tensor, activation_type: ActivationType) -> Tensor:
    """Turn images (B, C, H, W) uint8 into (B, H, W, C) of a data type, divided by 255 in float32; no gradient."""
    return dispatch.call(_op(), (images,), integers=(int(activation_type),))


@cache
def _op() -> dispatch.Op:
    return dispatch.op_of("graph_train_pixels", "images")
