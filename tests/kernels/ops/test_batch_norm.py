"""BatchNorm on (B, H, W, C) activations against plain ops in float64."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.framework.graph_memory import compiled_job
from kernels.ops.batch_norm.function import batch_norm, synchronised_batch_norm
from kernels.runtime import Tensor, flow
from models.layers import tensor_of
from tests.distributed.jobs import free_port
from tests.kernels.ops.activations import (
    BOUNDS,
    activation,
    assert_close,
    assert_same_bits,
    check_stock_op,
    check_thread_orders,
    rounded,
    run_layer,
    run_reference,
    sgd_steps,
)

EPS, MOMENTUM = 1e-3, 0.03
SHAPES = [(3, 9, 7, 16), (1, 1, 1, 8), (2, 5, 6, 3), (1, 13, 4, 5), (2, 3, 3, 255), (1, 40, 30, 64), (2, 4, 5, 72)]
Layer = Callable[..., Tensor]


def reference(training: bool, silu: bool, running: tuple[np.ndarray, np.ndarray]) -> Layer:
    def layer(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        mean, variance = (flow.tensor(values.astype(np.float64)) for values in running)
        if training:
            mean = flow.mean(x, dim=[0, 1, 2])
            variance = flow.mean(flow.square(x - mean), dim=[0, 1, 2])
        z = (x - mean) / flow.sqrt(variance + EPS) * gamma + beta
        return z * flow.sigmoid(z) if silu else z

    return layer


def inputs_of(shape: tuple[int, ...], kind: ActivationType, offset: float = 0.0) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(3)
    x = rounded(rng.standard_normal(shape) + offset, kind)
    parameters = [rng.standard_normal(shape[-1]).astype(np.float32) for _ in range(2)]
    return [x, *parameters], rounded(rng.standard_normal(shape), kind)


def updated_running(x: np.ndarray, running: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    rows = x.astype(np.float64).reshape(-1, x.shape[-1])
    unbiased = rows.var(0) * len(rows) / max(len(rows) - 1, 1)
    return [old * (1 - MOMENTUM) + new * MOMENTUM for old, new in zip(running, (rows.mean(0), unbiased), strict=True)]


def running_of(channels: int) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(-1, 1, channels, dtype=np.float32), np.linspace(0.5, 2, channels, dtype=np.float32)


def check(kind: ActivationType, shape: tuple[int, ...], function: Any, *, training: bool, silu: bool) -> None:
    arrays, weights = inputs_of(shape, kind)
    start = running_of(shape[-1])

    def run() -> list[np.ndarray]:
        running = [flow.tensor(values) for values in start]
        options = {"training": training} if function is batch_norm else {}
        results = run_layer(
            lambda x, gamma, beta: function(x, gamma, beta, *running, eps=EPS, momentum=MOMENTUM, silu=silu, **options),
            arrays,
            weights,
            kind,
        )
        return [*results, *(values.numpy() for values in running)]

    exact = run_reference(reference(training, silu, start), arrays, weights)
    exact += updated_running(arrays[0], start) if training else start
    for own, wanted in zip(check_thread_orders(run), exact, strict=True):
        assert_close(own, wanted, BOUNDS[kind])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("silu", [True, False])
def test_batch_norm(shape: tuple[int, ...], training: bool, silu: bool, activation_type: ActivationType) -> None:
    check(activation_type, shape, batch_norm, training=training, silu=silu)


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("silu", [True, False])
def test_synchronised_batch_norm_on_one_rank(
    shape: tuple[int, ...], silu: bool, activation_type: ActivationType
) -> None:
    check(activation_type, shape, synchronised_batch_norm, training=True, silu=silu)


@pytest.mark.parametrize("function", [batch_norm, synchronised_batch_norm])
def test_large_mean_keeps_variance_accurate(function: Any) -> None:
    arrays, weights = inputs_of((2, 20, 30, 24), ActivationType.FLOAT32, offset=1000.0)
    running = [flow.zeros(24), flow.ones(24)]
    options = {"training": True} if function is batch_norm else {}
    own = run_layer(
        lambda x, gamma, beta: function(x, gamma, beta, *running, eps=EPS, momentum=MOMENTUM, silu=False, **options),
        arrays,
        weights,
        ActivationType.FLOAT32,
    )
    exact = run_reference(reference(True, False, running_of(24)), arrays, weights)
    for one, wanted in zip(own, exact, strict=True):
        # The numbers themselves are 6e-5 apart near 1000, and the mean is one of them.
        assert_close(one, wanted, 1e-4)
    rows = arrays[0].astype(np.float64).reshape(-1, 24)
    variance = rows.var(0, ddof=1) * MOMENTUM + (1 - MOMENTUM)
    np.testing.assert_allclose(running[1].numpy(), variance, rtol=1e-6)


def test_more_channels_than_one_block(activation_type: ActivationType) -> None:
    check(activation_type, (1, 2, 3, 2048), batch_norm, training=True, silu=True)


@pytest.mark.parametrize("function", [batch_norm, synchronised_batch_norm])
def test_empty_batch_keeps_running_statistics(function: Any, activation_type: ActivationType) -> None:
    running = [flow.tensor([1.0, 2.0, 3.0]) for _ in range(2)]
    parameters = [flow.ones(3, requires_grad=True) for _ in range(2)]
    x = flow.zeros(0, 8, 6, 3, requires_grad=True)
    options = {"training": True} if function is batch_norm else {}
    y = function(x.to(activation_type.dtype), *parameters, *running, eps=EPS, momentum=MOMENTUM, silu=True, **options)
    y.to(flow.float32).sum().backward()
    assert tuple(y.shape) == tuple(x.grad.shape) == (0, 8, 6, 3)
    assert not any(parameter.grad.numpy().any() for parameter in parameters)
    assert [values.numpy().tolist() for values in running] == [[1.0, 2.0, 3.0]] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [batch_norm, synchronised_batch_norm])
def test_nonfinite_channel_keeps_running_statistics(function: Any, bad: float) -> None:
    """The output is NaN, so that the step is skipped."""
    x = np.ones((2, 3, 3, 2), np.float32)
    x[0, 0, 1, 1] = bad
    running = [flow.full((2,), 7.0), flow.full((2,), 9.0)]
    options = {"training": True} if function is batch_norm else {}
    y = function(
        flow.tensor(x), flow.ones(2), flow.zeros(2), *running, eps=EPS, momentum=MOMENTUM, silu=False, **options
    )
    assert np.isnan(y.numpy()).any((0, 1, 2)).tolist() == [False, True]
    for statistic, before in zip(running, (7.0, 9.0), strict=True):
        assert statistic.numpy()[0] != before
        assert statistic.numpy()[1] == before


@pytest.mark.parametrize("function", [batch_norm, synchronised_batch_norm])
def test_graph_matches_eager_bitwise(function: Any, activation_type: ActivationType) -> None:
    (x, gamma, beta), _ = inputs_of((2, 6, 5, 24), activation_type)
    options = {"training": True} if function is batch_norm else {}

    class Layer(flow.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = (flow.nn.Parameter(flow.tensor(values)) for values in (gamma, beta))
            for name, values in zip(("mean", "variance"), running_of(24), strict=True):
                self.register_buffer(name, flow.tensor(values))

        def forward(self, x: Tensor) -> Tensor:
            states = (tensor_of(getattr(self, name)) for name in ("gamma", "beta", "mean", "variance"))
            y = function(x, *states, eps=EPS, momentum=MOMENTUM, silu=True, **options)
            return (y.to(flow.float32) ** 2).sum()

    images = [activation(x, activation_type)] * 3
    assert_same_bits(sgd_steps(Layer(), images, graph=True), sgd_steps(Layer(), images, graph=False))


def _run_ranks(folder: Path, ranks: int, mode: str) -> list[np.ndarray]:
    variables = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    out = folder / f"{ranks}.npz"
    command = [sys.executable, "-m", "tests.kernels.ops.batch_norm_job", str(out), mode]
    processes = [
        subprocess.Popen(command, env={**os.environ, **(variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)})})
        for rank in range(ranks)
    ]
    try:
        assert [process.wait(300) for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()
    with np.load(out) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.mark.distributed
def test_two_ranks_match_one(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    emulated = pytestconfig.getoption("--kernels") == "emulated-cuda"
    mode = "emulated-cuda" if emulated else "require"
    for spread, whole in zip(_run_ranks(tmp_path, 2, mode), _run_ranks(tmp_path, 1, mode), strict=True):
        assert_close(spread, whole, 1e-5)


STOCK_CASES: dict[str, tuple[tuple[int, ...], float, float]] = {
    "odd sizes": ((3, 5, 7, 9), 0.0, 3e-6),
    "large": ((2, 32, 60, 60), 0.0, 3e-6),
    # Any float32 kernel loses the digits by which the mean exceeds the standard deviation.
    "far mean": ((4, 16, 12, 12), 20.0, 3e-5),
    "two values": ((2, 3, 1, 1), 0.0, 3e-6),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", STOCK_CASES)
def test_stock_batch_norm(name: str, training: bool) -> None:
    shape, offset, bound = STOCK_CASES[name]
    rng = np.random.default_rng(5)
    x = rng.standard_normal(shape) + offset
    parameters = [rng.standard_normal(shape[1]) for _ in range(2)]
    start = running_of(shape[1])

    kept: dict[Any, list[Tensor]] = {}

    def layer(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        kept[x.dtype] = [flow.tensor(values, dtype=x.dtype) for values in start]
        return flow._C.normalization(
            x, *kept[x.dtype], gamma, beta, axis=1, epsilon=EPS, momentum=MOMENTUM, is_training=training
        )

    check_stock_op(layer, [x, *parameters], bound)
    for own, exact in zip(kept[flow.float32], kept[flow.float64], strict=True):
        assert_close(own.numpy(), exact.numpy(), bound)
    assert np.array_equal(kept[flow.float32][1].numpy(), start[1]) != training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("axis", [1, 3])
def test_stock_op_on_empty_batch_keeps_running_statistics(axis: int, training: bool) -> None:
    x = flow.zeros(*((0, 3, 8, 6) if axis == 1 else (0, 8, 6, 3)), requires_grad=True)
    gamma, beta = (flow.ones(3, requires_grad=True) for _ in range(2))
    running = [flow.tensor([1.0, 2.0, 3.0]) for _ in range(2)]
    y = flow._C.normalization(x, *running, gamma, beta, axis=axis, epsilon=EPS, momentum=MOMENTUM, is_training=training)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert not gamma.grad.numpy().any() and not beta.grad.numpy().any()
    assert [tensor.numpy().tolist() for tensor in running] == [[1.0, 2.0, 3.0]] * 2


class _SumGraph(flow.nn.Graph):
    """A normalisation followed by a sum, which a graph may fuse into the normalisation op."""

    def __init__(self, norm: flow.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.config.allow_fuse_add_to_output(True)

    def build(self, x: Tensor, further: Tensor) -> Tensor:
        return self.norm(x) + further


def test_graph_fuses_sum_into_stock_op() -> None:
    norm = flow.nn.BatchNorm2d(4).eval()
    x, further = flow.randn(2, 4, 10, 10), flow.randn(2, 4, 10, 10)
    graph = _SumGraph(norm)
    np.testing.assert_allclose(graph(x, further).numpy(), (norm(x) + further).detach().numpy(), rtol=1e-6, atol=1e-6)
    job = compiled_job(graph)
    (fused,) = [op.user_conf for op in job.net.op if op.user_conf.op_type_name == "normalization"]
    assert "_add_to_output" in fused.input
