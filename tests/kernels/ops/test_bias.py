"""Adding a bias to (B, H, W, C) activations, with its gradient."""

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.bias.function import add_bias
from kernels.runtime import Tensor, flow
from models.layers import tensor_of
from tests.kernels.ops.activations import (
    BOUNDS,
    activation,
    assert_close,
    assert_same_bits,
    check_thread_orders,
    in_graph,
    rounded,
    run_layer,
    sgd_steps,
)

SHAPES = [(2, 5, 4, 3), (1, 1, 1, 8), (3, 7, 6, 16), (1, 12, 9, 255), (2, 30, 30, 33)]


def random_inputs(shape: tuple[int, ...], kind: ActivationType) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, dy = (rounded(rng.standard_normal(shape), kind) for _ in range(2))
    return x, rng.standard_normal(shape[-1]).astype(np.float32), dy


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("to_float32", [True, False])
def test_add_bias(shape: tuple[int, ...], to_float32: bool, activation_type: ActivationType) -> None:
    x, bias, dy = random_inputs(shape, activation_type)

    def layer(x: Tensor, bias: Tensor) -> Tensor:
        y = add_bias(x, bias, to_float32=to_float32)
        assert y.dtype == (flow.float32 if to_float32 else activation_type.dtype)
        return y

    y, dx, d_bias = check_thread_orders(lambda: run_layer(layer, [x, bias], dy, activation_type))
    exact = x + bias
    np.testing.assert_array_equal(y, exact if to_float32 else rounded(exact, activation_type))
    np.testing.assert_array_equal(dx, dy)
    assert_close(d_bias, dy.astype(np.float64).reshape(-1, shape[-1]).sum(0), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_matches_stock_op_bitwise(shape: tuple[int, ...]) -> None:
    x, bias, _ = (flow.tensor(values) for values in random_inputs(shape, ActivationType.FLOAT32))
    stock = flow._C.bias_add(x, bias, axis=3).numpy()
    assert_same_bits([add_bias(x, bias).numpy(), add_bias(x, bias, to_float32=True).numpy()], [stock, stock])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("to_float32", [True, False])
def test_add_bias_with_silu(shape: tuple[int, ...], to_float32: bool, activation_type: ActivationType) -> None:
    x, bias, _ = random_inputs(shape, activation_type)
    y = add_bias(activation(x, activation_type), flow.tensor(bias), silu=True, to_float32=to_float32)
    z = x.astype(np.float64) + bias
    bound = 1e-6 if to_float32 else BOUNDS[activation_type]
    assert_close(y.to(flow.float32).numpy(), z / (1 + np.exp(-z)), bound)


def test_silu_with_gradient_raises() -> None:
    x, bias = flow.zeros(1, 2, 2, 3), flow.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient"):
        add_bias(x, bias, silu=True)
    with flow.no_grad():
        assert not add_bias(x, bias, silu=True).numpy().any()


def test_empty_batch(activation_type: ActivationType) -> None:
    x, bias = flow.zeros(0, 4, 4, 3, requires_grad=True), flow.ones(3, requires_grad=True)
    y = add_bias(x.to(activation_type.dtype), bias, to_float32=True)
    y.sum().backward()
    assert tuple(y.shape) == tuple(x.grad.shape) == (0, 4, 4, 3)
    assert bias.grad.numpy().tolist() == [0.0] * 3


def test_channel_mismatch_raises() -> None:
    with pytest.raises(RuntimeError, match="graph_train_add_bias"):
        add_bias(flow.zeros(1, 2, 2, 3), flow.zeros(4))


@pytest.mark.parametrize("to_float32", [True, False])
def test_graph_matches_eager_bitwise(to_float32: bool, activation_type: ActivationType) -> None:
    x, bias, _ = random_inputs((2, 6, 5, 21), activation_type)

    class Layer(flow.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = flow.nn.Parameter(flow.tensor(bias))

        def forward(self, x: Tensor) -> Tensor:
            return (add_bias(x, tensor_of(self.bias), to_float32=to_float32).to(flow.float32) ** 2).sum()

    images = [activation(x, activation_type)]
    assert_same_bits(sgd_steps(Layer(), images, graph=True), sgd_steps(Layer(), images, graph=False))


def test_inference_graph_with_silu(activation_type: ActivationType) -> None:
    x, bias, _ = random_inputs((2, 6, 5, 21), activation_type)
    inputs = (activation(x, activation_type), flow.tensor(bias))
    eager = add_bias(*inputs, silu=True).to(flow.float32).numpy()
    assert_same_bits(in_graph(lambda *given: [add_bias(*given, silu=True)], *inputs), [eager])
