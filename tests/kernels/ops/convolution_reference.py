"""Convolution cases, a reference in NumPy float64, and gradients in a graph."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.framework.module_graph import ModuleGraph, gradients_of
from kernels.runtime import Tensor, flow
from models.layers import tensor_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    batch: int
    channels: tuple[int, int]
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def weight_shape(self) -> tuple[int, ...]:
        return (self.channels[1], self.channels[0] // self.groups, *self.kernel)

    def output_size(self) -> tuple[int, int]:
        spans = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans)
        return height, width


CASES = {
    "1x1": Case(2, (24, 40), (10, 10), (1, 1)),
    "1x1, odd sizes": Case(3, (19, 7), (5, 3), (1, 1)),
    "1x1, one pixel": Case(1, (64, 32), (1, 1), (1, 1)),
    "1x1, batch 1": Case(1, (128, 255), (20, 20), (1, 1)),
    "1x1, many pixels": Case(2, (32, 16), (80, 80), (1, 1)),
    "1x1, filter summed by several threads": Case(3, (20, 9), (40, 44), (1, 1)),
    "1x1, stride 2": Case(2, (16, 8), (9, 12), (1, 1), (2, 2)),
    "1x1, padding": Case(2, (16, 8), (5, 5), (1, 1), (1, 1), (1, 1)),
    "1x1, groups": Case(2, (12, 18), (6, 7), (1, 1), groups=3),
    "3x3": Case(2, (32, 32), (14, 13), (3, 3), padding=(1, 1)),
    "3x3, stride 2": Case(2, (32, 64), (15, 16), (3, 3), (2, 2), (1, 1)),
    "3x3, rest at the edge": Case(2, (16, 32), (12, 12), (3, 3), (2, 2)),
    "3x3, tiles of 4": Case(2, (32, 48), (41, 38), (3, 3), padding=(1, 1)),
    "3x3, tiles of 2": Case(1, (144, 128), (27, 29), (3, 3), padding=(1, 1)),
    "3x3, tiles, no padding": Case(3, (48, 32), (38, 33), (3, 3)),
    "3x3, tiles, uneven padding": Case(1, (64, 32), (35, 46), (3, 3), padding=(2, 0)),
    "3x3, odd channels": Case(1, (5, 11), (7, 8), (3, 3), padding=(1, 1)),
    "3x3, depthwise": Case(2, (32, 32), (9, 9), (3, 3), padding=(1, 1), groups=32),
    "3x3, groups": Case(3, (12, 24), (9, 9), (3, 3), (2, 1), (1, 0), groups=4),
    "3x3, dilation": Case(2, (16, 16), (17, 15), (3, 3), padding=(4, 2), dilation=(4, 2)),
    "first layer": Case(2, (3, 16), (64, 96), (6, 6), (2, 2), (2, 2)),
    "1x3": Case(2, (8, 16), (9, 7), (1, 3), padding=(0, 1)),
    "5x5, stride 3": Case(1, (8, 8), (23, 19), (5, 5), (3, 2), (2, 1)),
    "whole picture": Case(2, (8, 16), (4, 4), (4, 4)),
    "padding beyond the kernel": Case(1, (4, 4), (3, 3), (2, 2), padding=(2, 2)),
}


def _rows(case: Case, array: Array, kernel_row: int, kernel_column: int) -> Array:
    """Return the view (N, G, C, OH, OW) of the padded input (N, G, C, H', W') that one kernel tap reads."""
    height, width = case.output_size()
    top, left = kernel_row * case.dilation[0], kernel_column * case.dilation[1]
    bottom, right = top + case.stride[0] * (height - 1) + 1, left + case.stride[1] * (width - 1) + 1
    return array[..., top : bottom : case.stride[0], left : right : case.stride[1]]


def direct(case: Case, x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
    """Return the output, the gradient of the input and the gradient of the weights."""
    (batch, groups), (pad_rows, pad_columns) = (case.batch, case.groups), case.padding
    height, width = case.output_size()
    padded = np.pad(x, ((0, 0), (0, 0), (pad_rows, pad_rows), (pad_columns, pad_columns)))
    padded = padded.reshape(batch, groups, -1, *padded.shape[2:])
    taps = weight.reshape(groups, -1, *weight.shape[1:])
    dy_groups = dy.reshape(batch, groups, -1, height, width)
    y, dx, dw = np.zeros_like(dy_groups), np.zeros_like(padded), np.zeros_like(taps)
    for row in range(case.kernel[0]):
        for column in range(case.kernel[1]):
            met = _rows(case, padded, row, column)
            y += np.einsum("ngchw,goc->ngohw", met, taps[..., row, column], optimize=True)
            dw[..., row, column] = np.einsum("ngohw,ngchw->goc", dy_groups, met, optimize=True)
            _rows(case, dx, row, column)[...] += np.einsum(
                "ngohw,goc->ngchw", dy_groups, taps[..., row, column], optimize=True
            )
    inside = dx[..., pad_rows : pad_rows + case.size[0], pad_columns : pad_columns + case.size[1]]
    return y.reshape(dy.shape), inside.reshape(x.shape), dw.reshape(weight.shape)


def draw_arrays(case: Case, seed: int = 0) -> tuple[Array, Array, Array]:
    """Return input, weights and gradient of the output, exactly representable in float32."""
    random = np.random.default_rng(seed)
    shapes = (
        (case.batch, case.channels[0], *case.size),
        case.weight_shape(),
        (case.batch, case.channels[1], *case.output_size()),
    )
    x, weight, dy = (random.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in shapes)
    return x, weight, dy


class _Gradients(flow.nn.Module):
    """Output and both gradients; the parameter `zero` makes the input require a gradient within a graph."""

    def __init__(self, layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.weight = flow.nn.Parameter(weight)
        self.zero = flow.nn.Parameter(flow.zeros(*x.shape))

    def forward(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, zero = tensor_of(self.weight), tensor_of(self.zero)
        y = self.layer(x + zero, weight)
        dx, dw = gradients_of((y * dy).sum(), [zero, weight])
        return y, dx, dw


def gradients_in_graph(
    layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, gradient of the input and gradient of the weights, computed in a compiled graph."""
    return ModuleGraph(_Gradients(layer, x, weight), differentiates=True)(x, dy)
