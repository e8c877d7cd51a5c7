"""The bias of a convolution on (B, H, W, C) activations, with SiLU behind it if asked."""

from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor, flow


def add_bias(x: Tensor, bias: Tensor, *, silu: bool = False, to_float32: bool = False) -> Tensor:
    """Add a bias to each channel.

    Args:
        x: (B, H, W, C) activation.
        bias: (C,) float32.
        silu: apply SiLU to the sum; without gradients.
        to_float32: return float32, else the data type of x. With a gradient it must be float32.
    Raises:
        ValueError: a gradient is asked for where there is none.
    """
    if not (flow.is_grad_enabled() and (x.requires_grad or bias.requires_grad)):
        return dispatch.call(_op(), (x, bias), integers=(int(to_float32), int(silu)))
    kind = ActivationType.of(x.dtype)
    if silu or not (to_float32 or kind is ActivationType.FLOAT32):
        raise ValueError("add_bias: gradients exist for a float32 sum without SiLU only")
    return _function(kind).apply(x, bias)


@cache
def _op() -> dispatch.Op:
    return dispatch.op_of("graph_train_add_bias", "x", "bias")


@cache
def _function(kind: ActivationType) -> Any:
    backward_op = dispatch.op_of("graph_train_add_bias_grad", "dy", outputs=2)

    class AddBias(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, bias: Tensor) -> Tensor:
            return dispatch.call(_op(), (x, bias), integers=(1, 0))

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            dx, d_bias = dispatch.call_many(backward_op, (gradient,), integers=(int(kind),))
            return dx, d_bias

    return AddBias
