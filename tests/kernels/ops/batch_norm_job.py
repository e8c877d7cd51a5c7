"""One rank of synchronised BatchNorm on a sharded batch; results go to a file.

`python -m tests.kernels.ops.batch_norm_job OUT.npz MODE`, with or without the environment of torchrun.
"""

import os
import sys

import numpy as np

from kernels.ops.batch_norm.function import synchronised_batch_norm
from kernels.plugin import PluginMode, load_plugin
from kernels.runtime import Tensor, flow

CHANNELS = 12


class Layer(flow.nn.Module):
    """BatchNorm with SiLU."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        for name in ("gamma", "beta"):
            values = flow.tensor(rng.standard_normal(CHANNELS).astype(np.float32))
            self.register_parameter(name, flow.nn.Parameter(values))
        self.register_buffer("mean", flow.zeros(CHANNELS))
        self.register_buffer("variance", flow.ones(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        proxies = (getattr(self, name) for name in ("gamma", "beta", "mean", "variance"))
        states = [one if isinstance(one, flow.Tensor) else one.to(flow.Tensor) for one in proxies]
        return synchronised_batch_norm(x, *states, eps=1e-3, momentum=0.03, silu=True)


class Network(flow.nn.Module):
    """Two layers in a row, so that the gradient of the first depends on all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(1), Layer(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of a function of all pixels."""
        return (self.second(self.first(x)) ** 2).sum()


class Step(flow.nn.Graph):
    def __init__(self, layer: Network, optimizer: flow.optim.SGD) -> None:
        super().__init__()
        self.layer = layer
        self.add_optimizer(optimizer)

    def build(self, x: Tensor) -> Tensor:
        loss = self.layer(x)
        loss.backward()
        return loss


def train(x: Tensor, spread: bool, graph: bool) -> list[np.ndarray]:
    """Return the losses of two steps and the states after them."""
    layer = Network()
    if spread:
        layer = layer.to_global(placement=flow.placement.all("cpu"), sbp=flow.sbp.broadcast)
    optimizer = flow.optim.SGD(layer.parameters(), lr=0.001)
    step = Step(layer, optimizer) if graph else None
    losses = []
    for _ in range(2):
        if step is not None:
            loss = step(x)
        else:
            loss = layer(x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss)
    results = [*losses, *layer.parameters(), *layer.buffers()]
    return [one.numpy() for one in results]


def main(path: str, mode: PluginMode) -> None:
    load_plugin(mode)
    spread = int(os.environ.get("WORLD_SIZE", "1")) > 1
    rng = np.random.default_rng(0)
    x = flow.tensor((rng.standard_normal((4, 5, 3, CHANNELS)) + np.arange(4)[:, None, None, None]).astype(np.float32))
    if spread:
        x = x.to_global(placement=flow.placement.all("cpu"), sbp=flow.sbp.broadcast).to_global(sbp=flow.sbp.split(0))
    results = train(x, spread, graph=False) + train(x, spread, graph=True)
    if not spread or flow.env.get_rank() == 0:
        np.savez(path, *results)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])  # type: ignore[arg-type]
