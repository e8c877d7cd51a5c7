import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.bias.function import add_bias
from kernels.runtime import flow
from tests.kernels.ops.activation_kinds import ROUNDING, activation, every_type, needs_plugin, values_of

pytestmark = needs_plugin
SHAPES = pytest.mark.parametrize("shape", [(2, 5, 6, 21), (1, 1, 1, 255), (3, 40, 40, 5), (1, 40, 41, 300)])


def _case(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(shape)
    x, dy = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    return x, random.standard_normal(shape[3]).astype(np.float32), dy


@every_type
@SHAPES
def test_bias_and_its_gradient(shape: tuple[int, ...], kind: ActivationType) -> None:
    values, bias_values, dy = _case(shape)
    x, bias = activation(values, kind).requires_grad_(True), flow.tensor(bias_values).requires_grad_(True)
    y = add_bias(x, bias, to_float32=True)
    assert y.dtype == flow.float32
    np.testing.assert_array_equal(y.detach().numpy(), values_of(x) + bias_values)
    (y * flow.tensor(dy)).sum().backward()
    assert x.grad.dtype == kind.dtype
    np.testing.assert_array_equal(values_of(x.grad), values_of(activation(dy, kind)))
    expected = dy.astype(np.float64).sum(axis=(0, 1, 2))
    # Blocks of 512 rows are summed in float32.
    np.testing.assert_allclose(bias.grad.numpy(), expected, atol=512 * 2**-24 * np.abs(dy).max())


@every_type
@SHAPES
def test_bias_with_silu(shape: tuple[int, ...], kind: ActivationType) -> None:
    values, bias_values, _ = _case(shape)
    x = activation(values, kind)
    with flow.no_grad():
        y = add_bias(x, flow.tensor(bias_values), silu=True)
    sums = values_of(x).astype(np.float64) + bias_values
    assert y.dtype == kind.dtype
    np.testing.assert_allclose(values_of(y), sums / (1 + np.exp(-sums)), rtol=4 * ROUNDING[kind], atol=1e-6)


def test_gradients_that_do_not_exist_are_refused() -> None:
    x = flow.ones(1, 2, 2, 3).requires_grad_(True)
    with pytest.raises(ValueError, match="float32 sum without SiLU only"):
        add_bias(x, flow.ones(3), silu=True)
    with pytest.raises(ValueError, match="float32 sum without SiLU only"):
        add_bias(x.detach().to(flow.bfloat16), flow.ones(3).requires_grad_(True))
