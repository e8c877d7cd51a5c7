"""The plain layers that everything else is built from, in both layouts: convolution, pool, linear, activations.

Inside a graph `self` is a proxy of the layer, which `super()` refuses: OneFlow's own forward is called by its class.
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
    """Return the module behind a parsed activation."""
    return _ACTIVATIONS[activation.name](*activation.arguments)


_PARAMETERS: Mapping[str, str] = {"LeakyReLU": "negative_slope", "ELU": "alpha"}


def activation_of(module: Module) -> Activation:
    """Return which activation a module of `make_activation` is; all of its parameters, also those left out."""
    name = type(module).__name__
    return Activation(name, (float(getattr(module, _PARAMETERS[name])),) if name in _PARAMETERS else ())


def activated(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation other than SiLU where channels are last."""
    return x if activation.name == "Identity" else activate(x, activation.name, *activation.arguments)


class Conv2d(nn.Conv2d):
    """OneFlow's convolution in both layouts, without its own random start, which costs seconds on large networks."""

    weight_index: int | None = None
    """Number among the convolutions of a network, which packs their weights together; None: packs its own."""

    def reset_parameters(self) -> None:
        """Leave the values to `models.initialise`."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in, H, W) to (B, out, H', W'), or the same in channels-last order.

        With a bias the result is float32 where channels are last.
        """
        if not layout.channels_last():
            return nn.Conv2d.forward(self, x)
        y = self._channels_last(x)
        return y if self.bias is None else add_bias(y, plain(self.bias), to_float32=True)

    def with_silu(self, x: Tensor) -> Tensor:
        """Convolve, add the bias and apply SiLU, without gradients; for networks whose BatchNorm is folded in."""
        if not layout.channels_last():
            return flow._C.silu(nn.Conv2d.forward(self, x))
        return add_bias(self._channels_last(x), plain(self.bias), silu=True)

    def _channels_last(self, x: Tensor) -> Tensor:
        geometry = ConvolutionGeometry(self.stride, self.padding, self.dilation, self.groups)
        index = self.weight_index
        packed = None if index is None else layout.packed_weight(index)
        if packed is None:
            return convolution(layout.stored(x), plain(self.weight), geometry)
        return convolution(layout.stored(x), packed, geometry, packed=True)


class MaxPool2d(nn.MaxPool2d):
    """OneFlow's max pool, in both layouts; square windows."""

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
    """OneFlow's padding by zeros, in both layouts."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H', W'), or the same in channels-last order."""
        if not layout.channels_last():
            return nn.ZeroPad2d.forward(self, x)
        return zero_pad(x, tuple(self.padding))


class Linear(nn.Linear):
    """OneFlow's linear layer in both layouts, without its own random start."""

    def reset_parameters(self) -> None:
        """Leave the values to `models.initialise`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out); where channels are last, an activation (B, H, W, in) to (B, H, W, out)."""
        if not layout.channels_last():
            return nn.Linear.forward(self, x)
        return project(x, plain(self.weight), None if self.bias is None else plain(self.bias))


def project(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """Apply a linear layer to each pixel: a convolution by one pixel.

    Args:
        x: activation (B, H, W, groups * in), channels last.
        weight: (groups * out, in) float32; a group has channels of its own.
        bias: (groups * out,) float32.
        groups: number of linear layers side by side.
    """
    outputs, inputs = weight.shape
    packed = layout.packs_weights()
    # One pixel: packed weights have the same order, in the type of activations.
    weight = layout.stored(weight.reshape(outputs, 1, 1, inputs)) if packed else weight.reshape(outputs, inputs, 1, 1)
    y = convolution(layout.stored(x), weight, ConvolutionGeometry(groups=groups), packed=packed)
    return y if bias is None else add_bias(y, bias)


def join(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate the channels of several activations of one size."""
    return flow.cat([layout.stored(x) for x in maps], dim=layout.channel_axis())


def member(module: Any, path: str) -> Any:
    """Follow a dotted name; inside a graph this gives the graph's own view of the module or tensor."""
    for part in path.split("."):
        module = getattr(module, part)
    return module


def plain(state: Tensor) -> Tensor:
    """Return a parameter or buffer itself: inside a graph a module's attribute can be a proxy, which ops refuse."""
    return state if isinstance(state, flow.Tensor) else state.to(flow.Tensor)


def fork(x: Tensor, branches: Sequence[int]) -> list[Tensor]:
    """Copy a tensor for several consumers, so that no tensor feeds more than two ops.

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
