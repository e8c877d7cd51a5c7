"""Self-attention and its gradient against NumPy in float64 and finite differences."""

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.ops.attention.function import attention
from kernels.runtime import flow
from tests.kernels.ops.activations import (
    activation,
    assert_close,
    assert_same_bits,
    check_thread_orders,
    in_graph,
    random_input,
    run_layer,
)
from tests.kernels.ops.launches import launches_of

BOUNDS = {ActivationType.FLOAT32: 2e-6, ActivationType.BFLOAT16: 2**-8, ActivationType.FLOAT16: 2**-11}
"""Error bound relative to the largest value: float32 sums, rounded once."""
SHAPES = [
    ((1, 1, 1, 3), 1),
    ((2, 3, 5, 24), 4),
    ((1, 4, 4, 12), 2),
    ((2, 12, 13, 48), 4),
    ((1, 4, 5, 96), 4),
    ((1, 2, 3, 1020), 2),
]


def exact(x: np.ndarray, heads: int, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return y and dx."""
    images, rows, columns, width = x.shape
    channels, tokens = width // 3, rows * columns
    parts = x.astype(np.float64).reshape(images, tokens, 3, heads, channels // heads).transpose(2, 0, 3, 1, 4)
    query, key, value = parts
    scale = (channels // heads) ** -0.5
    scores = query @ key.swapaxes(2, 3) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    given = dy.astype(np.float64).reshape(images, tokens, heads, channels // heads).transpose(0, 2, 1, 3)
    d_weights = given @ value.swapaxes(2, 3)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * scale
    gradients = np.stack((d_scores @ key, d_scores.swapaxes(2, 3) @ query, weights.swapaxes(2, 3) @ given))
    y = (weights @ value).transpose(0, 2, 1, 3).reshape(images, rows, columns, channels)
    return y, gradients.transpose(1, 3, 0, 2, 4).reshape(x.shape)


def test_reference_gradient_matches_finite_differences() -> None:
    x, weights = random_input((1, 2, 2, 12), ActivationType.FLOAT32).astype(np.float64), np.random.default_rng(1)
    dy = weights.standard_normal((1, 2, 2, 4))
    _, dx = exact(x, 2, dy)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-5
        rise = (exact(x + step, 2, dy)[0] - exact(x - step, 2, dy)[0]) / 2e-5
        assert (rise * dy).sum() == pytest.approx(dx[index], abs=1e-8)


@pytest.mark.parametrize(("shape", "heads"), SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], heads: int, activation_type: ActivationType) -> None:
    x = random_input(shape, activation_type)
    dy = random_input((*shape[:3], shape[3] // 3), activation_type, seed=1)
    y, dx = check_thread_orders(lambda: run_layer(lambda value: attention(value, heads), [x], dy, activation_type))
    exact_y, exact_dx = exact(x, heads, dy)
    assert_close(y, exact_y, BOUNDS[activation_type])
    assert_close(dx, exact_dx, BOUNDS[activation_type])


def test_large_scores_do_not_overflow() -> None:
    x = random_input((1, 3, 3, 12), ActivationType.FLOAT32) * 100
    dy = random_input((1, 3, 3, 4), ActivationType.FLOAT32, seed=1)
    y, dx = run_layer(lambda value: attention(value, 2), [x], dy, ActivationType.FLOAT32)
    exact_y, exact_dx = exact(x, 2, dy)
    assert_close(y, exact_y, 1e-4)
    assert_close(dx, exact_dx, 1e-3)


def test_nan_stays_in_its_image() -> None:
    x = random_input((2, 3, 3, 12), ActivationType.FLOAT32)
    x[0, 1, 1, 0] = np.nan
    y = attention(flow.tensor(x), 2).numpy()
    assert np.isnan(y[0, 1, 1, :2]).all()
    assert np.isfinite(y[1]).all()


def test_graph_matches_eager(activation_type: ActivationType) -> None:
    x = activation(random_input((2, 3, 5, 24), activation_type), activation_type)
    assert_same_bits(in_graph(lambda given: [attention(given, 4)], x), [attention(x, 4).to(flow.float32).numpy()])


@pytest.mark.skipif("config.getoption('--kernels') != 'emulated-cuda'")
def test_launch_count() -> None:
    x = flow.tensor(random_input((1, 3, 3, 12), ActivationType.FLOAT32), requires_grad=True)
    found = launches_of(lambda: attention(x, 2).sum().backward())
    own = {name: number for name, number in found.items() if name.startswith("attention")}
    assert own == {"attention_f32": 1, "attention_query_grad_f32": 1, "attention_key_grad_f32": 1}


def test_mismatched_arguments_raise() -> None:
    with pytest.raises(RuntimeError, match="graph_train_attention"):
        attention(flow.zeros(1, 2, 2, 12), 3)


def test_empty_batch() -> None:
    x = flow.zeros(0, 2, 2, 12, requires_grad=True)
    attention(x, 2).sum().backward()
    assert tuple(x.grad.shape) == (0, 2, 2, 12)
