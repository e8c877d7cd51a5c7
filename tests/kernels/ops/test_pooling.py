"""Upsampling and max pooling of (B, H, W, C) activations against NumPy and OneFlow's float64 kernels."""

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.pooling.function import max_pool, upsample
from kernels.runtime import Tensor, flow
from tests.kernels.ops.activations import (
    activation,
    assert_close,
    assert_same_bits,
    check_stock_op,
    check_thread_orders,
    in_graph,
    random_input,
    run_layer,
    sgd_steps,
)

SHAPES = [(2, 5, 4, 3), (1, 1, 1, 8), (3, 7, 6, 16), (1, 4, 9, 255), (2, 3, 3, 5)]
GEOMETRIES = [(5, 1, 2), (3, 2, 1), (2, 2, 0), (1, 1, 0), (3, 3, 1)]
ROUNDING = {ActivationType.FLOAT32: 1e-6, ActivationType.BFLOAT16: 2**-8, ActivationType.FLOAT16: 2**-11}
"""Error bound of gradients, whose sums are rounded once; values are copies."""


def pooled(x: np.ndarray, kernel: int, stride: int, padding: int, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and the gradient of x, which goes to the first of equal values; NaN wins."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-np.inf)
    inside = np.pad(np.ones(x.shape, bool), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    y, gradient = np.empty(dy.shape), np.zeros(padded.shape)
    for b, row, column, c in np.ndindex(*dy.shape):
        top, left = row * stride, column * stride
        window = padded[b, top : top + kernel, left : left + kernel, c].ravel()
        taps = np.flatnonzero(inside[b, top : top + kernel, left : left + kernel, c])
        best = taps[int(np.argmax(np.where(np.isnan(window[taps]), np.inf, window[taps])))]
        y[b, row, column, c] = window[best]
        gradient[b, top + best // kernel, left + best % kernel, c] += dy[b, row, column, c]
    rows, columns = x.shape[1:3]
    return y, gradient[:, padding : padding + rows, padding : padding + columns]


def pooled_shape(shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> tuple[int, ...]:
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in shape[1:3])
    return (shape[0], rows, columns, shape[3])


def check_pool(x: np.ndarray, geometry: tuple[int, int, int], kind: ActivationType) -> None:
    dy = random_input(pooled_shape(x.shape, *geometry), kind, seed=1)
    y, dx = check_thread_orders(lambda: run_layer(lambda value: max_pool(value, *geometry), [x], dy, kind))
    exact_y, exact_dx = pooled(x, *geometry, dy)
    np.testing.assert_array_equal(y, exact_y)
    assert_close(dx, exact_dx, ROUNDING[kind])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_max_pool(shape: tuple[int, ...], geometry: tuple[int, int, int], activation_type: ActivationType) -> None:
    kernel, _, padding = geometry
    if min(shape[1:3]) + 2 * padding < kernel:
        pytest.skip("the window is larger than the image with its padding")
    check_pool(random_input(shape, activation_type), geometry, activation_type)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_first_of_equal_values_gets_gradient(geometry: tuple[int, int, int], activation_type: ActivationType) -> None:
    few = np.random.default_rng(2).integers(0, 3, (2, 8, 7, 9)).astype(np.float32)
    check_pool(few, geometry, activation_type)
    check_pool(np.zeros((1, 6, 6, 8), np.float32), geometry, activation_type)


def test_max_pool_of_minus_infinity_and_nan() -> None:
    x = np.full((1, 6, 5, 8), -np.inf, np.float32)
    check_pool(x, (5, 1, 2), ActivationType.FLOAT32)
    x[0, 2, 3, 1] = np.nan
    x[0, 4, 4, 2] = np.inf
    check_pool(x, (3, 2, 1), ActivationType.FLOAT32)


def test_max_pool_matches_stock_kernel_bitwise() -> None:
    x, dy = (
        random_input((2, 12, 11, 24), ActivationType.FLOAT32),
        random_input((2, 12, 11, 24), ActivationType.FLOAT32, seed=1),
    )

    def stock(value: Tensor) -> Tensor:
        return flow.nn.functional.max_pool2d(value.permute(0, 3, 1, 2), 5, 1, 2).permute(0, 2, 3, 1)

    own = run_layer(lambda value: max_pool(value, 5, 1, 2), [x], dy, ActivationType.FLOAT32)
    np.testing.assert_array_equal(own[0], run_layer(stock, [x], dy, ActivationType.FLOAT32)[0])
    assert_close(own[1], run_layer(stock, [x], dy, ActivationType.FLOAT32)[1], 1e-6)


STOCK_POOLS: list[tuple[tuple[int, ...], dict[str, int | bool]]] = [
    ((2, 5, 10, 13), {"kernel_size": 5, "stride": 1, "padding": 2}),
    ((2, 3, 9, 8), {"kernel_size": 2, "stride": 2}),
    ((1, 4, 12, 11), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),
    ((1, 2, 7, 7), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
]


@pytest.mark.parametrize(("shape", "options"), STOCK_POOLS)
def test_stock_max_pool(shape: tuple[int, ...], options: dict[str, int | bool]) -> None:
    pool = flow.nn.MaxPool2d(return_indices=True, **options)
    x = random_input(shape, ActivationType.FLOAT32)
    check_stock_op(lambda value: pool(value)[0], [x])
    indices = [pool(flow.tensor(x.astype(dtype)))[1].numpy() for dtype in (np.float32, np.float64)]
    np.testing.assert_array_equal(*indices)


def test_stock_max_pool_of_empty_batch_does_not_affect_next() -> None:
    """OneFlow caches the kernel of an op, so one chosen for an empty tensor must suit others."""
    pool = flow.nn.MaxPool2d(return_indices=True, kernel_size=2, stride=2)
    x = flow.zeros(0, 3, 8, 6, requires_grad=True)
    y = pool(x)[0]
    y.sum().backward()
    assert tuple(y.shape) == (0, 3, 4, 3)
    assert tuple(x.grad.shape) == (0, 3, 8, 6)
    values = flow.tensor(np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4), requires_grad=True)
    pool(values)[0].sum().backward()
    expected = np.zeros((2, 3, 4, 4), np.float32)
    expected[:, :, 1::2, 1::2] = 1
    np.testing.assert_array_equal(values.grad.numpy(), expected)


@pytest.mark.parametrize("factors", [(2.0, 2.0), (3.0, 2.0), (1.5, 2.5)])
def test_stock_upsampling(factors: tuple[float, float]) -> None:
    height, width = factors
    check_stock_op(
        lambda x: flow._C.upsample_nearest_2d(
            x, height_scale=height, width_scale=width, output_size=None, data_format="channels_first"
        ),
        [random_input((2, 3, 4, 6), ActivationType.FLOAT32)],
    )


def test_too_large_windows_raise() -> None:
    x = flow.zeros(1, 3, 3, 8)
    with pytest.raises(RuntimeError, match="graph_train_max_pool"):
        max_pool(x, 5, 1, 0)
    with pytest.raises(RuntimeError, match="graph_train_max_pool"):
        max_pool(x, 2, 1, 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsample(shape: tuple[int, ...], factor: int, activation_type: ActivationType) -> None:
    x = random_input(shape, activation_type)
    exact = x.repeat(factor, axis=1).repeat(factor, axis=2)
    dy = random_input(exact.shape, activation_type, seed=1)
    y, dx = check_thread_orders(lambda: run_layer(lambda value: upsample(value, factor), [x], dy, activation_type))
    np.testing.assert_array_equal(y, exact)
    cells = dy.astype(np.float64).reshape(shape[0], shape[1], factor, shape[2], factor, shape[3])
    assert_close(dx, cells.sum((2, 4)), ROUNDING[activation_type])


def test_empty_batch(activation_type: ActivationType) -> None:
    x = flow.zeros(0, 8, 6, 3, requires_grad=True)
    y = upsample(max_pool(x.to(activation_type.dtype), 2, 2, 0), 3)
    y.to(flow.float32).sum().backward()
    assert tuple(y.shape) == (0, 12, 9, 3)
    assert tuple(x.grad.shape) == (0, 8, 6, 3)


def test_graph_matches_eager_bitwise(activation_type: ActivationType) -> None:
    weight = np.random.default_rng(4).standard_normal(9).astype(np.float32)

    def step(x: Tensor) -> list[Tensor]:
        return [max_pool(upsample(x, 2), 5, 1, 2)]

    x = activation(random_input((2, 4, 3, 9), activation_type), activation_type)
    assert_same_bits(in_graph(step, x), [one.to(flow.float32).numpy() for one in step(x)])

    class Layer(flow.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = flow.nn.Parameter(flow.tensor(weight))

        def forward(self, x: Tensor) -> Tensor:
            y = max_pool(upsample((x * self.weight).to(activation_type.dtype), 2), 5, 1, 2)
            return (y.to(flow.float32) ** 2).sum()

    images = [flow.tensor(random_input((2, 4, 3, 9), ActivationType.FLOAT32))]
    assert_same_bits(sgd_steps(Layer(), images, graph=True), sgd_steps(Layer(), images, graph=False))
