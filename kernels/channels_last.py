"""Layers on (B, H, W, C) activations on the CPU, through the plugin's own ops; weights keep YOLOv5's shapes.

Activations are float32 or bfloat16, and so are their gradients; all else is float32, as are sums. Convolutions compute
fastest on this layout, and BatchNorm with SiLU behind it is one pass. Each function needs the plugin
(`kernels.plugin.is_loaded()`); the reference is what OneFlow computes on ordinary (B, C, H, W) tensors.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

from kernels import dispatch
from kernels.runtime import Tensor, flow


@dataclass(frozen=True)
class ConvolutionGeometry:
    """Rows and columns of each: stride, zero padding on both sides, dilation; and the number of groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def floats(self) -> tuple[float, ...]:
        """In the order that the ops read them."""
        stride, padding, dilation, groups = astuple(self)
        return tuple(float(value) for value in (*stride, *padding, *dilation, groups))


def convolution(x: Tensor, weight: Tensor, geometry: ConvolutionGeometry) -> Tensor:
    """(B, H, W, I), weight (O, I / groups, KH, KW) float32 -> (B, H', W', O)."""
    return _convolution_function(geometry, x.requires_grad).apply(x, weight)


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    *,
    eps: float,
    momentum: float,
    training: bool,
    silu: bool,
) -> Tensor:
    """BatchNorm over the last axis of (B, H, W, C), followed by SiLU if asked.

    Args:
        gamma, beta, running_mean, running_variance: (C,); in training the running ones are updated, in graphs too.
        momentum: share of the new value in the running statistics, as PyTorch counts it.
        training: normalise by the batch's statistics, else by the running ones.
    """
    with flow.no_grad():
        statistics = dispatch.call(
            dispatch.build_op("graph_train_statistics", (("x", 1), ("moving_mean", 1), ("moving_variance", 1))),
            (x, running_mean, running_variance),
            integers=(int(training), 0),
            floats=(eps, momentum),
        )
    return _normalise_function(silu, training).apply(x, gamma, beta, statistics)


def magnify(x: Tensor, factor: int) -> Tensor:
    """Nearest-neighbour magnification: (B, H, W, C) -> (B, H * factor, W * factor, C)."""
    return _magnify_function(factor).apply(x)


def max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Largest value of each window of (B, H, W, C) float32; padding never wins."""
    return flow._C.max_pool2d(
        x,
        kernel_size=[kernel, kernel],
        stride=[stride, stride],
        padding=[padding, padding],
        dilation=[1, 1],
        return_indices=True,  # without them OneFlow takes another op, which gives ties the gradient several times
        ceil_mode=False,
        data_format="channels_last",
    )[0]


def _op(name: str, *inputs: str) -> dispatch.Op:
    return dispatch.build_op(name, tuple((name, 1) for name in inputs))


@cache
def _convolution_function(geometry: ConvolutionGeometry, needs_input_gradient: bool) -> Any:
    forward_op = _op("graph_train_convolution", "x", "weight")
    data_op = _op("graph_train_convolution_data_grad", "dy", "weight", "x")
    filter_op = _op("graph_train_convolution_filter_grad", "dy", "x", "weight")
    floats = geometry.floats

    class Convolution(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
            context.save_for_backward(x, weight)
            return dispatch.call(forward_op, (x, weight), floats=floats)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Sequence[Tensor | None]:
            x, weight = context.saved_tensors
            dx = dispatch.call(data_op, (gradient, weight, x), floats=floats) if needs_input_gradient else None
            return dx, dispatch.call(filter_op, (gradient, x, weight), floats=floats)

    return Convolution


@cache
def _normalise_function(silu: bool, training: bool) -> Any:
    forward_op = _op("graph_train_normalise", "x", "statistics", "gamma", "beta")
    sums_op = _op("graph_train_normalise_sums", "dy", "x", "statistics", "gamma", "beta")
    gradient_op = _op("graph_train_normalise_grad", "dy", "x", "statistics", "gamma", "beta", "sums")
    halves_op = dispatch.build_op("graph_train_halves", (("in", 1), ("like", 1)), outputs=2)
    integers = (int(silu), int(training))

    class Normalise(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, gamma: Tensor, beta: Tensor, statistics: Tensor) -> Tensor:
            context.save_for_backward(x, gamma, beta, statistics)
            return dispatch.call(forward_op, (x, statistics, gamma, beta), integers=integers)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Sequence[Tensor | None]:
            x, gamma, beta, statistics = context.saved_tensors
            sums = dispatch.call(sums_op, (gradient, x, statistics, gamma, beta), integers=integers)
            dx = dispatch.call(gradient_op, (gradient, x, statistics, gamma, beta, sums), integers=integers)
            beta_diff, gamma_diff = dispatch.call_pair(halves_op, sums, gamma)
            return dx, gamma_diff, beta_diff, None

    return Normalise


@cache
def _magnify_function(factor: int) -> Any:
    forward_op, backward_op = _op("graph_train_magnify", "in"), _op("graph_train_magnify_grad", "in")

    class Magnify(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return dispatch.call(forward_op, (x,), integers=(factor, 0))

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return dispatch.call(backward_op, (gradient,), integers=(factor, 0))

    return Magnify
