"""Weights of all convolutions rearranged and rounded at once, as cuDNN's kernels for tensor cores want them.

On a CPU convolutions take weights as they are, so these ops have CUDA kernels only.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor, flow


def pack_weights(weights: Sequence[Tensor], activation_type: ActivationType) -> list[Tensor]:
    """Rearrange weights (O, I, KH, KW) float32 to (O, KH, KW, I) of a data type: one launch, and one for the gradients.

    Args:
        weights: at least one; those of frozen layers get no gradient.
        activation_type: data type of the result, and of the gradients that come back.
    """
    trained = tuple(bool(weight.requires_grad) for weight in weights)
    packed = _function(activation_type, trained).apply(*weights)
    return list(packed) if isinstance(packed, Sequence | flow._oneflow_internal.TensorTuple) else [packed]


@cache
def _function(activation_type: ActivationType, trained: tuple[bool, ...]) -> Any:
    count = len(trained)
    forward_op = dispatch.build_op("graph_train_pack_weights", (("weight", count),), outputs=count)

    class PackWeights(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, *weights: Tensor) -> tuple[Tensor, ...] | Tensor:
            packed = dispatch.call_many(forward_op, weights, integers=(int(activation_type),))
            return tuple(packed) if count > 1 else packed[0]

        @staticmethod
        def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...] | Tensor:
            wanted = [gradient for gradient, needed in zip(gradients, trained, strict=True) if needed]
            backward_op = dispatch.build_op(
                "graph_train_unpack_weights", (("gradient", len(wanted)),), outputs=len(wanted)
            )
            plain = iter(dispatch.call_many(backward_op, wanted))
            unpacked = tuple(next(plain) if needed else None for needed in trained)
            return unpacked if count > 1 else unpacked[0]

    return PackWeights
