from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.framework.module_graph import gradients_of
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow
from models.complexity import measure
from models.layers import get_attribute
from models.network import DetectionModel
from models.spec import ModelSpec, load_model_spec
from tests.bfloat16 import in_bfloat16
from tests.models.every_block import EVERY_BLOCK

TINY: dict[str, Any] = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 2, "C3", [8]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[[1, 2], 1, "Detect", ["nc", "anchors"]]],
}


def _images(side: int = 32, batch: int = 2) -> Tensor:
    return flow.tensor(np.random.default_rng(0).random((batch, 3, side, side), dtype=np.float32))


def _weights(model: DetectionModel) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


class _Trained(flow.nn.Graph):
    """A graph that returns maps, and gradients of their mean square."""

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.config._train(True)

    def build(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps = self.model(images)
        return maps, gradients_of(_loss(maps), [get_attribute(self.model, name) for name in self.names])


def _loss(maps: list[Tensor]) -> Tensor:
    return (maps[0] * maps[0]).mean() + (maps[1] * maps[1]).mean()


def test_every_block_trains_and_graph_matches_eager() -> None:
    assert_every_block_trains()


def test_every_block_trains_in_bfloat16() -> None:
    """Include blocks without a bfloat16 implementation; graph matches eager there, too."""
    exact, _ = assert_every_block_trains()
    maps, _ = assert_every_block_trains(in_bfloat16)
    assert 1e-4 < max(_distance(*pair) for pair in zip(maps, exact, strict=True)) < 0.05


@pytest.mark.parametrize("activation", ["nn.SiLU()", "nn.Mish()"])
@pytest.mark.parametrize("kind", ["DWConv", "Bottleneck", "C3", "GhostBottleneck", "BottleneckCSP", "C3x", "C3TR"])
def test_bfloat16_gradients_are_close(kind: str, activation: str) -> None:
    """Test one block at a time, without kinked activations, so that differences come from rounding only."""
    spec = load_model_spec(
        {
            "nc": 2,
            "anchors": [[10, 13, 16, 30]],
            "activation": activation,
            "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, kind, [16]]],
            "head": [[[-1], 1, "Detect", ["nc", "anchors"]]],
        }
    )

    def gradients(model: DetectionModel) -> dict[str, np.ndarray]:
        model.train()
        (raw,) = model(_images(64, 8))
        # A loss that is linear in the maps would depend on little but their biases, which BatchNorm removes.
        noise = np.random.default_rng(1).standard_normal(tuple(raw.shape)).astype(np.float32)
        (raw * flow.tensor(noise)).sum().backward()
        return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    load_plugin("require")
    exact = gradients(DetectionModel(spec, seed=3))
    rounded = gradients(in_bfloat16(DetectionModel(spec, seed=3)))
    longest = max(float(np.linalg.norm(gradient)) for gradient in exact.values())
    significant = [name for name, gradient in exact.items() if np.linalg.norm(gradient) > 1e-3 * longest]
    distances = {name: _distance(rounded[name], exact[name]) for name in significant}
    assert 1e-4 < max(distances.values()) < 0.1, distances


def _distance(values: np.ndarray, exact: np.ndarray) -> float:
    """Return the L2 norm of the difference relative to that of the exact values."""
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


def assert_every_block_trains(
    prepared: Callable[[DetectionModel], DetectionModel] = lambda model: model,
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    spec = load_model_spec(EVERY_BLOCK)
    assert spec.strides == (2, 4)
    model = prepared(DetectionModel(spec, seed=3)).train()
    before = {name: flow.tensor(value) for name, value in _weights(model).items()}
    maps = model(_images())
    assert [tuple(raw.shape) for raw in maps] == [(2, 2, 16, 16, 7), (2, 2, 8, 8, 7)]
    _loss(maps).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert all(np.isfinite(value).all() and np.abs(value).max() > 0 for value in gradients.values())
    after = _weights(model)
    model.load_state_dict(before)
    graph_maps, graph_gradients = _Trained(model)(_images())
    for eager, graph in zip(maps, graph_maps, strict=True):
        np.testing.assert_array_equal(eager.numpy(), graph.numpy())
    for (name, eager_gradient), graph_gradient in zip(gradients.items(), graph_gradients, strict=True):
        np.testing.assert_array_equal(eager_gradient, graph_gradient.numpy(), err_msg=name)
    for name, value in _weights(model).items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    return [raw.numpy() for raw in maps], gradients


def test_seed_determines_weights() -> None:
    spec = load_model_spec(TINY)
    first, again, other = (_weights(DetectionModel(spec, seed=seed)) for seed in (7, 7, 8))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["model.0.conv.weight"], other["model.0.conv.weight"])


def test_initial_values_match_reference() -> None:
    model = DetectionModel(load_model_spec("yolov5n"), seed=0)
    weights = _weights(model)
    # Uniform within 1 / sqrt(fan in): variance bound^2 / 3.
    for name in ("model.6.m.0.cv2.conv.weight", "model.24.m.2.weight"):
        bound = 1 / np.sqrt(weights[name][0].size)
        assert np.abs(weights[name]).max() <= bound
        assert weights[name].std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert set(np.unique(weights["model.0.bn.weight"])) == {1.0}
    norm = model.model[0].bn
    assert (norm.eps, norm.momentum) == (1e-3, 0.03)
    for level, stride in enumerate((8, 16, 32)):
        bias = weights[f"model.24.m.{level}.bias"].reshape(3, 85)
        bound = 1 / np.sqrt((64, 128, 256)[level])
        np.testing.assert_allclose(bias[:, 4], np.log(8 / (640 / stride) ** 2), atol=bound)
        np.testing.assert_allclose(bias[:, 5:], np.log(0.6 / (80 - 0.99999)), atol=bound)
        assert np.abs(bias[:, :4]).max() <= bound


def _one_cell_network() -> DetectionModel:
    config = {
        "nc": 1,
        "anchors": [[10, 20]],
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]],
        "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
    }
    return DetectionModel(load_model_spec(config))


def test_decode_known_values() -> None:
    model = _one_cell_network()
    raw = np.zeros((1, 1, 2, 3, 6), np.float32)
    raw[0, 0, 1, 2] = [np.log(3), 0, np.log(3), 0, np.log(3), -np.log(3)]
    decoded = model.decode([flow.tensor(raw)]).numpy()[0]
    assert decoded.shape == (6, 6)
    # sigmoid(0) = 1/2: the cell's centre, and the anchor itself.
    np.testing.assert_allclose(decoded[0], [2, 2, 10, 20, 0.5, 0.5], atol=1e-5)
    # sigmoid(log 3) = 3/4: x = (2 * 3/4 - 1/2 + 2) * 4 = 12, y = (1 - 1/2 + 1) * 4 = 6; w = (2 * 3/4)^2 * 10 = 22.5.
    np.testing.assert_allclose(decoded[5], [12, 6, 22.5, 20, 0.75, 0.25], atol=1e-5)


def test_anchors_can_be_replaced() -> None:
    model = _one_cell_network()
    np.testing.assert_allclose(model.anchors_cells, [[[2.5, 5]]])
    model.set_anchors_px([[[8, 12]]])
    np.testing.assert_allclose(model.anchors_cells, [[[2, 3]]])
    np.testing.assert_allclose(_weights(model)["model.2.anchors"], [[[2, 3]]])
    with pytest.raises(ValueError, match=r"anchors of shape \(1, 2, 2\)"):
        model.set_anchors_px([[[8, 12], [1, 1]]])


def test_sppf_matches_spp_of_5_9_13() -> None:
    def spec(kind: str) -> ModelSpec:
        return load_model_spec(
            {
                "nc": 1,
                "anchors": 1,
                "backbone": [[-1, 1, kind, [8]], [-1, 1, "Conv", [8]]],
                "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
            }
        )

    chained, parallel = DetectionModel(spec("SPPF"), seed=1).eval(), DetectionModel(spec("SPP"), seed=1).eval()
    with flow.no_grad():
        np.testing.assert_array_equal(chained(_images(20))[0].numpy(), parallel(_images(20))[0].numpy())


def test_attention_matches_formula() -> None:
    from models.attention import MultiheadAttention

    generator = np.random.default_rng(1)
    tokens, batch, channels, heads = 5, 2, 8, 4
    attention = MultiheadAttention(channels, heads)
    shapes = {"in_proj_weight": (24, 8), "in_proj_bias": (24,), "out_proj.weight": (8, 8), "out_proj.bias": (8,)}
    values = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    attention.load_state_dict({name: flow.tensor(value) for name, value in values.items()})
    query, key, value = generator.standard_normal((3, tokens, batch, channels)).astype(np.float32)
    got = attention(flow.tensor(query), flow.tensor(key), flow.tensor(value)).numpy()

    parts = zip(
        (query, key, value), np.split(values["in_proj_weight"], 3), np.split(values["in_proj_bias"], 3), strict=True
    )
    q, k, v = (x @ weight.T + bias for x, weight, bias in parts)
    expected = np.zeros_like(got)
    for image in range(batch):
        for head in range(heads):
            own = slice(2 * head, 2 * head + 2)
            scores = q[:, image, own] @ k[:, image, own].T / np.sqrt(2)
            mixing = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            expected[:, image, own] = mixing @ v[:, image, own]
    expected = expected @ values["out_proj.weight"].T + values["out_proj.bias"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_focus_channel_order_matches_reference() -> None:
    from models.blocks import Focus

    focus = Focus(1, 4, activation=flow.nn.Identity())
    focus.conv.conv.weight.data.copy_(flow.tensor(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)))
    image = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    with flow.no_grad():
        corners = focus.eval()(flow.tensor(image)).numpy().ravel() * np.sqrt(1 + 1e-3)
    # Upper left, lower left, upper right, lower right.
    np.testing.assert_allclose(corners, [0, 2, 1, 3], atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 20.0])
def test_batch_norm_is_accurate_with_large_mean(mean: float) -> None:
    from models.batch_norm import BatchNorm2d

    x = (np.random.default_rng(0).standard_normal((2, 3, 40, 40)) + mean).astype(np.float32)
    norm = BatchNorm2d(3).train()
    got = norm(flow.tensor(x)).numpy()
    exact = x.astype(np.float64)
    centre, variance = exact.mean((0, 2, 3)), exact.var((0, 2, 3))
    expected = (exact - centre[:, None, None]) / np.sqrt(variance + 1e-3)[:, None, None]
    np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.03 * centre, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.97 + 0.03 * variance * 3200 / 3199, rtol=1e-5)


def test_batch_norm_gradient_matches_finite_differences() -> None:
    from models.batch_norm import BatchNorm2d

    generator = np.random.default_rng(4)
    x = generator.standard_normal((2, 2, 3, 3)).astype(np.float32)
    weights = generator.standard_normal(x.shape)
    norm = BatchNorm2d(2).train()
    tensor = flow.tensor(x, requires_grad=True)
    (norm(tensor) * flow.tensor(weights.astype(np.float32))).sum().backward()

    def loss(values: np.ndarray) -> float:
        centred = values - values.mean((0, 2, 3), keepdims=True)
        return float((centred / np.sqrt((centred**2).mean((0, 2, 3), keepdims=True) + 1e-3) * weights).sum())

    expected = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-5
        expected[index] = (loss(x + step) - loss(x - step)) / 2e-5
    np.testing.assert_allclose(tensor.grad.numpy(), expected, atol=1e-4)


def test_num_batches_tracked_is_counted() -> None:
    model = DetectionModel(load_model_spec(TINY)).train()
    for _ in range(3):
        model(_images())
        model.count_batch()
    counts = {int(value) for name, value in _weights(model).items() if name.endswith("num_batches_tracked")}
    assert counts == {3}


def test_fused_network_matches_unfused() -> None:
    model = DetectionModel(load_model_spec(EVERY_BLOCK), seed=5)
    model.train()
    for _ in range(3):
        model(_images())
    model.eval()
    with flow.no_grad():
        before = [raw.numpy() for raw in model(_images())]
        after = [raw.numpy() for raw in model.fuse()(_images())]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # BottleneckCSP's own norm follows a concatenation, so it stays; a second call changes nothing.
    assert [name for name in _weights(model) if "bn" in name.split(".")] == [
        f"model.6.bn.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    model.fuse()


def test_complexity_known_values() -> None:
    model = _one_cell_network()
    size = measure(model, image_px=64)
    # Convolution 3->8, 3x3, on 32x32 cells; 8->8 on 16x16; head 8->6, 1x1, on 16x16.
    macs = [3 * 8 * 9 * 32 * 32, 8 * 8 * 9 * 16 * 16, 8 * 6 * 16 * 16]
    assert [row.macs for row in size.layers] == macs
    assert size.flops == 2 * sum(macs) + 8 * (8 * 32 * 32 + 8 * 16 * 16)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(str(size).splitlines()) == 1 + 3 + 1


def test_custom_yaml_with_every_block(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    rows = {part: "".join(f"  - {row}\n" for row in EVERY_BLOCK[part]) for part in ("backbone", "head")}
    path.write_text(
        f"nc: 2\nanchors: {EVERY_BLOCK['anchors']}\nactivation: nn.LeakyReLU(0.1)\n"
        f"backbone:\n{rows['backbone']}head:\n{rows['head']}"
    )
    spec = load_model_spec(path)
    assert [layer.arguments for layer in spec.layers] == [
        layer.arguments for layer in load_model_spec(EVERY_BLOCK).layers
    ]
    assert DetectionModel(spec).stride == (2, 4)


def test_first_layer_may_take_image_repeatedly() -> None:
    """Four copies of the image give the same result with weights split in four, as in the reference."""

    def convolved(rows: list[list[Any]]) -> np.ndarray:
        backbone = [*rows, [-1, 1, "Conv", [8, 3, 2]]]
        head = [[-1, 1, "Detect", ["nc", "anchors"]]]
        model = DetectionModel(load_model_spec({**TINY, "anchors": [[10, 13]], "backbone": backbone, "head": head}))
        weight = model.model[len(rows)].conv.weight
        part = flow.tensor(np.random.default_rng(0).random((8, 3, 3, 3), dtype=np.float32))
        with flow.no_grad():
            weight.copy_(flow.cat([part / (weight.shape[1] // 3)] * (weight.shape[1] // 3), dim=1))
        return model.eval().features(_images())[-1].numpy()

    joined, single = convolved([[[-1] * 4, 1, "Concat", [1]]]), convolved([])
    np.testing.assert_allclose(joined, single, rtol=1e-4, atol=1e-5)  # sums of 108 products in another order
