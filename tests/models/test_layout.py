"""Channels first and channels last agree for every block: maps, running statistics, gradients."""

from typing import Any

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.plugin import load_plugin
from kernels.runtime import flow
from models import batch_norm
from models.batch_norm import BatchNorm2d
from models.layout import Layout
from models.network import DetectionModel
from models.spec import load_model_spec
from tests.models.every_block import EVERY_BLOCK


@pytest.fixture(autouse=True)
def plugin() -> None:
    load_plugin("require")


def trained(config: dict[str, Any], *, training: bool) -> dict[str, np.ndarray]:
    """Return the maps, running statistics and gradients of one step."""
    model = DetectionModel(load_model_spec(config), seed=0).train(training)
    images = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    maps = model(flow.tensor(images))
    noise = [np.random.default_rng(1).standard_normal(tuple(raw.shape)).astype(np.float32) for raw in maps]
    sum((raw * flow.tensor(part)).sum() for raw, part in zip(maps, noise, strict=True)).backward()
    return {
        **{f"map {number}": raw.numpy() for number, raw in enumerate(maps)},
        **{name: tensor.numpy() for name, tensor in model.named_buffers() if "running" in name},
        **{f"gradient of {name}": parameter.grad.numpy() for name, parameter in model.named_parameters()},
    }


@pytest.mark.parametrize("training", [True, False])
def test_channels_first_matches_channels_last(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**EVERY_BLOCK, "activation": "nn.SiLU()"}  # without kinks, at which rounding would choose another slope
    assert Layout.fastest_for(flow.zeros(1, 3, 8, 8), ActivationType.FLOAT32).channels_last
    last = trained(config, training=training)
    monkeypatch.setattr(Layout, "fastest_for", classmethod(lambda *_: Layout()))
    first = trained(config, training=training)
    assert first.keys() == last.keys()
    for name, value in last.items():
        size = float(np.linalg.norm(value))
        assert np.linalg.norm(first[name] - value) <= 2e-3 * size + 1e-3, name  # biases before a BatchNorm have none


def test_batch_norm_of_plain_ops_matches_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain ops are used without the plugin and for synchronised statistics."""
    values = (3 * np.random.default_rng(0).standard_normal((4, 5, 6, 7)) + 10).astype(np.float32)

    def once() -> list[np.ndarray]:
        norm, x = BatchNorm2d(5).train(), flow.tensor(values, requires_grad=True)
        y = norm(x)
        (y * flow.tensor(np.cos(values))).sum().backward()
        tensors = (y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
        return [tensor.numpy() for tensor in tensors]

    kernel = once()
    monkeypatch.setattr(batch_norm, "is_loaded", lambda: False)
    for plain, fused in zip(once(), kernel, strict=True):
        np.testing.assert_allclose(plain, fused, rtol=1e-4, atol=2e-5)
