"""Activation functions and their gradients against formulas in float64 and OneFlow's own modules."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.activation_function.function import FUNCTIONS, activate
from kernels.runtime import Tensor, flow
from tests.kernels.ops.activations import (
    BOUNDS,
    activation,
    assert_close,
    assert_same_bits,
    check_thread_orders,
    in_graph,
    rounded,
    run_layer,
)
from tests.kernels.ops.launches import launches_of

Exact = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]


def _softplus_gate(x: np.ndarray) -> np.ndarray:
    return np.tanh(np.logaddexp(0, x))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _normal(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def _density(x: np.ndarray) -> np.ndarray:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


EXACT: dict[str, Exact] = {
    "ReLU": lambda x, _: (x.clip(0), x > 0),
    "ReLU6": lambda x, _: (x.clip(0, 6), (x > 0) & (x < 6)),
    "LeakyReLU": lambda x, slope: (np.where(x > 0, x, x * slope), np.where(x > 0, 1, slope)),
    "ELU": lambda x, alpha: (
        np.where(x > 0, x, alpha * np.expm1(x.clip(None, 0))),
        np.where(x > 0, 1, alpha * np.exp(x.clip(None, 0))),
    ),
    "Hardswish": lambda x, _: (x * (x + 3).clip(0, 6) / 6, np.where(x < -3, 0, np.where(x <= 3, x / 3 + 0.5, 1))),
    "Mish": lambda x, _: (x * _softplus_gate(x), _softplus_gate(x) + x * (1 - _softplus_gate(x) ** 2) * _sigmoid(x)),
    "GELU": lambda x, _: (x * _normal(x), _normal(x) + x * _density(x)),
    "Sigmoid": lambda x, _: (_sigmoid(x), _sigmoid(x) * _sigmoid(-x)),
    "Tanh": lambda x, _: (np.tanh(x), 1 - np.tanh(x) ** 2),
}
"""Value and derivative of each function."""
MODULES = {
    **{name: getattr(flow.nn, name)() for name in FUNCTIONS},
    "LeakyReLU": flow.nn.LeakyReLU(0.2),
    "ELU": flow.nn.ELU(0.7),
}
PARAMETERS = {"LeakyReLU": 0.2, "ELU": 0.7}


def random_input(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 4).astype(np.float32)


def applied(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: activate(x, name, PARAMETERS.get(name, 0.0))


def check(name: str, x: np.ndarray, kind: ActivationType) -> None:
    dy = rounded(np.random.default_rng(1).standard_normal(x.shape), kind)
    y, dx = check_thread_orders(lambda: run_layer(applied(name), [x], dy, kind))
    value, slope = EXACT[name](x.astype(np.float64), PARAMETERS.get(name, 0.0))
    assert_close(y, value, BOUNDS[kind])
    assert_close(dx, dy * slope, BOUNDS[kind])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1,), (2, 3, 5, 7), (1, 4, 4, 8), (3, 17, 9, 33)])
def test_values_and_gradients(name: str, shape: tuple[int, ...], activation_type: ActivationType) -> None:
    check(name, rounded(random_input(*shape), activation_type), activation_type)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_at_kinks_and_extremes(name: str, activation_type: ActivationType) -> None:
    values = [-6e4, -200, -90, -20, -6, -3, -1e-3, 0, 1e-3, 3, 6, 20, 90, 200, 6e4]
    check(name, rounded(np.array(values, np.float32), activation_type), activation_type)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_small_values_keep_precision(name: str) -> None:
    x = np.array([1e-6, -1e-6, 3e-4, -3e-4], np.float32)
    y = applied(name)(flow.tensor(x)).numpy()
    np.testing.assert_allclose(y, EXACT[name](x.astype(np.float64), PARAMETERS.get(name, 0.0))[0], rtol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_propagates(name: str, activation_type: ActivationType) -> None:
    y = applied(name)(activation(np.array([np.nan, 1.0]), activation_type)).to(flow.float32).numpy()
    assert np.isnan(y).tolist() == [True, False]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_matches_oneflow_module(name: str) -> None:
    x, dy = random_input(2, 3, 5, 7), random_input(2, 3, 5, 7, seed=1)
    own = run_layer(applied(name), [x], dy, ActivationType.FLOAT32)
    for ours, theirs in zip(own, run_layer(MODULES[name], [x], dy, ActivationType.FLOAT32), strict=True):
        assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_graph_matches_eager(name: str, activation_type: ActivationType) -> None:
    x = activation(random_input(2, 3, 5, 7), activation_type)
    assert_same_bits(in_graph(lambda given: [applied(name)(given)], x), [applied(name)(x).to(flow.float32).numpy()])


@pytest.mark.skipif("config.getoption('--kernels') != 'emulated-cuda'")
def test_single_launch() -> None:
    x = flow.tensor(random_input(2, 3, 5, 7))
    assert launches_of(lambda: activate(x, "Mish")) == {"activate_f32": 1}


def test_unknown_function_raises() -> None:
    with pytest.raises(ValueError, match="SiLU"):
        activate(flow.zeros(2), "SiLU")
    with pytest.raises(RuntimeError, match="graph_train_activate"):
        activate(flow.zeros(2, dtype=flow.float64), "ReLU")


def test_empty_tensors() -> None:
    x = flow.zeros(0, 3, 4, 8, requires_grad=True)
    activate(x, "Mish").sum().backward()
    assert tuple(x.grad.shape) == (0, 3, 4, 8)
