"""One rank of synchronised BatchNorm on a sharded batch; results go to a file.

`python -m tests.kernels.ops.batch_norm_job OUT.npz MODE`, with or without the environment of torchrun.
"""

import os
import sys

import numpy as np

from kernels.ops.batch_norm.function import synchronised_batch_norm
from kernels.plugin import PluginMode, load_plugin
from kernels.runtime import Tensor, flow
from models.layers import tensor_of
from tests.kernels.ops.activations import sgd_steps

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
        states = [tensor_of(getattr(self, name)) for name in ("gamma", "beta", "mean", "variance")]
        return synchronised_batch_norm(x, *states, eps=1e-3, momentum=0.03, silu=True)


class Network(flow.nn.Module):
    """Two layers in a row, so that the gradient of the first depends on all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(1), Layer(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of a function of all pixels."""
        return (self.second(self.first(x)) ** 2).sum()


def main(path: str, mode: PluginMode) -> None:
    load_plugin(mode)
    spread = int(os.environ.get("WORLD_SIZE", "1")) > 1
    rng = np.random.default_rng(0)
    x = flow.tensor((rng.standard_normal((4, 5, 3, CHANNELS)) + np.arange(4)[:, None, None, None]).astype(np.float32))
    if spread:
        x = x.to_global(placement=flow.placement.all("cpu"), sbp=flow.sbp.broadcast).to_global(sbp=flow.sbp.split(0))

    def network() -> Network:
        layer = Network()
        return layer.to_global(placement=flow.placement.all("cpu"), sbp=flow.sbp.broadcast) if spread else layer

    eager, compiled = (sgd_steps(network(), [x, x], graph=graph, rate=0.001) for graph in (False, True))
    results = eager + compiled
    if not spread or flow.env.get_rank() == 0:
        np.savez(path, *results)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])  # type: ignore[arg-type]
