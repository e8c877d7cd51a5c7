"""Concatenation and split along an axis, bitwise."""

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor, flow
from tests.kernels.ops.activations import (
    activation,
    assert_same_bits,
    check_stock_op,
    check_thread_orders,
    in_graph,
    rounded,
)

# Widths along the axis; other axes are (2, 3, 4).
CASES = [
    (3, [8, 16]),
    (3, [1, 2, 3]),
    (3, [255, 1]),
    (3, [4, 0, 5]),
    (0, [1, 2, 1]),
    (1, [3, 3]),
    (2, [5, 7, 1, 8]),
    (3, [2] * 33),
    (0, [1] * 70),
]


def random_inputs(axis: int, widths: list[int], kind: ActivationType) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [[2, 3, 4, 8] for _ in widths]
    for shape, width in zip(shapes, widths, strict=True):
        shape[axis] = width
    return [rounded(rng.standard_normal(shape), kind) for shape in shapes]


def to_numpy(tensors: list[Tensor]) -> list[np.ndarray]:
    return [tensor.to(flow.float32).numpy() for tensor in tensors]


@pytest.mark.parametrize(("axis", "widths"), CASES)
def test_concat_and_split(axis: int, widths: list[int], activation_type: ActivationType) -> None:
    arrays = random_inputs(axis, widths, activation_type)
    tensors = [activation(values, activation_type) for values in arrays]
    joined = check_thread_orders(lambda: to_numpy([flow.cat(tensors, dim=axis)]))
    np.testing.assert_array_equal(joined[0], np.concatenate(arrays, axis))
    whole = activation(joined[0], activation_type)
    parts = check_thread_orders(lambda: to_numpy(list(flow._C.split_like(whole, tensors, axis))))
    for part, values in zip(parts, arrays, strict=True):
        np.testing.assert_array_equal(part, values)


@pytest.mark.parametrize(
    ("axis", "shapes"), [(-1, [(40, 3), (40, 5)]), (0, [(3, 20000), (1, 20000)]), (1, [(2, 3, 5, 5), (2, 8, 5, 5)])]
)
def test_other_ranks_and_long_rows(axis: int, shapes: list[tuple[int, ...]]) -> None:
    arrays = [np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in shapes]
    check_stock_op(lambda *parts: flow.cat(list(parts), dim=axis), arrays, bound=0)


def test_gradient_of_concat_is_split(activation_type: ActivationType) -> None:
    leaves = [flow.tensor(values, requires_grad=True) for values in random_inputs(3, [3, 5, 8], activation_type)]
    joined = flow.cat([leaf.to(activation_type.dtype) for leaf in leaves], dim=3)
    weights = rounded(np.random.default_rng(1).standard_normal(joined.shape), activation_type)
    joined.backward(activation(weights, activation_type))
    for leaf, part in zip(leaves, np.split(weights, [3, 8], axis=3), strict=True):
        np.testing.assert_array_equal(leaf.grad.numpy(), part)


@pytest.mark.parametrize(("axis", "widths"), CASES)
def test_graph_matches_eager_bitwise(axis: int, widths: list[int], activation_type: ActivationType) -> None:
    tensors = [activation(values, activation_type) for values in random_inputs(axis, widths, activation_type)]
    joined = in_graph(lambda *given: [flow.cat(list(given), dim=axis)], *tensors)
    assert_same_bits(joined, to_numpy([flow.cat(tensors, dim=axis)]))


@pytest.mark.parametrize("columns", [1, 7, 64])
def test_byte_images(columns: int) -> None:
    """Bytes, as used when a batch is padded."""
    images = [np.random.default_rng(seed).integers(0, 256, (2, 3, 5, columns), np.uint8) for seed in range(3)]
    tensors = [flow.tensor(values) for values in images]
    (joined,) = check_thread_orders(lambda: [flow.cat(tensors, dim=0).numpy()])
    np.testing.assert_array_equal(joined, np.concatenate(images))
    for part, values in zip(flow._C.split_like(flow.tensor(joined), tensors, 0), images, strict=True):
        np.testing.assert_array_equal(part.numpy(), values)


def test_empty_tensors(activation_type: ActivationType) -> None:
    empty = flow.zeros(0, 3, 4, 8).to(activation_type.dtype)
    assert tuple(flow.cat([empty, empty], dim=3).shape) == (0, 3, 4, 16)
