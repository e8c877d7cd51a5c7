"""Channels-last layers: values and gradients against OneFlow's float64 kernels on the usual layout."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from kernels import channels_last
from kernels.channels_last import ConvolutionGeometry
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow

EPS, MOMENTUM = 1e-3, 0.03


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
    ours: Callable[..., Tensor], reference: Callable[..., Tensor], shapes: Sequence[Sequence[int]], seed: int = 3
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
    _assert_close(first(own.numpy()), exact.numpy())
    _assert_close(first(own_leaves[0].grad.numpy()), exact_leaves[0].grad.numpy())
    for own_leaf, exact_leaf in zip(own_leaves[1:], exact_leaves[1:], strict=True):
        _assert_close(own_leaf.grad.numpy(), exact_leaf.grad.numpy())


def _assert_close(own: np.ndarray, exact: np.ndarray) -> None:
    # Some 25 float32 roundings of the largest value.
    np.testing.assert_allclose(own, exact, rtol=0, atol=3e-6 * max(1.0, np.abs(exact).max()))


@pytest.mark.parametrize(
    ("channels", "kernel", "geometry"),
    [
        ((3, 16), (6, 6), ConvolutionGeometry((2, 2), (2, 2))),
        ((16, 32), (3, 3), ConvolutionGeometry((1, 1), (1, 1))),
        ((5, 7), (1, 3), ConvolutionGeometry((2, 1), (0, 1))),
        ((8, 12), (3, 3), ConvolutionGeometry((1, 1), (2, 2), (2, 2), 4)),
        ((6, 6), (3, 3), ConvolutionGeometry((1, 1), (1, 1), (1, 1), 6)),
        ((16, 24), (1, 1), ConvolutionGeometry()),
    ],
)
def test_convolution(channels: tuple[int, int], kernel: tuple[int, int], geometry: ConvolutionGeometry) -> None:
    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return flow.nn.functional.conv2d(
            x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        )

    shapes = [(2, channels[0], 12, 10), (channels[1], channels[0] // geometry.groups, *kernel)]
    assert_equal_layers(lambda x, w: channels_last.convolution(x, w, geometry), reference, shapes)


def test_pointwise_convolution_of_many_pixels() -> None:
    """The gradient of the filter is then summed by several threads."""
    shapes = [(3, 20, 40, 44), (9, 20, 1, 1)]
    assert_equal_layers(
        lambda x, w: channels_last.convolution(x, w, ConvolutionGeometry()),
        lambda x, w: flow.nn.functional.conv2d(x, w, None, 1, 0),
        shapes,
    )


@pytest.mark.parametrize("channels", [16, 48, 5, 21])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("silu", [True, False])
def test_batch_norm(channels: int, training: bool, silu: bool) -> None:
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

    assert_equal_layers(ours, reference, [(3, channels, 9, 7), (channels,), (channels,)])
    _assert_close(running[0].numpy(), running[2].numpy())
    _assert_close(running[1].numpy(), running[3].numpy())
    assert np.array_equal(running[0].numpy(), start.astype(np.float32)) != training


@pytest.mark.parametrize("factor", [2, 3])
def test_magnify(factor: int) -> None:
    def reference(x: Tensor) -> Tensor:
        return flow._C.upsample_nearest_2d(
            x, height_scale=factor, width_scale=factor, output_size=None, data_format="channels_first"
        )

    assert_equal_layers(lambda x: channels_last.magnify(x, factor), reference, [(2, 5, 4, 3)])


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
