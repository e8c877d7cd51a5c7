"""The plain layers that everything else is built from: convolution, linear, activations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernels.runtime import Tensor, flow
from models.catalogue import Activation

nn: Any = flow.nn
Module = Any
"""`oneflow.nn.Module`; see `kernels.runtime.Tensor` for why it is Any."""

_ACTIVATIONS: Mapping[str, Callable[..., Module]] = {
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "LeakyReLU": nn.LeakyReLU,
    "ELU": nn.ELU,
    "Hardswish": nn.Hardswish,
    "Mish": nn.Mish,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
}


def make_activation(activation: Activation) -> Module:
    """The module behind a parsed activation."""
    return _ACTIVATIONS[activation.name](*activation.arguments)


class Conv2d(nn.Conv2d):
    """OneFlow's convolution without its own random start, which would cost seconds on the large networks."""

    def reset_parameters(self) -> None:
        """Leaves the values to `models.initialise`."""


class Linear(nn.Linear):
    """OneFlow's linear layer without its own random start."""

    def reset_parameters(self) -> None:
        """Leaves the values to `models.initialise`."""


def fork(x: Tensor, branches: Sequence[int]) -> list[Tensor]:
    """The same values for several consumers, so that no tensor feeds more than two ops.

    Gradients of one tensor are summed in one order by the eager engine and in another inside a graph, which shows in
    the last bit from three summands on; a sum of two has no order. Copies are made only where there are more.

    Args:
        x: any tensor.
        branches: how many ops each consumer feeds with it, 1 or 2.
    """
    if sum(branches) <= 2:
        return [x] * len(branches)
    copies = []
    for count in branches[:-1]:
        copies.append(x if count == 1 else flow._C.identity(x))
        x = flow._C.identity(x)
    return [*copies, x]
