"""Basic layers in both layouts: convolution, pooling, linear, activations.

Inside a graph `self` is a proxy of the layer that `super()` rejects, so OneFlow's forward is called through its class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernels.ops.activation_function.function import activate
from kernels.ops.bias.function import add_bias
from kernels.ops.convolution.function import ConvolutionGeometry, convolution
from kernels.ops.pooling.function import max_pool, upsample
from kernels.ops.rearrange.function import zero_pad
from kernels.runtime import Tensor, flow
from models import layout
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
    """Return the module for a parsed activation."""
    return _ACTIVATIONS[activation.name](*activation.arguments)


_PARAMETERS: Mapping[str, str] = {"LeakyReLU": "negative_slope", "ELU": "alpha"}


def activation_of(module: Module) -> Activation:
    """Return the `Activation` of a module made by `make_activation`, default parameters included."""
    name = type(module).__name__
    return Activation(name, (float(getattr(module, _PARAMETERS[name])),) if name in _PARAMETERS else ())


def apply_activation(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation other than SiLU to a channels-last tensor."""
    return x if activation.name == "Identity" else activate(x, activation.name, *activation.arguments)


class PackedLayer:
    """A layer whose weight the network packs together with those of the other layers."""

    weight_name = "weight"
    weight_index: int | None = None
    """Index among the network's packed weights; None outside a network."""


class Conv2d(PackedLayer, nn.Conv2d):
    """Convolution in both layouts, without OneFlow's initialisation, which takes seconds for large networks."""

    def reset_parameters(self) -> None:
        """Do nothing: `models.initialise` sets the values."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in, H, W) to (B, out, H', W'), or the same in channels-last order.

        With a bias and channels last the result is float32.
        """
        if not layout.channels_last():
            return nn.Conv2d.forward(self, x)
        y = self._channels_last(x)
        return y if self.bias is None else add_bias(y, tensor_of(self.bias), to_float32=True)

    def with_silu(self, x: Tensor) -> Tensor:
        """Convolve, add the bias and apply SiLU, without gradients; for networks with folded BatchNorm."""
        if not layout.channels_last():
            return flow._C.silu(nn.Conv2d.forward(self, x))
        return add_bias(self._channels_last(x), tensor_of(self.bias), silu=True)

    def _channels_last(self, x: Tensor) -> Tensor:
        geometry = ConvolutionGeometry(self.stride, self.padding, self.dilation, self.groups)
        return _convolve(x, tensor_of(self.weight), self.weight_index, geometry)


class MaxPool2d(nn.MaxPool2d):
    """Max pooling in both layouts, with square windows."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C, H', W'), or the same in channels-last order."""
        if not layout.channels_last():
            return nn.MaxPool2d.forward(self, x)
        return max_pool(x, self.kernel_size[0], self.stride[0], self.padding[0])


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by a whole factor."""

    def __init__(self, scale_factor: int) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H * factor, W * factor), or the same in channels-last order."""
        if layout.channels_last():
            return upsample(x, self.scale_factor)
        scale = float(self.scale_factor)
        return flow._C.upsample_nearest_2d(
            x, height_scale=scale, width_scale=scale, output_size=None, data_format="channels_first"
        )


class ZeroPad2d(nn.ZeroPad2d):
    """Zero padding in both layouts."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H', W'), or the same in channels-last order."""
        if not layout.channels_last():
            return nn.ZeroPad2d.forward(self, x)
        return zero_pad(x, tuple(self.padding))


class Linear(PackedLayer, nn.Linear):
    """Linear layer in both layouts, without OneFlow's initialisation."""

    def reset_parameters(self) -> None:
        """Do nothing: `models.initialise` sets the values."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out); with channels last, (B, H, W, in) to (B, H, W, out)."""
        if not layout.channels_last():
            return nn.Linear.forward(self, x)
        return project(
            x, tensor_of(self.weight), self.weight_index, None if self.bias is None else tensor_of(self.bias)
        )


def project(x: Tensor, weight: Tensor, weight_index: int | None, bias: Tensor | None, groups: int = 1) -> Tensor:
    """Apply a linear layer to each pixel, as a 1x1 convolution.

    Args:
        x: activation (B, H, W, groups * in), channels last.
        weight: (groups * out, in) float32.
        weight_index: index among the network's packed weights.
        bias: (groups * out,) float32.
        groups: number of independent linear layers, each with its own channels.
    """
    y = _convolve(x, weight, weight_index, ConvolutionGeometry(groups=groups))
    return y if bias is None else add_bias(y, bias)


def _convolve(x: Tensor, weight: Tensor, weight_index: int | None, geometry: ConvolutionGeometry) -> Tensor:
    """Convolve with the packed weight, or with the given one, (O, I, KH, KW) or (O, I), if weights are not packed."""
    x = layout.to_activation_type(x)
    packed = None if weight_index is None else layout.packed_weight(weight_index)
    if packed is not None:
        return convolution(x, packed, geometry, packed=True)
    return convolution(x, weight if weight.ndim == 4 else weight.reshape(*weight.shape, 1, 1), geometry)


def join(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate activations of equal size along the channel axis."""
    return flow.cat([layout.to_activation_type(x) for x in maps], dim=layout.channel_axis())


def get_attribute(module: Any, path: str) -> Any:
    """Resolve a dotted attribute name; inside a graph this returns the graph's proxy of the module or tensor."""
    for part in path.split("."):
        module = getattr(module, part)
    return module


def tensor_of(state: Tensor) -> Tensor:
    """Return the tensor of a parameter or buffer, which inside a graph can be a proxy that ops reject."""
    return state if isinstance(state, flow.Tensor) else state.to(flow.Tensor)


def fork(x: Tensor, branches: Sequence[int]) -> list[Tensor]:
    """Copy a tensor for several consumers, so that no tensor is the input of more than two ops.

    Eager mode and graphs sum the gradients of a tensor in different orders, which changes the last bit for three or
    more summands. Copies are made only in that case.

    Args:
        x: any tensor.
        branches: number of ops in each consumer that take the tensor, 1 or 2.
    """
    if sum(branches) <= 2:
        return [x] * len(branches)
    copies = []
    for count in branches[:-1]:
        copies.append(x if count == 1 else flow._C.identity(x))
        x = flow._C.identity(x)
    return [*copies, x]
