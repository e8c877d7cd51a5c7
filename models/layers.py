"""The plain layers that everything else is built from: convolution, linear, activations."""

from collections.abc import Callable, Mapping
from typing import Any

from kernels.runtime import flow
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
