"""Elementwise activation functions other than SiLU, which is fused into `batch_norm` and `add_bias`.

Values and gradients are float32, bfloat16 or (on CUDA) float16; arithmetic is in float32. The references are the
`oneflow.nn` modules of the same names.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow

FUNCTIONS = ("ReLU", "ReLU6", "LeakyReLU", "ELU", "Hardswish", "Mish", "GELU", "Sigmoid", "Tanh")
"""Functions in the order of `ActivationKind` in `activation_function.h`; GELU is the exact one."""


def activate(x: Tensor, function: str, parameter: float = 0.0) -> Tensor:
    """Apply an activation function elementwise.

    Args:
        x: activation of any shape.
        function: one of `FUNCTIONS`.
        parameter: negative slope of LeakyReLU or alpha of ELU; ignored by others.
    Returns:
        The shape and type of x.
    Raises:
        ValueError: unknown function.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"activation function {function}: must be one of {', '.join(FUNCTIONS)}")
    return _autograd_function(FUNCTIONS.index(function), float(parameter)).apply(x)


@cache
def _autograd_function(kind: int, parameter: float) -> Any:
    forward_op = dispatch.op_of("graph_train_activate", "x")
    backward_op = dispatch.op_of("graph_train_activate_grad", "dy", "x")
    attributes: dict[str, Sequence[Any]] = {"integers": (kind,), "floats": (parameter,)}

    class Activate(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            context.save_for_backward(x)
            return dispatch.call(forward_op, (x,), **attributes)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            (x,) = context.saved_tensors
            return dispatch.call(backward_op, (gradient, x), **attributes)

    return Activate
