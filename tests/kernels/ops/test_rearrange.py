"""Space-to-depth and zero padding against NumPy, forward and backward, bitwise."""

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.rearrange.function import Borders, space_to_depth, zero_pad
from kernels.runtime import flow
from tests.kernels.ops.activations import (
    activation,
    assert_same_bits,
    check_thread_orders,
    in_graph,
    random_input,
    run_layer,
)


def corners(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)


def patches(deep: np.ndarray) -> np.ndarray:
    """Invert `corners`."""
    images, rows, columns, channels = deep.shape
    x = np.empty((images, 2 * rows, 2 * columns, channels // 4), deep.dtype)
    for number, part in enumerate(np.split(deep, 4, axis=-1)):
        x[:, number % 2 :: 2, number // 2 :: 2] = part
    return x


@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (2, 4, 6, 3), (1, 10, 8, 24), (3, 64, 34, 3)])
def test_space_to_depth(shape: tuple[int, ...], activation_type: ActivationType) -> None:
    x = random_input(shape, activation_type)
    deep = corners(x)
    dy = random_input(deep.shape, activation_type, seed=1)
    y, dx = check_thread_orders(lambda: run_layer(space_to_depth, [x], dy, activation_type))
    np.testing.assert_array_equal(y, deep)
    np.testing.assert_array_equal(dx, patches(dy))
    np.testing.assert_array_equal(patches(deep), x)


@pytest.mark.parametrize("borders", [(0, 1, 0, 1), (2, 0, 3, 1), (0, 0, 0, 0), (1, 1, 1, 1)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 4, 3), (1, 9, 8, 24)])
def test_zero_pad(shape: tuple[int, ...], borders: Borders, activation_type: ActivationType) -> None:
    left, right, top, bottom = borders
    x = random_input(shape, activation_type)
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    dy = random_input(padded.shape, activation_type, seed=1)
    y, dx = check_thread_orders(lambda: run_layer(lambda value: zero_pad(value, borders), [x], dy, activation_type))
    np.testing.assert_array_equal(y, padded)
    np.testing.assert_array_equal(dx, dy[:, top : top + shape[1], left : left + shape[2]])


def test_graph_matches_eager(activation_type: ActivationType) -> None:
    x = activation(random_input((2, 4, 6, 3), activation_type), activation_type)
    eager = [one.to(flow.float32).numpy() for one in (space_to_depth(x), zero_pad(x, (1, 0, 2, 3)))]
    assert_same_bits(in_graph(lambda given: [space_to_depth(given), zero_pad(given, (1, 0, 2, 3))], x), eager)


def test_mismatched_arguments_raise() -> None:
    with pytest.raises(RuntimeError, match="graph_train_space_to_depth"):
        space_to_depth(flow.zeros(1, 3, 4, 1))
    with pytest.raises(RuntimeError, match="graph_train_zero_pad"):
        zero_pad(flow.zeros(1, 3, 4, 1), (0, -1, 0, 0))


def test_empty_batches() -> None:
    assert tuple(space_to_depth(flow.zeros(0, 4, 4, 3)).shape) == (0, 2, 2, 12)
    assert tuple(zero_pad(flow.zeros(0, 4, 4, 3), (0, 1, 0, 1)).shape) == (0, 5, 5, 3)
