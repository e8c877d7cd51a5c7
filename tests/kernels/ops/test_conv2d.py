"""OneFlow's convolution: known values, NumPy float64 over a grid of sizes, graph = eager, determinism."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kernels.runtime import Tensor, flow
from tests.kernels.ops.convolution_reference import CASES, Array, Case, direct, draw_arrays, gradients_in_graph

_FLOAT32_BOUND = 2e-6
"""Error bound relative to the sum of absolute products: about 16 roundings of float32, as sums are computed in
blocks."""


def _convolve(case: Case, x: Tensor, weight: Tensor) -> Tensor:
    settings = {"stride": list(case.stride), "padding": list(case.padding), "dilation": list(case.dilation)}
    return flow._C.conv2d(x, weight, None, groups=case.groups, **settings)


def _ours(case: Case, arrays: tuple[Array, Array, Array]) -> list[npt.NDArray[np.float32]]:
    x, weight, dy = (flow.tensor(array.astype(np.float32)) for array in arrays)
    x.requires_grad_(True)
    weight.requires_grad_(True)
    y = _convolve(case, x, weight)
    y.backward(dy)
    return [y.detach().numpy(), x.grad.numpy(), weight.grad.numpy()]


def _assert_within(case: Case, arrays: tuple[Array, Array, Array], bound: float) -> None:
    got, want = _ours(case, arrays), direct(case, *arrays)
    sizes = direct(case, *(np.abs(array) for array in arrays))
    for name, ours, exact, magnitude in zip(("y", "dx", "dw"), got, want, sizes, strict=True):
        assert ours.shape == exact.shape
        assert np.all(np.abs(ours - exact) <= bound * magnitude + 1e-30), name


def test_two_by_two_kernel_known_values() -> None:
    # y = x00 + 2 x01 + 3 x10 + 4 x11 of each 2x2 window of [[1, 2, 3], [4, 5, 6]]
    case = Case(1, (1, 1), (2, 3), (2, 2))
    arrays = tuple(
        np.array(values, np.float64).reshape(shape)
        for values, shape in (([1, 2, 3, 4, 5, 6], (1, 1, 2, 3)), ([1, 2, 3, 4], (1, 1, 2, 2)), ([1, 10], (1, 1, 1, 2)))
    )
    y, dx, dw = _ours(case, (arrays[0], arrays[1], arrays[2]))
    assert y.ravel().tolist() == [37, 47]
    assert dx.ravel().tolist() == [1, 12, 20, 3, 34, 40]
    assert dw.ravel().tolist() == [21, 32, 54, 65]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_numpy(case: Case) -> None:
    _assert_within(case, draw_arrays(case), _FLOAT32_BOUND)


@pytest.mark.parametrize("name", ["1x1, batch 1", "3x3, stride 2", "first layer"])
def test_results_are_deterministic(name: str) -> None:
    arrays = draw_arrays(CASES[name])
    first = _ours(CASES[name], arrays)
    for other in ("3x3", "1x1, many pixels"):  # results must not depend on earlier scratch memory contents
        _ours(CASES[other], draw_arrays(CASES[other], seed=1))
        for one, again in zip(first, _ours(CASES[name], arrays), strict=True):
            assert np.array_equal(one, again)


@pytest.mark.parametrize("name", ["1x1", "3x3", "3x3, groups", "first layer"])
def test_graph_matches_eager_bitwise(name: str) -> None:
    case, arrays = CASES[name], draw_arrays(CASES[name])
    x, weight, dy = (flow.tensor(array.astype(np.float32)) for array in arrays)
    outputs = gradients_in_graph(lambda x, w: _convolve(case, x, w), x, weight, dy)
    for compiled, eager in zip(outputs, _ours(case, arrays), strict=True):
        assert np.array_equal(compiled.numpy(), eager)


def test_bias_and_summed_gradients() -> None:
    case = CASES["3x3"]
    x, weight, dy = (flow.tensor(array.astype(np.float32)) for array in draw_arrays(case))
    layer = flow.nn.Conv2d(32, 32, 3, padding=1)
    with flow.no_grad():
        layer.weight.copy_(weight)
    x.requires_grad_(True)
    # Two uses of the same input.
    (layer(x) + x).backward(dy)
    y, dx, dw = _ours(case, draw_arrays(case))
    np.testing.assert_allclose(layer(x).detach().numpy(), y + layer.bias.detach().numpy()[:, None, None], atol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), dx + dy.numpy(), atol=1e-5)
    np.testing.assert_allclose(layer.weight.grad.numpy(), dw, atol=1e-4)
    np.testing.assert_allclose(layer.bias.grad.numpy(), dy.numpy().sum((0, 2, 3)), atol=1e-4)


@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 3, 4), 1), ((2, 3, 5), 2), ((4, 7), 1), ((33, 255, 20, 20), 1)])
def test_bias_add(shape: tuple[int, ...], axis: int) -> None:
    random = np.random.default_rng(0)
    values, bias = (random.standard_normal(s).astype(np.float32) for s in (shape, shape[axis]))
    along = bias.reshape([-1 if dim == axis else 1 for dim in range(len(shape))])
    assert np.array_equal(flow._C.bias_add(flow.tensor(values), flow.tensor(bias), axis).numpy(), values + along)


def test_empty_batch_has_empty_output_and_zero_gradient() -> None:
    x, weight = flow.zeros(0, 4, 6, 6), flow.ones(8, 4, 3, 3, requires_grad=True)
    y = flow._C.conv2d(x, weight, None, padding=[1, 1])
    y.sum().backward()
    assert tuple(y.shape) == (0, 8, 6, 6)
    assert not weight.grad.numpy().any()


def test_float64_uses_stock_kernels() -> None:
    case = CASES["3x3, stride 2"]
    arrays = draw_arrays(case)
    x, weight, _ = (flow.tensor(array) for array in arrays)
    np.testing.assert_allclose(_convolve(case, x, weight).numpy(), direct(case, *arrays)[0], rtol=1e-9, atol=1e-10)


_STOCK = """
import sys, numpy as np
from kernels.runtime import flow
file = np.load(sys.argv[1])
x, weight, dy = (flow.tensor(file[name]) for name in ("x", "weight", "dy"))
x.requires_grad_(True); weight.requires_grad_(True)
y = flow._C.conv2d(x, weight, None, stride=[2, 2], padding=[1, 1])
y.backward(dy)
np.savez(sys.argv[2], y=y.detach().numpy(), dx=x.grad.numpy(), dw=weight.grad.numpy())
"""


def test_matches_oneflow_without_plugin(tmp_path: Path) -> None:
    case = CASES["3x3, stride 2"]
    arrays = draw_arrays(case)
    names = dict(zip(("x", "weight", "dy"), (array.astype(np.float32) for array in arrays), strict=True))
    np.savez(tmp_path / "in.npz", **names)
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", _STOCK, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    stock = np.load(tmp_path / "out.npz")
    for name, ours in zip(("y", "dx", "dw"), _ours(case, arrays), strict=True):
        np.testing.assert_allclose(ours, stock[name], rtol=1e-4, atol=1e-4)
