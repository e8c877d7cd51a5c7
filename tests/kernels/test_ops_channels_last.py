"""Channels-last layers: values and gradients against OneFlow's float64 kernels on the usual layout."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernels.channels_last import ConvolutionGeometry

from kernels import channels_last
from kernels.framework import dispatch
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow

EPS, MOMENTUM = 1e-3, 0.03
# Of the largest value: some 25 float32 roundings, and four of bfloat16 (input, factors, gradient, output).
FLOAT32_BOUND, BFLOAT16_BOUND = 3e-6, 4 * 2**-8


@pytest.fixture(autouse=True, scope="module")
def _plugin() -> None:
    load_plugin("require")


def last(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1))


def first(values: np.ndarray) -> np.ndarray:
    return values.transpose(0, 3, 1, 2)


def leaf(values: np.ndarray) -> Tensor:
    return flow.tensor(values, requires_grad=True)


def assert_equal_layers(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    shapes: Sequence[Sequence[int]],
    seed: int = 3,
    bound: float = FLOAT32_BOUND,
) -> None:
    """Both layers on the same random inputs (the first is an activation), and the gradients of a weighted sum."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    exact_leaves = [leaf(values.astype(np.float64)) for values in inputs]
    own_leaves = [leaf(last(inputs[0])), *(leaf(values) for values in inputs[1:])]
    exact, own = reference(*exact_leaves), ours(*own_leaves)
    weights = rng.standard_normal(exact.shape).astype(np.float32)
    (exact * flow.tensor(weights.astype(np.float64))).sum().backward()
    (own * flow.tensor(last(weights))).sum().backward()
    _assert_close(first(own.numpy()), exact.numpy(), bound)
    _assert_close(first(own_leaves[0].grad.numpy()), exact_leaves[0].grad.numpy(), bound)
    for own_leaf, exact_leaf in zip(own_leaves[1:], exact_leaves[1:], strict=True):
        _assert_close(own_leaf.grad.numpy(), exact_leaf.grad.numpy(), bound)


def assert_equal(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    shapes: Sequence[Sequence[int]],
    *,
    bfloat16: bool,
) -> None:
    if bfloat16:
        assert_equal_layers(in_bfloat16(ours), reference, shapes, bound=BFLOAT16_BOUND)
    else:
        assert_equal_layers(ours, reference, shapes)


def in_bfloat16(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The layer on a bfloat16 activation; its result must be one too."""

    def layer_of_rounded(x: Tensor, *parameters: Tensor) -> Tensor:
        y = layer(x.to(flow.bfloat16), *parameters)
        assert y.dtype == flow.bfloat16
        return y.to(flow.float32)

    return layer_of_rounded


def _assert_close(own: np.ndarray, exact: np.ndarray, bound: float = FLOAT32_BOUND) -> None:
    np.testing.assert_allclose(own, exact, rtol=0, atol=bound * max(1.0, np.abs(exact).max()))


@pytest.mark.parametrize("channels", [16, 48, 5, 21])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_batch_norm(channels: int, training: bool, silu: bool, bfloat16: bool) -> None:
    start = np.linspace(0.5, 2, channels)
    running = [flow.tensor(start.astype(dtype)) for dtype in (np.float32, np.float32, np.float64, np.float64)]

    def reference(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y = flow._C.normalization(
            x, running[2], running[3], gamma, beta, axis=1, epsilon=EPS, momentum=MOMENTUM, is_training=training
        )
        return flow.nn.functional.silu(y) if silu else y

    def ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return channels_last.batch_norm(
            x, gamma, beta, running[0], running[1], eps=EPS, momentum=MOMENTUM, training=training, silu=silu
        )

    assert_equal(ours, reference, [(3, channels, 9, 7), (channels,), (channels,)], bfloat16=bfloat16)
    bound = BFLOAT16_BOUND if bfloat16 else FLOAT32_BOUND
    _assert_close(running[0].numpy(), running[2].numpy(), bound)
    _assert_close(running[1].numpy(), running[3].numpy(), bound)
    assert np.array_equal(running[0].numpy(), start.astype(np.float32)) != training


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("factor", [2, 3])
def test_magnify(factor: int, bfloat16: bool) -> None:
    def reference(x: Tensor) -> Tensor:
        return flow._C.upsample_nearest_2d(
            x, height_scale=factor, width_scale=factor, output_size=None, data_format="channels_first"
        )

    assert_equal(lambda x: channels_last.magnify(x, factor), reference, [(2, 5, 4, 3)], bfloat16=bfloat16)


def test_max_pool_gives_ties_the_gradient_once() -> None:
    # Magnified values tie; every duplicate belongs to one source cell, whoever wins.
    assert_equal_layers(
        lambda x: channels_last.max_pool(channels_last.magnify(x, 2), 5, 1, 2),
        lambda x: flow.nn.functional.max_pool2d(
            flow._C.upsample_nearest_2d(
                x, height_scale=2.0, width_scale=2.0, output_size=None, data_format="channels_first"
            ),
            5,
            1,
            2,
        ),
        [(2, 17, 6, 5)],
    )


def _no_images(*axes: int) -> Tensor:
    return flow.zeros(0, *axes, requires_grad=True)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_no_images_leaves_the_running_statistics(training: bool, silu: bool) -> None:
    x, parameters = _no_images(8, 6, 3), [leaf(np.ones(3, np.float32)) for _ in range(2)]
    running = [flow.tensor([1.0, 2.0, 3.0]) for _ in range(2)]
    y = channels_last.batch_norm(x, *parameters, *running, eps=EPS, momentum=MOMENTUM, training=training, silu=silu)
    y.sum().backward()
    assert tuple(y.shape) == tuple(x.grad.shape) == (0, 8, 6, 3)
    assert not any(parameter.grad.numpy().any() for parameter in parameters)
    assert [tensor.numpy().tolist() for tensor in running] == [[1.0, 2.0, 3.0]] * 2


def test_max_pool_and_magnification_of_no_images() -> None:
    x = _no_images(8, 6, 3)
    y = channels_last.magnify(channels_last.max_pool(x, 2, 2, 0), 3)
    y.sum().backward()
    assert tuple(y.shape) == (0, 12, 9, 3)
    assert tuple(x.grad.shape) == (0, 8, 6, 3)


def test_halves_of_a_tensor_that_has_no_two_rows_are_refused() -> None:
    op = dispatch.build_op("graph_train_halves", (("in", 1), ("like", 1)), outputs=2)
    rows = dispatch.call_pair(op, flow.tensor([[1.0, 2.0], [3.0, 4.0]]), flow.zeros(2))
    assert [row.numpy().tolist() for row in rows] == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(RuntimeError, match="At\\(0\\) == 2"):
        dispatch.call_pair(op, flow.zeros(3, 4), flow.zeros(4))


def test_graph_equals_eager_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    image, weight = rng.random((2, 20, 24, 3)).astype(np.float32), rng.standard_normal((16, 3, 3, 3)).astype(np.float32)

    class Layers(flow.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = flow.nn.Parameter(flow.tensor(weight))
            self.norm = flow.nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            def plain(value: Tensor) -> Tensor:
                return value if isinstance(value, flow.Tensor) else value.to(flow.Tensor)

            y = channels_last.convolution(x, plain(self.weight), ConvolutionGeometry((2, 2), (1, 1)))
            norm = [plain(getattr(self.norm, name)) for name in ("weight", "bias", "running_mean", "running_var")]
            y = channels_last.batch_norm(y, *norm, eps=EPS, momentum=MOMENTUM, training=True, silu=True)
            return channels_last.max_pool(channels_last.magnify(y, 2), 5, 1, 2)

    def train(graph: bool) -> list[np.ndarray]:
        layers = Layers()
        optimizer = flow.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9)

        class Step(flow.nn.Graph):
            def __init__(self) -> None:
                super().__init__()
                self.layers = layers
                self.add_optimizer(optimizer)

            def build(self, x: Tensor) -> Tensor:
                loss = (self.layers(x) ** 2).mean()
                loss.backward()
                return loss

        def eager(x: Tensor) -> Tensor:
            loss = (layers(x) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        step = Step() if graph else eager
        losses = [step(flow.tensor(image)).numpy() for _ in range(4)]
        return [*losses, layers.weight.numpy(), layers.norm.running_mean.numpy(), layers.norm.running_var.numpy()]

    for in_graph, in_eager in zip(train(True), train(False), strict=True):
        assert in_graph.tobytes() == in_eager.tobytes()


_UINT32 = st.integers(0, 2**32 - 1)


@given(st.lists(_UINT32, min_size=1, max_size=40))
@example([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFF800001, 1, 0x8000, 0x80000000])
def test_bfloat16_is_the_nearest_float_of_eight_bits(bits: list[int]) -> None:
    """Ties to even; beyond the largest comes infinity, NaN stays NaN. What comes back is the same number."""
    values = np.array(bits, np.uint32).view(np.float32)
    got = flow.tensor(values).to(flow.bfloat16).to(flow.float32).numpy()
    below = (np.array(bits, np.uint32) & np.uint32(0xFFFF0000)).astype(np.uint64)
    above = below + 0x10000
    rest = np.array(bits, np.uint64) & 0xFFFF
    up = (rest > 0x8000) | ((rest == 0x8000) & ((below >> 16) & 1 == 1))
    expected = np.where(up, above, below).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(got, np.where(np.isnan(values), np.float32("nan"), expected))


@pytest.mark.parametrize("width", [1, 16, 33])
def test_bfloat16_sums_and_joins(width: int) -> None:
    rng = np.random.default_rng(width)
    arrays = [rng.standard_normal((2, 3, 5, width)).astype(np.float32) for _ in range(3)]
    rounded = [flow.tensor(values).to(flow.bfloat16) for values in arrays]
    exact = [x.to(flow.float32).numpy() for x in rounded]
    joined = flow.cat(rounded, dim=3)
    np.testing.assert_array_equal(joined.to(flow.float32).numpy(), np.concatenate(exact, axis=3))
    parts = flow.split(joined, [width] * 3, dim=3)
    for part, values in zip(parts, exact, strict=True):
        np.testing.assert_array_equal(part.to(flow.float32).numpy(), values)
    once = flow.tensor(exact[0] + exact[1]).to(flow.bfloat16).to(flow.float32).numpy()
    np.testing.assert_array_equal((rounded[0] + rounded[1]).to(flow.float32).numpy(), once)


def test_statistics_of_a_channel_with_nan_are_nan() -> None:
    x = np.ones((2, 3, 3, 2), np.float32)
    x[0, 0, 0, 1] = np.nan
    running = [flow.zeros(2), flow.ones(2)]
    channels_last.batch_norm(
        flow.tensor(x), flow.ones(2), flow.zeros(2), *running, eps=EPS, momentum=MOMENTUM, training=True, silu=False
    )
    for statistic in running:
        assert np.isnan(statistic.numpy()).tolist() == [False, True]
