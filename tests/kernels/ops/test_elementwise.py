"""OneFlow's elementwise ops with plugin kernels, against NumPy and OneFlow's float64 kernels."""

from collections.abc import Callable

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor, flow
from tests.kernels.ops.activations import (
    BOUNDS,
    activation,
    assert_close,
    assert_same_bits,
    check_stock_op,
    check_thread_orders,
    in_graph,
    rounded,
    run_layer,
)

UNARY = {"silu": flow.nn.functional.silu, "sigmoid": flow.sigmoid}


def random_input(*shape: int, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", [(1,), (3, 7, 11), (5, 40001)])
def test_activation_functions(name: str, shape: tuple[int, ...]) -> None:
    check_stock_op(UNARY[name], [random_input(*shape)])


@pytest.mark.parametrize("name", UNARY)
def test_activation_functions_of_extreme_values(name: str) -> None:
    extreme = np.array([-1e4, -200, -88, -20, -1e-6, 0, 1e-6, 20, 88, 200, 1e4], np.float32)
    check_stock_op(UNARY[name], [extreme])


@pytest.mark.parametrize(("count", "shape"), [(2, (1,)), (2, (3, 70001)), (5, (6, 7)), (11, (3, 5, 1031))])
def test_sum(count: int, shape: tuple[int, ...], activation_type: ActivationType) -> None:
    arrays = [rounded(random_input(*shape, seed=number), activation_type) for number in range(count)]
    weights = rounded(random_input(*shape, seed=count), activation_type)

    def layer(*parts: Tensor) -> Tensor:
        return flow._C.add([part.to(activation_type.dtype) for part in parts])

    own = check_thread_orders(lambda: run_layer(layer, arrays, weights, activation_type))
    # Every partial sum may be rounded to the type.
    bound = max(1, count // 2) * BOUNDS[activation_type]
    assert_close(own[0], np.sum(arrays, axis=0, dtype=np.float64), bound)
    for gradient in own[1:]:
        np.testing.assert_array_equal(gradient, weights)


def test_sum_of_two_is_rounded_once(activation_type: ActivationType) -> None:
    left, right = (rounded(random_input(2, 3, 5, 33, seed=seed), activation_type) for seed in (0, 1))
    total = activation(left, activation_type) + activation(right, activation_type)
    assert total.dtype == activation_type.dtype
    np.testing.assert_array_equal(total.to(flow.float32).numpy(), rounded(left + right, activation_type))


def bfloat16_of(bits: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even."""
    below = bits & np.uint64(0xFFFF0000)
    rest = bits & np.uint64(0xFFFF)
    up = (rest > 0x8000) | ((rest == 0x8000) & ((below >> np.uint64(16)) & np.uint64(1) == 1))
    return np.where(up, below + np.uint64(0x10000), below).astype(np.uint32).view(np.float32)


def float16_of(bits: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return bits.astype(np.uint32).view(np.float32).astype(np.float16).astype(np.float32)


ROUNDINGS: dict[ActivationType, Callable[[np.ndarray], np.ndarray]] = {
    ActivationType.FLOAT32: lambda bits: bits.astype(np.uint32).view(np.float32),
    ActivationType.BFLOAT16: bfloat16_of,
    ActivationType.FLOAT16: float16_of,
}
SPECIAL = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFF800001, 1, 0x8000, 0x80000000]


def test_casts_round_to_nearest(activation_type: ActivationType) -> None:
    """Overflow gives infinity, NaN stays NaN, and the cast back is exact."""
    random = np.random.default_rng(0)
    anything = random.integers(0, 2**32, 100_000, np.uint64)
    near_one = np.float32(1) + random.random(20_000, np.float32)  # no overflow in any type
    ties = (anything[:20_000] & np.uint64(0xFFFF0000)) | np.uint64(0x8000)
    bits = np.concatenate((np.array(SPECIAL, np.uint64), anything, near_one.view(np.uint32).astype(np.uint64), ties))
    values = bits.astype(np.uint32).view(np.float32)
    (got,) = check_thread_orders(lambda: [flow.tensor(values).to(activation_type.dtype).to(flow.float32).numpy()])
    expected = np.where(np.isnan(values), np.float32("nan"), ROUNDINGS[activation_type](bits))
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(values)
    assert got[numbers].tobytes() == expected[numbers].tobytes()  # including the sign of zero


@pytest.mark.parametrize("shape", [(1,), (2, 3, 5, 33)])
def test_graph_matches_eager_bitwise(shape: tuple[int, ...], activation_type: ActivationType) -> None:
    def layer(x: Tensor, y: Tensor) -> list[Tensor]:
        kept = [part.to(activation_type.dtype) for part in (flow.nn.functional.silu(x), flow.sigmoid(y))]
        return [*kept, kept[0] + kept[1]]

    given = [flow.tensor(random_input(*shape, seed=seed)) for seed in (0, 1)]
    assert_same_bits(in_graph(layer, *given), [one.to(flow.float32).numpy() for one in layer(*given)])


def test_empty_tensors(activation_type: ActivationType) -> None:
    """Test eager mode only, as OneFlow's graphs do not accept empty tensors."""
    x = flow.zeros(0, 3, 4, requires_grad=True)
    y = flow.nn.functional.silu(x).to(activation_type.dtype)
    (y + y).to(flow.float32).sum().backward()
    assert tuple(y.shape) == tuple(x.grad.shape) == (0, 3, 4)
