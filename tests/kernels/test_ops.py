"""The plugin's kernels for OneFlow's own ops: float32 results against OneFlow's float64 kernels."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from kernels import channels_last
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow
from tests.kernels.op_cases import CASES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    path = tmp_path_factory.mktemp("ops") / "results.npz"
    subprocess.run([sys.executable, "-m", "tests.kernels.op_cases", str(path)], cwd=ROOT, check=True)
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", CASES)
def test_float32_kernel_equals_float64_kernel(name: str, results: Mapping[str, np.ndarray]) -> None:
    prefix = f"{name}/float32/"
    keys = [key.removeprefix(prefix) for key in results if key.startswith(prefix)]
    assert keys
    for key in keys:
        ours, exact = results[prefix + key], results[f"{name}/float64/{key}"]
        assert ours.shape == exact.shape
        assert np.isfinite(ours).all()
        # Sums of up to a few thousand float32 products of order one: 3e-6 of the largest result is some 25 roundings.
        # Far means lose as many digits as the mean exceeds the deviation, in any float32 kernel.
        scale = max(1.0, np.abs(exact).max())
        tolerance = (3e-5 if "far_mean" in name else 3e-6) * scale
        np.testing.assert_allclose(ours, exact, rtol=0, atol=tolerance, err_msg=f"{name} {key}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("axis", [1, 3])
def test_batch_norm_of_no_images_leaves_the_running_statistics(axis: int, training: bool) -> None:
    load_plugin("require")
    x = flow.zeros(*((0, 3, 8, 6) if axis == 1 else (0, 8, 6, 3)), requires_grad=True)
    gamma, beta = (flow.ones(3, requires_grad=True) for _ in range(2))
    running = [flow.tensor([1.0, 2.0, 3.0]) for _ in range(2)]
    y = flow._C.normalization(x, *running, gamma, beta, axis=axis, epsilon=1e-3, momentum=0.03, is_training=training)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert not gamma.grad.numpy().any() and not beta.grad.numpy().any()
    assert [tensor.numpy().tolist() for tensor in running] == [[1.0, 2.0, 3.0]] * 2


def test_max_pool_of_no_images_leaves_the_next_pool_as_it_is() -> None:
    """OneFlow keeps the kernel that it chose for an op: one chosen for an empty tensor must be right for others."""
    load_plugin("require")
    pool = flow.nn.MaxPool2d(return_indices=True, kernel_size=2, stride=2)
    x = flow.zeros(0, 3, 8, 6, requires_grad=True)
    y = pool(x)[0]
    y.sum().backward()
    assert tuple(y.shape) == (0, 3, 4, 3)
    assert tuple(x.grad.shape) == (0, 3, 8, 6)
    last = flow.tensor(np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3), requires_grad=True)
    channels_last.max_pool(last, 2, 2, 0).sum().backward()
    expected = np.zeros((2, 4, 4, 3), np.float32)
    expected[:, 1::2, 1::2] = 1
    np.testing.assert_array_equal(last.grad.numpy(), expected)


class _SumGraph(flow.nn.Graph):
    """A normalisation and what is added to it, which a graph may leave to the normalisation's op."""

    def __init__(self, norm: flow.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.config.allow_fuse_add_to_output(True)

    def build(self, x: Tensor, further: Tensor) -> Tensor:
        return self.norm(x) + further


def test_a_sum_that_a_graph_leaves_to_the_normalisation() -> None:
    norm = flow.nn.BatchNorm2d(4).eval()
    x, further = flow.randn(2, 4, 10, 10), flow.randn(2, 4, 10, 10)
    graph = _SumGraph(norm)
    np.testing.assert_allclose(graph(x, further).numpy(), (norm(x) + further).detach().numpy(), rtol=1e-6, atol=1e-6)
    job = flow.core.job.job_pb2.Job.FromString(graph._c_nn_graph.get_current_job_str())
    (fused,) = [op.user_conf for op in job.net.op if op.user_conf.op_type_name == "normalization"]
    assert "_add_to_output" in fused.input
