"""One rank of a job that computes the detection loss of a batch sharded over all ranks."""

import os
import sys

import numpy as np

from kernels.ops.detection_loss.function import detection_loss
from kernels.plugin import PluginMode, load_plugin
from kernels.runtime import Tensor, flow
from models.loss import fused_settings
from models.loss_config import LossConfig

IMAGES, CLASSES, ANCHORS = 5, 3, 2
SIZES = ((12, 16), (6, 8))


class _Loss(flow.nn.Module):
    def __init__(self, maps: list[Tensor], settings: Tensor) -> None:
        super().__init__()
        for level, raw_map in enumerate(maps):
            self.register_parameter(f"map{level}", flow.nn.Parameter(raw_map))
        self.register_buffer("settings", settings)
        self.register_buffer("balance", _replicated(flow.tensor([4.0, 1.0]), settings))
        self.register_buffer("scale", _replicated(flow.tensor([2.0]), settings))

    def maps(self) -> list[Tensor]:
        return [self.map0, self.map1]

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        return detection_loss(self.maps(), labels, self.settings, self.balance, self.scale)


def _replicated(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to_global(placement=like.placement, sbp=flow.sbp.broadcast) if like.is_global else tensor


class _DescentGraph(flow.nn.Graph):
    """A step of gradient descent with rate 1, which subtracts the gradient from each map."""

    def __init__(self, module: _Loss) -> None:
        super().__init__()
        self.module = module
        self.add_optimizer(flow.optim.SGD(module.maps(), lr=1.0))

    def build(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, parts = self.module(labels)
        total.backward()
        return total, parts


def _all_rows(tensor: Tensor) -> np.ndarray:
    if not tensor.is_global:
        return np.asarray(tensor.numpy())
    return np.asarray(tensor.to_global(placement=tensor.placement, sbp=flow.sbp.broadcast).to_local().numpy())


def main(mode: PluginMode) -> None:
    """Assert equality with the loss of the whole batch on a single rank."""
    load_plugin(mode)
    ranks = int(os.environ["WORLD_SIZE"])
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal((IMAGES, *size, ANCHORS * (5 + CLASSES))).astype(np.float32) for size in SIZES]
    labels = np.zeros((IMAGES, 16, 5), np.float32)
    labels[..., 0] = generator.integers(-1, CLASSES, (IMAGES, 16))
    labels[..., 1:] = generator.uniform(0.05, 0.9, (IMAGES, 16, 4))
    anchors = [[[1.25, 1.625], [2, 3.75]], [[1.875, 3.8125], [3.875, 2.8125]]]
    settings = flow.tensor(fused_settings(anchors, LossConfig()))
    alone = _Loss([flow.tensor(array) for array in arrays], settings)
    expected = alone(flow.tensor(labels))
    expected[0].backward()

    place = flow.placement("cpu", list(range(ranks)))
    replicated = {"placement": place, "sbp": flow.sbp.broadcast}
    split = {"placement": place, "sbp": flow.sbp.split(0)}

    def spread() -> _Loss:
        maps = [flow.tensor(array).to_global(**replicated).to_global(**split) for array in arrays]
        return _Loss(maps, settings.to_global(**replicated))

    given = flow.tensor(labels).to_global(**replicated).to_global(**split)
    eager, captured = spread(), spread()
    ours = eager(given)
    ours[0].backward()
    theirs = _DescentGraph(captured)(given)
    for index in range(2):
        np.testing.assert_allclose(_all_rows(ours[index]), expected[index].numpy(), rtol=1e-6)
        np.testing.assert_allclose(_all_rows(theirs[index]), expected[index].numpy(), rtol=1e-6)
    for level, array in enumerate(arrays):
        gradient = alone.maps()[level].grad.numpy()
        np.testing.assert_array_equal(_all_rows(eager.maps()[level].grad), gradient)
        np.testing.assert_array_equal(_all_rows(captured.maps()[level]), array - gradient)


if __name__ == "__main__":
    main(sys.argv[1])  # type: ignore[arg-type]
