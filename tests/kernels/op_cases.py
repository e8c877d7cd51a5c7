"""Runs every op with a kernel in the plugin in float32 (ours) and in float64 (OneFlow's own) and saves both.

A process of its own, because OneFlow keeps the kernel that an op found first:
`python -m tests.kernels.op_cases OUT.npz`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow

Case = Callable[["Bench"], None]
_functional = flow.nn.functional


class Bench:
    """Draws the same inputs for both dtypes and collects outputs and gradients."""

    def __init__(self, dtype: type) -> None:
        self._dtype = dtype
        self._rng = np.random.default_rng(5)
        self.results: dict[str, np.ndarray] = {}

    def leaf(self, *shape: int, scale: float = 1.0, offset: float = 0.0, grad: bool = True) -> Tensor:
        # Rounded to float32 first, so that both dtypes see one value.
        values = (self._rng.standard_normal(shape) * scale + offset).astype(np.float32)
        return self.of(values, grad=grad)

    def of(self, values: np.ndarray, *, grad: bool = True) -> Tensor:
        return flow.tensor(np.asarray(values, np.float32).astype(self._dtype), requires_grad=grad)

    def note(self, name: str, tensor: Tensor) -> None:
        self.results[name] = tensor.detach().numpy()

    def backward(self, output: Tensor, *leaves: Tensor) -> None:
        """Output, and gradients of its product with fixed random weights."""
        self.note("out", output)
        (output * self.leaf(*output.shape, grad=False)).sum().backward()
        for index, leaf in enumerate(leaves):
            self.note(f"grad{index}", leaf.grad)


def convolution(  # noqa: PLR0917 - a table of cases reads better without names
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: Sequence[int],
    bias: bool = True,
    groups: int = 1,
    **options: int | tuple[int, int],
) -> Case:
    def run(bench: Bench) -> None:
        x = bench.leaf(batch, channels[0], *size)
        weight = bench.leaf(channels[1], channels[0] // groups, *kernel)
        leaves = [x, weight] + ([bench.leaf(channels[1])] if bias else [])
        bench.backward(_functional.conv2d(*leaves, groups=groups, **options), *leaves)

    return run


def unary(function: Callable[[Tensor], Tensor], *shape: int, scale: float = 3.0) -> Case:
    def run(bench: Bench) -> None:
        x = bench.leaf(*shape, scale=scale)
        bench.backward(function(x), x)

    return run


def of_values(function: Callable[[Tensor], Tensor], values: Sequence[float]) -> Case:
    def run(bench: Bench) -> None:
        x = bench.of(np.array(values))
        bench.backward(function(x), x)

    return run


def batch_norm(*shape: int, training: bool, scale: float = 1.0, offset: float = 0.0) -> Case:
    def run(bench: Bench) -> None:
        x = bench.leaf(*shape, scale=scale, offset=offset)
        gamma, beta = bench.leaf(shape[1]), bench.leaf(shape[1])
        mean, variance = bench.leaf(shape[1], grad=False), bench.of(np.linspace(0.5, 2, shape[1]), grad=False)
        y = flow._C.normalization(
            x, mean, variance, gamma, beta, axis=1, epsilon=1e-3, momentum=0.03, is_training=training
        )
        bench.backward(y, x, gamma, beta)
        bench.note("mean", mean)
        bench.note("variance", variance)

    return run


def max_pool(*shape: int, **options: int | bool) -> Case:
    def run(bench: Bench) -> None:
        x = bench.leaf(*shape)
        y, index = flow.nn.MaxPool2d(return_indices=True, **options)(x)
        bench.note("index", index)
        bench.backward(y, x)

    return run


def upsample(*shape: int, factors: tuple[float, float]) -> Case:
    def run(bench: Bench) -> None:
        x = bench.leaf(*shape)
        y = flow._C.upsample_nearest_2d(
            x, height_scale=factors[0], width_scale=factors[1], output_size=None, data_format="channels_first"
        )
        bench.backward(y, x)

    return run


def concat(axis: int, *shapes: Sequence[int]) -> Case:
    def run(bench: Bench) -> None:
        parts = [bench.leaf(*shape) for shape in shapes]
        bench.backward(flow.cat(parts, dim=axis), *parts)

    return run


def add(count: int, *shape: int) -> Case:
    def run(bench: Bench) -> None:
        parts = [bench.leaf(*shape) for _ in range(count)]
        bench.backward(flow._C.add(parts), *parts)

    return run


CASES: Mapping[str, Case] = {
    "conv_3x3": convolution(2, (8, 16), (13, 11), (3, 3), padding=1),
    "conv_1x1": convolution(1, (16, 32), (7, 7), (1, 1), bias=False),
    "conv_one_pixel": convolution(1, (1, 1), (1, 1), (1, 1)),
    "conv_stem_6x6_stride2": convolution(2, (3, 16), (32, 40), (6, 6), stride=2, padding=2),
    "conv_groups_dilation": convolution(2, (8, 12), (9, 10), (3, 3), padding=2, dilation=2, groups=4),
    "conv_depthwise": convolution(2, (6, 6), (8, 9), (3, 3), stride=2, padding=1, groups=6),
    "conv_1x3": convolution(2, (5, 7), (8, 8), (1, 3), padding=(0, 1)),
    "conv_uneven_stride_padding": convolution(1, (5, 7), (10, 9), (5, 3), stride=(3, 2), padding=(1, 2)),
    "conv_odd_channels_leftover": convolution(3, (17, 33), (12, 12), (3, 3), stride=2, padding=0),
    "silu": unary(_functional.silu, 3, 7, 11),
    "silu_large": unary(_functional.silu, 5, 40001),
    "silu_extreme": of_values(_functional.silu, [-1e4, -200, -88, -20, -1e-6, 0, 1e-6, 20, 88, 200, 1e4]),
    "sigmoid": unary(flow.sigmoid, 4, 333),
    "batch_norm_training": batch_norm(3, 5, 7, 9, training=True),
    "batch_norm_training_large": batch_norm(2, 32, 60, 60, training=True),
    "batch_norm_training_far_mean": batch_norm(4, 16, 12, 12, training=True, offset=20.0),
    "batch_norm_training_two_values": batch_norm(2, 3, 1, 1, training=True),
    "batch_norm_inference": batch_norm(3, 5, 7, 9, training=False),
    "max_pool_sppf": max_pool(2, 5, 10, 13, kernel_size=5, stride=1, padding=2),
    "max_pool_stride2": max_pool(2, 3, 9, 8, kernel_size=2, stride=2),
    "max_pool_dilation": max_pool(1, 4, 12, 11, kernel_size=3, stride=2, padding=1, dilation=2),
    "max_pool_ceil": max_pool(1, 2, 7, 7, kernel_size=3, stride=2, ceil_mode=True),
    "upsample_2x": upsample(2, 3, 5, 7, factors=(2.0, 2.0)),
    "upsample_3x2": upsample(1, 2, 4, 3, factors=(3.0, 2.0)),
    "upsample_fraction": upsample(1, 2, 4, 6, factors=(1.5, 2.5)),
    "concat_channels": concat(1, (2, 3, 5, 5), (2, 8, 5, 5), (2, 1, 5, 5)),
    "concat_last": concat(-1, (40, 3), (40, 5)),
    "concat_first_large": concat(0, (3, 20000), (1, 20000)),
    "add_two": add(2, 3, 70001),
    "add_five": add(5, 6, 7),
}


def main(path: str) -> None:
    load_plugin("require")
    arrays: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        for dtype in (np.float32, np.float64):
            bench = Bench(dtype)
            case(bench)
            arrays |= {f"{name}/{np.dtype(dtype).name}/{key}": value for key, value in bench.results.items()}
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
