"""Adding a bias to (B, H, W, C) activations, with SiLU behind it if asked."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor, flow


def add_bias(x: Tensor, bias: Tensor, *, silu: bool = False, to_float32: bool = False) -> Tensor:
    """Add a number to each channel.

    Args:
        x: (B, H, W, C) activation.
        bias: (C,) float32.
        silu: apply SiLU to the sum; without a gradient, for networks whose BatchNorm is folded into convolutions.
        to_float32: give the sums in float32, unrounded, instead of the type of x.
    Raises:
        ValueError: `silu` where a gradient is required.
    """
    if silu and flow.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        raise ValueError("add_bias with silu has no gradient: use batch_norm with silu, or apply SiLU apart")
    return _function(ActivationType.of(x.dtype), silu, to_float32).apply(x, bias)


@cache
def _function(kind: ActivationType, silu: bool, to_float32: bool) -> Any:
    forward_op = dispatch.op_of("graph_train_add_bias", "x", "bias")
    backward_op = dispatch.op_of("graph_train_add_bias_grad", "dy", outputs=2)

    class AddBias(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, bias: Tensor) -> Tensor:
            return dispatch.call(forward_op, (x, bias), integers=(int(to_float32), int(silu)))

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Sequence[Tensor]:
            return tuple(dispatch.call_many(backward_op, (gradient,), integers=(int(kind),)))

    return AddBias
