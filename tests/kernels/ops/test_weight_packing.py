"""Weights of convolutions and linear layers in the order and type of activations, and their gradients back."""

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.weight_packing.function import pack_weights
from kernels.runtime import Tensor, flow
from models.layers import tensor_of
from tests.kernels.ops.activations import activation, assert_same_bits, check_thread_orders, rounded, sgd_steps

SHAPES = [(16, 3, 6, 6), (8, 16), (5, 7, 1, 3), (1, 1, 1, 1), (33, 12, 3, 3), (255, 8, 1, 1)]


def random_inputs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def packed_order(values: np.ndarray) -> np.ndarray:
    """Return (O, I, KH, KW) or (O, I) as (O, KH, KW, I)."""
    return (values if values.ndim == 4 else values[..., None, None]).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("count", [1, 2, len(SHAPES)])
def test_values_and_gradients(count: int, activation_type: ActivationType) -> None:
    arrays = random_inputs()[:count]
    rng = np.random.default_rng(1)
    weights = [rounded(rng.standard_normal(packed_order(values).shape), activation_type) for values in arrays]

    def run() -> list[np.ndarray]:
        leaves = [flow.tensor(values, requires_grad=True) for values in arrays]
        packed = pack_weights(leaves, activation_type)
        assert all(one.dtype == activation_type.dtype for one in packed)
        flow.autograd.backward(packed, [activation(values, activation_type) for values in weights])
        return [one.to(flow.float32).numpy() for one in packed] + [leaf.grad.numpy() for leaf in leaves]

    results = check_thread_orders(run)
    for packed, values in zip(results[:count], arrays, strict=True):
        np.testing.assert_array_equal(packed, rounded(packed_order(values), activation_type))
    for gradient, values, original in zip(results[count:], weights, arrays, strict=True):
        np.testing.assert_array_equal(gradient, values.transpose(0, 3, 1, 2).reshape(original.shape))


def test_wrong_axes_raise() -> None:
    with pytest.raises(RuntimeError, match="graph_train_pack_weights"):
        pack_weights([flow.zeros(4, 3, 2)], ActivationType.FLOAT32)


def test_unused_weights_have_no_gradient_or_zeros() -> None:
    leaves = [flow.tensor(values, requires_grad=True) for values in random_inputs()]
    packed = pack_weights(leaves, ActivationType.FLOAT32)
    (packed[1] * 3).sum().backward()
    assert (leaves[1].grad.numpy() == 3).all()
    for leaf in (leaves[0], *leaves[2:]):
        assert leaf.grad is None or not leaf.grad.numpy().any()


def test_frozen_weights() -> None:
    leaves = [flow.tensor(values, requires_grad=index > 0) for index, values in enumerate(random_inputs())]
    packed = pack_weights(leaves, ActivationType.FLOAT32)
    sum(one.sum() for one in packed).backward()
    assert leaves[0].grad is None
    assert all((leaf.grad.numpy() == 1).all() for leaf in leaves[1:])


@pytest.mark.parametrize("used", [(0, 1, 2, 3, 4, 5), (1, 4)])
def test_graph_matches_eager_bitwise(used: tuple[int, ...], activation_type: ActivationType) -> None:
    arrays = random_inputs()

    class Layer(flow.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for index, values in enumerate(arrays):
                self.register_parameter(f"weight{index}", flow.nn.Parameter(flow.tensor(values)))

        def forward(self, x: Tensor) -> Tensor:
            weights = [tensor_of(getattr(self, f"weight{index}")) for index in range(len(arrays))]
            packed = pack_weights(weights, activation_type)
            return sum((packed[index].to(flow.float32) * (index + x)).sum() for index in used)

    one = [flow.tensor(1.0)]
    trained = sgd_steps(Layer(), one, graph=True)
    assert_same_bits(trained, sgd_steps(Layer(), one, graph=False))
    for index, (before, after) in enumerate(zip(arrays, trained[1:], strict=True)):
        assert np.array_equal(before, after) == (index not in used)
