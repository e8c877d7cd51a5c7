"""BatchNorm with optional SiLU on (B, H, W, C) activations, with one op each for forward and backward.

Activations and their gradients are float32, bfloat16 or (on CUDA) float16; per-channel tensors are float32. The
reference is `oneflow.nn.functional`'s BatchNorm on (B, C, H, W) tensors.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.framework.global_rows import replicated
from kernels.runtime import Tensor, flow


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
    """Normalise each channel of (B, H, W, C).

    Args:
        x: (B, H, W, C) activation.
        gamma, beta, running_mean, running_variance: (C,) float32. Training updates the running statistics, with the
            unbiased variance, also in graphs; channels with non-finite statistics are skipped.
        eps: added to the variance.
        momentum: weight of the new value in the running statistics, as in PyTorch.
        training: normalise by batch statistics, otherwise by the running ones.
        silu: apply SiLU to the result.
    Returns:
        The shape and type of x.
    Source: arXiv:1502.03167.
    """
    function = _autograd_function(training, silu, float(eps), float(momentum))
    return function.apply(x, gamma, beta, running_mean, running_variance)


def synchronised_batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    *,
    eps: float,
    momentum: float,
    silu: bool,
) -> Tensor:
    """Apply `batch_norm` in training mode with statistics over all ranks, for `x` sharded by image.

    It does two all-reduces of (C,) forward and one of (2, C) backward. Local tensors are treated as on a single rank.
    Arguments and result as for `batch_norm`.
    """
    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    function = _synchronised_function(pixels, silu, float(eps), float(momentum))
    return function.apply(x, gamma, beta, running_mean, running_variance)


@cache
def _autograd_function(training: bool, silu: bool, eps: float, momentum: float) -> Any:
    forward_op = dispatch.op_of(
        "graph_train_batch_norm", "x", "gamma", "beta", "moving_mean", "moving_variance", outputs=2
    )
    backward_op = dispatch.op_of("graph_train_batch_norm_grad", "dy", "x", "statistics", "gamma", "beta", outputs=3)
    integers = (int(training), int(silu))

    class BatchNorm(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, gamma: Tensor, beta: Tensor, *running: Tensor) -> Tensor:
            inputs = (x, gamma, beta, *running)
            y, statistics = dispatch.call_many(forward_op, inputs, integers=integers, floats=(eps, momentum))
            context.save_for_backward(x, statistics, gamma, beta)
            return y

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Sequence[Tensor | None]:
            saved = context.saved_tensors
            dx, d_gamma, d_beta = dispatch.call_many(backward_op, (gradient, *saved), integers=integers)
            return dx, d_gamma, d_beta, None, None

    return BatchNorm


@cache
def _synchronised_function(pixels: int, silu: bool, eps: float, momentum: float) -> Any:
    mean_op = dispatch.op_of("graph_train_channel_mean", "x")
    variance_op = dispatch.op_of("graph_train_channel_variance", "x", "mean")
    parameters = ("gamma", "beta")
    moving = ("moving_mean", "moving_variance")
    normalise_op = dispatch.op_of("graph_train_normalise", "x", "mean", "variance", *parameters, *moving, outputs=2)
    saved = ("dy", "x", "statistics", *parameters)
    sums_op = dispatch.op_of("graph_train_normalise_sums", *saved, outputs=3)
    backward_op = dispatch.op_of("graph_train_normalise_grad", *saved, "total_sums")
    integers = (pixels, int(silu))

    class SynchronisedBatchNorm(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, gamma: Tensor, beta: Tensor, *running: Tensor) -> Tensor:
            mean = replicated(dispatch.call(mean_op, (x,), integers=(pixels,)))
            variance = replicated(dispatch.call(variance_op, (x, mean), integers=(pixels,)))
            inputs = (x, mean, variance, gamma, beta, *running)
            y, statistics = dispatch.call_many(normalise_op, inputs, integers=integers, floats=(eps, momentum))
            context.save_for_backward(x, statistics, gamma, beta)
            return y

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Sequence[Tensor | None]:
            inputs = (gradient, *context.saved_tensors)
            sums, d_gamma, d_beta = dispatch.call_many(sums_op, inputs, integers=(int(silu),))
            dx = dispatch.call(backward_op, (*inputs, replicated(sums)), integers=integers)
            return dx, d_gamma, d_beta, None, None

    return SynchronisedBatchNorm
