"""Conversion of the weights of convolutions and linear layers to the layout and type of activations.

All weights of a network are converted by one op, and their gradients by another.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor, flow


def pack_weights(weights: Sequence[Tensor], activation_type: ActivationType) -> list[Tensor]:
    """Reorder and round weights; their gradients have the original layout, in float32.

    Args:
        weights: at least one, float32 each: (O, I, KH, KW), or (O, I) of a linear layer.
        activation_type: data type of the results.
    Returns:
        (O, KH, KW, I) or (O, 1, 1, I) each, in the same order.
    """
    packed = _autograd_function(tuple(weight.ndim for weight in weights), activation_type).apply(*weights)
    return [packed] if len(weights) == 1 else list(packed)


@cache
def _autograd_function(axes: tuple[int, ...], activation_type: ActivationType) -> Any:
    count = len(axes)
    pack_op = dispatch.build_op("graph_train_pack_weights", (("weight", count),), outputs=count)
    unpack_op = dispatch.build_op("graph_train_unpack_weights", (("gradient", count),), outputs=count)

    class PackWeights(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, *weights: Tensor) -> Tensor | tuple[Tensor, ...]:
            packed = dispatch.call_many(pack_op, weights, integers=(int(activation_type),))
            return packed[0] if count == 1 else tuple(packed)

        @staticmethod
        def backward(context: Any, *gradients: Tensor) -> Tensor | tuple[Tensor, ...]:
            unpacked = dispatch.call_many(unpack_op, gradients, integers=axes)
            return unpacked[0] if count == 1 else tuple(unpacked)

    return PackWeights
