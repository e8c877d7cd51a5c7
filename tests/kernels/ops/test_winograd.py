"""3x3 convolutions in Winograd tiles: where they are used, rounding, borders, independence of other images."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.ops.convolution.function import ConvolutionGeometry, convolution
from kernels.plugin import emulates_cuda, plugin_library
from kernels.runtime import flow
from tests.kernels.ops.convolution_reference import CASES, Array, Case, direct, draw_arrays

FORWARD, DATA_GRADIENT, FILTER_GRADIENT = range(3)
SUMS = 1e-6
"""Error bound relative to the largest sum of the products' absolute values in the image: a tile's pixels share their
rounding errors, so those at the border, which have fewer products, have errors like the others."""
YOLOV5S = Case(4, (64, 64), (40, 40), (3, 3), padding=(1, 1))


@pytest.fixture(autouse=True)
def _only_on_cpu() -> None:
    if emulates_cuda():
        pytest.skip("of the CPU's kernels")


def side(case: Case, which: int, *, channels_last: bool = True, bfloat16: bool = False) -> int:
    """Return m of the m x m tiles, 0 for a direct convolution."""
    sizes = [case.batch, case.channels[0], *case.size, case.channels[1], *case.output_size(), *case.kernel]
    sizes += [*case.stride, *case.padding, *case.dilation, case.groups, channels_last, 0, bfloat16]
    function = plugin_library().graph_train_winograd_side
    function.restype = ctypes.c_int64
    return int(function(ctypes.c_int64(which), (ctypes.c_int64 * len(sizes))(*sizes)))


def needs_tiles() -> None:
    if side(YOLOV5S, FORWARD) == 0:
        pytest.skip("this CPU has no AVX2")


def results(case: Case, arrays: tuple[Array, Array, Array]) -> list[Array]:
    """Return the output and the gradients of input and weights, channels first."""
    x, weight, dy = (array.astype(np.float32) for array in arrays)
    x, dy = (np.ascontiguousarray(array.transpose(0, 2, 3, 1)) for array in (x, dy))
    inputs, weights = flow.tensor(x, requires_grad=True), flow.tensor(weight, requires_grad=True)
    geometry = ConvolutionGeometry(case.stride, case.padding, case.dilation, case.groups)
    y = convolution(inputs, weights, geometry)
    y.backward(flow.tensor(dy))
    last = [y.detach().numpy(), inputs.grad.numpy()]
    return [*(array.transpose(0, 3, 1, 2) for array in last), weights.grad.numpy()]


def check(case: Case, arrays: tuple[Array, Array, Array]) -> None:
    sizes = direct(case, *(np.abs(array) for array in arrays))
    named = zip(("y", "dx", "dw"), results(case, arrays), direct(case, *arrays), sizes, strict=True)
    for name, ours, exact, size in named:
        assert ours.shape == exact.shape
        assert np.all(np.abs(ours - exact) <= SUMS * size.max(axis=(2, 3), keepdims=True)), name


def test_cases_use_both_tile_sizes() -> None:
    needs_tiles()
    assert side(CASES["3x3, tiles of 4"], FORWARD) == side(CASES["3x3, tiles of 4"], DATA_GRADIENT) == 4
    assert side(CASES["3x3, tiles of 2"], FORWARD) == side(CASES["3x3, tiles of 2"], DATA_GRADIENT) == 2
    for name in ("3x3, tiles, no padding", "3x3, tiles, uneven padding"):
        assert side(CASES[name], FORWARD) and side(CASES[name], DATA_GRADIENT)
    assert side(YOLOV5S, FILTER_GRADIENT) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": (2, 2)},
        {"stride": (1, 2)},
        {"dilation": (2, 2)},
        {"groups": 2},
        {"kernel": (3, 5)},
        {"padding": (3, 3)},
        {"channels": (24, 64)},
        {"channels": (64, 20)},
        {"size": (5, 5)},  # too few pixels for the weights' transform
    ],
    ids=str,
)
def test_other_convolutions_are_direct(changes: dict[str, object]) -> None:
    case = replace(YOLOV5S, **changes)  # type: ignore[arg-type]
    assert [side(case, which) for which in range(3)] == [0, 0, 0]


def test_other_layouts_and_bfloat16_are_direct() -> None:
    assert side(YOLOV5S, FORWARD, channels_last=False) == 0
    assert side(YOLOV5S, FORWARD, bfloat16=True) == 0


@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.sampled_from([16, 32, 48]), st.sampled_from([16, 32, 80])),
    size=st.tuples(st.integers(24, 50), st.integers(24, 50)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_size_matches_numpy(
    batch: int, channels: tuple[int, int], size: tuple[int, int], padding: tuple[int, int], seed: int
) -> None:
    case = Case(batch, channels, size, (3, 3), padding=padding)
    check(case, draw_arrays(case, seed))


@pytest.mark.parametrize("name", ["3x3, tiles of 2", "3x3, tiles of 4"])
def test_every_pixel_and_weight_reaches_its_place(name: str) -> None:
    """One pixel and one weight that are not zero, at each corner and in the middle: results are exact products."""
    case = CASES[name]
    height, width = case.size
    for row, column, tap in ((0, 0, 4), (height - 1, width - 1, 4), (0, width - 1, 2), (height - 1, 0, 6), (17, 13, 0)):
        x, weight, dy = (np.zeros_like(array) for array in draw_arrays(case))
        x[0, 3, row, column] = 3.0
        weight[5, 3].flat[tap] = 2.0
        dy[0, 5, row, column] = 1.0
        for ours, exact in zip(results(case, (x, weight, dy)), direct(case, x, weight, dy), strict=True):
            np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6)


def test_images_of_a_batch_do_not_change_each_other() -> None:
    case = replace(CASES["3x3, tiles of 4"], batch=3)
    x, weight, dy = draw_arrays(case)
    together = results(case, (x, weight, dy))
    other = x.copy()
    other[:2] = 7.0
    changed = results(case, (other, weight, dy))
    assert np.array_equal(together[0][2], changed[0][2])
    assert not np.array_equal(together[0][0], changed[0][0])


@pytest.mark.parametrize("name", ["3x3, tiles of 2", "3x3, tiles of 4"])
def test_results_are_deterministic(name: str) -> None:
    arrays = draw_arrays(CASES[name])
    for one, two in zip(results(CASES[name], arrays), results(CASES[name], arrays), strict=True):
        assert np.array_equal(one, two)


def test_non_finite_pixel_stays_in_its_tile() -> None:
    """A direct convolution spreads the value over 3 x 3 outputs, a tile at most over its own outputs."""
    case = CASES["3x3, tiles of 4"]
    x, weight, dy = draw_arrays(case)
    x[0, 0, 20, 20] = np.nan
    y, _, weight_gradient = results(case, (x, weight, dy))
    bad = np.argwhere(~np.isfinite(y))
    assert np.isnan(y[0, :, 19:22, 19:22]).all()
    assert set(bad[:, 0]) == {0} and bad[:, 2:].min() >= 16 and bad[:, 2:].max() < 24
    assert np.isnan(weight_gradient[:, 0]).all()


def test_rounding_is_near_that_of_direct_convolution() -> None:
    """Root of the mean square error relative to that of the result, against float64."""
    case = replace(YOLOV5S, batch=1)
    x, weight, dy = draw_arrays(case)
    exact = direct(case, x, weight, dy)
    for ours, true in zip(results(case, (x, weight, dy)), exact, strict=True):
        assert np.sqrt(np.mean((ours - true) ** 2) / np.mean(true**2)) < 1.5e-6
