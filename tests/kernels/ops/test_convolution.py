"""Our convolution on (B, H, W, C) against NumPy float64, with plain and packed weights."""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kernels.ops.convolution.function import ConvolutionGeometry, convolution
from kernels.plugin import emulates_cuda, plugin_library
from kernels.runtime import Tensor, flow
from tests.kernels.ops.convolution_reference import CASES, Array, Case, direct, draw_arrays, gradients_in_graph

SUMS = 2e-6
"""Error bound relative to the sum of absolute products: about 16 roundings of float32, as sums are computed in
blocks."""
ROUNDING = {"float32": 2**-24, "bfloat16": 2**-8, "float16": 2**-11}
"""Half a unit in the last place of the result."""
Results = tuple[Array, Array, Array]


def skip_unless_supported(dtype: str, packed: bool) -> None:
    if emulates_cuda() or dtype == "float32":
        return
    if packed or dtype == "float16":
        pytest.skip("16-bit weights and float16 are for CUDA")


def geometry_of(case: Case) -> ConvolutionGeometry:
    return ConvolutionGeometry(case.stride, case.padding, case.dilation, case.groups)


def exact_inputs(case: Case) -> Results:
    """Return input, weights and gradient of the output: multiples of 1/16 up to 4, exact in every type."""
    random = np.random.default_rng(0)
    x, weight, dy = (random.integers(-64, 65, array.shape) / 16 for array in draw_arrays(case))
    return x, weight, dy


def layer_of(case: Case, dtype: str, packed: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the layer as a function of float32 input (B, H, W, C) and float32 weights."""
    kind = getattr(flow, dtype)

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        y = convolution(x.to(kind), weight.to(kind) if packed else weight, geometry_of(case), packed=packed)
        assert y.dtype == kind
        return y.to(flow.float32)

    return layer


def leaves(arrays: Results, packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, dy = (array.astype(np.float32) for array in arrays)
    weight = weight.transpose(0, 2, 3, 1) if packed else weight
    x, dy = x.transpose(0, 2, 3, 1), dy.transpose(0, 2, 3, 1)
    made = [flow.tensor(np.ascontiguousarray(array)) for array in (x, weight, dy)]
    return made[0], made[1], made[2]


def channels_first(outputs: list[Array], packed: bool) -> list[Array]:
    y, dx, dw = outputs
    return [y.transpose(0, 3, 1, 2), dx.transpose(0, 3, 1, 2), dw.transpose(0, 3, 1, 2) if packed else dw]


def eager(case: Case, arrays: Results, dtype: str, packed: bool) -> list[Array]:
    """Return the output and gradients of x and of the weights."""
    x, weight, dy = leaves(arrays, packed)
    x.requires_grad_(True)
    weight.requires_grad_(True)
    y = layer_of(case, dtype, packed)(x, weight)
    y.backward(dy)
    return [y.detach().numpy(), x.grad.numpy(), weight.grad.numpy()]


@pytest.mark.parametrize(("dtype", "packed"), list(product(ROUNDING, [False, True])))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_matches_numpy(case: Case, dtype: str, packed: bool) -> None:
    skip_unless_supported(dtype, packed)
    if dtype == "float16" and not packed:
        pytest.skip("float16 has packed weights")
    arrays = exact_inputs(case)
    got = channels_first(eager(case, arrays, dtype, packed), packed)
    sizes = direct(case, *(np.abs(array) for array in arrays))
    # The gradient of weights that are not packed is float32.
    roundings = [ROUNDING[dtype], ROUNDING[dtype], ROUNDING[dtype if packed else "float32"]]
    for name, ours, exact, size, rounding in zip(
        ("y", "dx", "dw"), got, direct(case, *arrays), sizes, roundings, strict=True
    ):
        assert ours.shape == exact.shape
        assert np.all(np.abs(ours - exact) <= SUMS * size + rounding * np.abs(exact)), name


@pytest.mark.parametrize("packed", [False, True])
def test_float32_inputs_are_not_rounded(packed: bool) -> None:
    case = CASES["3x3, stride 2"]
    arrays = draw_arrays(case)
    got = channels_first(eager(case, arrays, "float32", packed), packed)
    sizes = direct(case, *(np.abs(array) for array in arrays))
    for ours, exact, size in zip(got, direct(case, *arrays), sizes, strict=True):
        assert np.all(np.abs(ours - exact) <= SUMS * size)


@pytest.mark.parametrize(
    ("width", "workspace", "deterministic", "warning"),
    [
        (19, 300 << 20, 1, ""),
        (21, 1000, 0, "no deterministic algorithm"),
        (23, 300 << 20, 0, "no deterministic"),
        (25, 1 << 62, 1, "not enough memory"),
    ],
)
def test_best_cudnn_algorithm_is_chosen(
    width: int, workspace: int, deterministic: int, warning: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Little workspace and fixed order of sums are preferred; there may be no such algorithm, or no memory for it."""
    if not emulates_cuda():
        pytest.skip("of the emulated cuDNN")
    case = replace(CASES["3x3, stride 2"], size=(7, width))  # of its own: algorithms are kept
    offer = plugin_library().graph_train_emulated_cudnn_offers
    offer(ctypes.c_uint64(workspace), deterministic)
    try:
        arrays = draw_arrays(case)
        got = channels_first(eager(case, arrays, "float32", packed=True), packed=True)
    finally:
        offer(ctypes.c_uint64(1000), 1)
    sizes = direct(case, *(np.abs(array) for array in arrays))
    for ours, exact, size in zip(got, direct(case, *arrays), sizes, strict=True):
        assert np.all(np.abs(ours - exact) <= SUMS * size)
    printed = capfd.readouterr().err
    assert warning in printed and (warning or not printed)


@pytest.mark.parametrize(
    ("dtype", "packed"), [("float32", False), ("float32", True), ("bfloat16", True), ("float16", True)]
)
@pytest.mark.parametrize("name", ["1x1", "3x3, groups", "3x3, tiles of 2", "3x3, tiles of 4", "first layer"])
def test_graph_matches_eager_bitwise(name: str, dtype: str, packed: bool) -> None:
    skip_unless_supported(dtype, packed)
    case, arrays = CASES[name], exact_inputs(CASES[name])
    x, weight, dy = leaves(arrays, packed)
    outputs = gradients_in_graph(layer_of(case, dtype, packed), x, weight, dy)
    for compiled, one in zip(outputs, eager(case, arrays, dtype, packed), strict=True):
        assert np.array_equal(compiled.numpy(), one)


@pytest.mark.parametrize("packed", [False, True])
def test_empty_batch_has_empty_output_and_zero_gradient(packed: bool) -> None:
    x = flow.zeros(0, 8, 6, 3, requires_grad=True)
    weight = flow.ones(4, 3, 1, 1) if not packed else flow.ones(4, 1, 1, 3)
    weight.requires_grad_(True)
    y = convolution(x, weight, ConvolutionGeometry(), packed=packed)
    y.sum().backward()
    assert tuple(y.shape) == (0, 8, 6, 4)
    assert tuple(x.grad.shape) == (0, 8, 6, 3)
    assert not weight.grad.numpy().any()


@pytest.mark.parametrize(
    ("weight", "kind", "packed", "message"),
    [
        ((4, 3, 5, 6), "float32", False, r"weight \(4, 3, 5, 6\), 1 groups, packed=False: must be .* \(O, I / groups"),
        ((4, 6, 3, 5), "float32", True, r"packed=True: must be .* and \(O, KH, KW, I / groups\)"),
        ((4, 6, 3), "float32", False, "must be"),
        ((4, 6, 3, 5), "bfloat16", False, r"the weight is oneflow.bfloat16, must be oneflow.float32"),
        ((4, 3, 5, 6), "bfloat16", True, r"the weight is oneflow.bfloat16, must be oneflow.float32"),
    ],
)
def test_weights_in_wrong_order_raise(weight: tuple[int, ...], kind: str, packed: bool, message: str) -> None:
    x, weights = flow.ones(2, 8, 8, 6), flow.ones(*weight).to(getattr(flow, kind))
    with pytest.raises(ValueError, match=message):
        convolution(x, weights, ConvolutionGeometry(), packed=packed)


def test_packed_weights_use_cudnn() -> None:
    if not emulates_cuda():
        pytest.skip("counts what the emulated device is asked for")
    library = plugin_library()
    library.graph_train_cuda_counts.restype = ctypes.c_char_p
    case = CASES["3x3"]
    for packed, calls in ((False, 0), (True, 1)):
        library.graph_train_cuda_reset_counts()
        eager(case, exact_inputs(case), "float32", packed)
        counts = dict(line.rsplit(" ", 1) for line in library.graph_train_cuda_counts().decode().splitlines())
        passes = ("cudnn_forward", "cudnn_data_gradient", "cudnn_filter_gradient")
        assert [int(counts.get(name, 0)) for name in passes] == [calls] * 3
