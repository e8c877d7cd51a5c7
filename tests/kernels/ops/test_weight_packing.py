import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.weight_packing.function import pack_weights
from kernels.runtime import Tensor, flow
from tests.kernels.ops.activation_kinds import activation, every_type, needs_cuda_kernels, values_of

pytestmark = needs_cuda_kernels
SHAPES = [(8, 3, 3, 3), (5, 7, 1, 1), (4, 4, 6, 6), (300, 2, 1, 5)]


def _weights(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    random = np.random.default_rng(1)
    return [flow.tensor(random.standard_normal(shape).astype(np.float32)) for shape in shapes]


@every_type
@pytest.mark.parametrize("number", [1, 4])
def test_weights_and_gradients_change_places(number: int, kind: ActivationType) -> None:
    weights = [weight.requires_grad_(True) for weight in _weights(SHAPES[:number])]
    packed = pack_weights(weights, kind)
    total = flow.zeros(1)
    for weight, made in zip(weights, packed, strict=True):
        expected = activation(weight.detach().numpy().transpose(0, 2, 3, 1), kind)
        assert made.dtype == kind.dtype
        np.testing.assert_array_equal(values_of(made), values_of(expected))
        factor = flow.tensor(np.arange(weight.numel(), dtype=np.float32).reshape(tuple(made.shape)) % 128)
        total = total + (made.to(flow.float32) * factor).sum()
    total.backward()
    for weight in weights:
        assert weight.grad.dtype == flow.float32
        got = weight.grad.numpy().transpose(0, 2, 3, 1).ravel()
        np.testing.assert_array_equal(got, np.arange(weight.numel()) % 128)  # whole numbers that 8 bits hold


def test_frozen_weights_get_no_gradient() -> None:
    weights = _weights(SHAPES)
    weights[0].requires_grad_(True)
    packed = pack_weights(weights, ActivationType.FLOAT32)
    sum(made.sum() for made in packed).backward()
    np.testing.assert_array_equal(weights[0].grad.numpy(), np.ones(SHAPES[0], np.float32))
    assert all(weight.grad is None for weight in weights[1:])


def test_graph_equals_eager() -> None:
    weights = _weights(SHAPES)

    class Packed(flow.nn.Graph):
        def build(self, *given: Tensor) -> tuple[Tensor, ...]:
            return tuple(pack_weights(given, ActivationType.BFLOAT16))

    for once, again in zip(Packed()(*weights), pack_weights(weights, ActivationType.BFLOAT16), strict=True):
        np.testing.assert_array_equal(values_of(once), values_of(again))
