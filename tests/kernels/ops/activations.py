"""Helpers for tests of ops on activations: rounded inputs, comparison with a reference, thread orders."""

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from kernels.framework.activation_type import ActivationType
from kernels.plugin import plugin_library
from kernels.runtime import Tensor, flow

BOUNDS = {ActivationType.FLOAT32: 3e-6, ActivationType.BFLOAT16: 2 * 2**-8, ActivationType.FLOAT16: 2 * 2**-11}
"""Error bound relative to the largest value: about 25 roundings of float32, or two of the other types."""

Layer = Callable[..., Tensor]


def rounded(values: np.ndarray, kind: ActivationType) -> np.ndarray:
    """Return the nearest numbers of the type, as float32."""
    return flow.tensor(values.astype(np.float32)).to(kind.dtype).to(flow.float32).numpy()


def random_input(shape: tuple[int, ...], kind: ActivationType, seed: int = 0) -> np.ndarray:
    """Return normally distributed numbers of the type, as float32."""
    return rounded(np.random.default_rng(seed).standard_normal(shape), kind)


def activation(values: np.ndarray, kind: ActivationType) -> Tensor:
    """Return a tensor of that type without a gradient."""
    return flow.tensor(values.astype(np.float32)).to(kind.dtype)


def run_layer(
    layer: Layer, arrays: Sequence[np.ndarray], weights: np.ndarray, kind: ActivationType
) -> list[np.ndarray]:
    """Return the output and the gradients of all inputs; the first input is an activation.

    `weights` is the gradient of the output.
    """
    leaves = [flow.tensor(values.astype(np.float32), requires_grad=True) for values in arrays]
    y = layer(leaves[0].to(kind.dtype), *leaves[1:])
    y.backward(flow.tensor(weights.astype(np.float32)).to(y.dtype))
    return [y.to(flow.float32).numpy(), *(one.grad.numpy() for one in leaves)]


def run_reference(layer: Layer, arrays: Sequence[np.ndarray], weights: np.ndarray) -> list[np.ndarray]:
    """Compute `run_layer` in float64."""
    leaves = [flow.tensor(values.astype(np.float64), requires_grad=True) for values in arrays]
    y = layer(*leaves)
    y.backward(flow.tensor(weights.astype(np.float64)))
    return [y.numpy(), *(one.grad.numpy() for one in leaves)]


def assert_close(own: np.ndarray, exact: np.ndarray, bound: float) -> None:
    """Assert equality within `bound` of the largest value."""
    np.testing.assert_allclose(own, exact, rtol=0, atol=bound * max(1.0, np.abs(exact).max(initial=0.0)))


def check_stock_op(layer: Layer, arrays: Sequence[np.ndarray], bound: float = 3e-6) -> None:
    """Compare OneFlow's op in float32 with the plugin's kernel to its own float64 kernel.

    Output and gradients must agree within `bound` times the largest value: about 25 roundings.
    """
    shape = layer(*(flow.tensor(values.astype(np.float32)) for values in arrays)).shape
    weights = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    exact = run_reference(layer, arrays, weights)
    for own, wanted in zip(run_layer(layer, arrays, weights, ActivationType.FLOAT32), exact, strict=True):
        assert own.shape == wanted.shape
        assert np.isfinite(own).all()
        assert_close(own, wanted, bound)


def assert_same_bits(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> None:
    """Assert that all pairs of arrays are bitwise equal."""
    for one, other in zip(ones, others, strict=True):
        assert one.tobytes() == other.tobytes()


def check_thread_orders(run: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Return the result of `run`, which must not depend on the order of threads in emulated CUDA kernels."""
    set_order = plugin_library().graph_train_emulated_order
    set_order.argtypes, set_order.restype = [ctypes.c_uint64], None
    first = run()
    try:
        for seed in (1, 2):
            set_order(seed)
            assert_same_bits(first, run())
    finally:
        set_order(0)
    return first


def in_graph(function: Callable[..., list[Tensor]], *inputs: Tensor) -> list[np.ndarray]:
    """Return the results of `function` in a compiled graph, in float32."""

    class Compiled(flow.nn.Graph):
        def build(self, *given: Tensor) -> list[Tensor]:
            return [one.to(flow.float32) for one in function(*given)]

    return [one.numpy() for one in Compiled()(*inputs)]


class _SgdGraph(flow.nn.Graph):
    def __init__(self, layer: flow.nn.Module, optimizer: flow.optim.SGD) -> None:
        super().__init__()
        self.layer = layer
        self.add_optimizer(optimizer)

    def build(self, x: Tensor) -> Tensor:
        loss = self.layer(x)
        loss.backward()
        return loss


def sgd_steps(layer: flow.nn.Module, inputs: Sequence[Tensor], *, graph: bool, rate: float = 0.01) -> list[np.ndarray]:
    """Do a step of SGD on each input; return the losses, then all parameters and buffers.

    Args:
        layer: a module that returns its loss.
        inputs: of one shape.
        graph: train in a compiled graph instead of eagerly.
        rate: learning rate.
    """
    optimizer = flow.optim.SGD(layer.parameters(), lr=rate)

    def eager(x: Tensor) -> Tensor:
        loss = layer(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step = _SgdGraph(layer, optimizer) if graph else eager
    losses = [step(x) for x in inputs]
    return [one.numpy() for one in (*losses, *layer.parameters(), *layer.buffers())]
