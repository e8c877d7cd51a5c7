"""YOLOv5's blocks as OneFlow modules, with the reference's names of parameters and buffers.

Every block maps (B, C, H, W) to (B, C', H', W'), with axes in the order of `models.layout`. `activation` is a module
shared by the whole network. Parameters are not initialised here, but by `models.initialise` or a weight file.
`models.catalogue` describes the same blocks for the yaml; `CONSTRUCTORS` connects the two.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernels.ops.rearrange.function import space_to_depth
from kernels.runtime import Tensor, flow
from models import layout
from models.attention import TransformerBlock
from models.batch_norm import BatchNorm2d
from models.catalogue import same_padding
from models.layers import Conv2d, MaxPool2d, Module, activation_of, apply_activation, fork, join

nn: Any = flow.nn
Pair = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, BatchNorm, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Pair = 1,
        stride: Pair = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        activation: Module,
    ) -> None:
        super().__init__()
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        pad = tuple(same_padding(side, dilation) for side in sides) if padding is None else padding
        self.conv = Conv2d(in_channels, out_channels, kernel, stride, pad, dilation, groups, bias=False)
        self.bn = BatchNorm2d(out_channels)
        self.act = activation
        self.folded = False
        self._activation = activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        if self._activation.name == "SiLU":
            return self.conv.with_silu(x) if self.folded else self.bn.with_silu(self.conv(x))
        x = self.conv(x) if self.folded else self.bn(self.conv(x))
        return (
            layout.to_activation_type(apply_activation(x, self._activation)) if layout.channels_last() else self.act(x)
        )


class DWConv(Conv):
    """Depth-wise convolution, with the greatest common divisor of both channel numbers as groups."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        *,
        activation: Module,
    ) -> None:
        groups = math.gcd(in_channels, out_channels)
        super().__init__(
            in_channels, out_channels, kernel, stride, groups=groups, dilation=dilation, activation=activation
        )


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution with a residual connection if the channels allow it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
        activation: Module,
    ) -> None:
        super().__init__()
        inner = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, inner, activation=activation)
        self.cv2 = Conv(inner, out_channels, 3, groups=groups, activation=activation)
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


def _bottlenecks(channels: int, repeats: int, shortcut: bool, groups: int, activation: Module) -> Module:
    def one() -> Module:
        return Bottleneck(channels, channels, shortcut=shortcut, groups=groups, expansion=1.0, activation=activation)

    return nn.Sequential(*(one() for _ in range(repeats)))


class CrossConv(nn.Module):
    """A 3x3 convolution factorised into 1x3 and 3x1, with a residual connection."""

    def __init__(self, channels: int, shortcut: bool, groups: int, *, activation: Module) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels, (1, 3), activation=activation)
        self.cv2 = Conv(channels, channels, (3, 1), groups=groups, activation=activation)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class BottleneckCSP(nn.Module):
    """Cross-stage partial block with its own BatchNorm over both branches (YOLOv5 before C3)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
        activation: Module,
    ) -> None:
        super().__init__()
        inner = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, inner, activation=activation)
        self.cv2 = Conv2d(in_channels, inner, 1, bias=False)
        self.cv3 = Conv2d(inner, inner, 1, bias=False)
        self.cv4 = Conv(2 * inner, out_channels, activation=activation)
        self.bn = BatchNorm2d(2 * inner)
        # The reference uses SiLU here for any activation of the network.
        self.act = nn.SiLU()
        self.m = _bottlenecks(inner, repeats, shortcut, groups, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        both = join([self.cv3(self.m(self.cv1(x))), self.cv2(x)])
        return self.cv4(self.bn.with_silu(both))


class C3(nn.Module):
    """Cross-stage partial block: two 1x1 branches, one through `inner_blocks`, concatenated before a third 1x1.

    Args:
        expansion: channels of each branch over `out_channels`.
        inner: arguments of `inner_blocks`. As in the reference, variants of C3 accept arguments that they ignore.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expansion: float = 0.5, activation: Module, **inner: Any
    ) -> None:
        super().__init__()
        channels = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, channels, activation=activation)
        self.cv2 = Conv(in_channels, channels, activation=activation)
        self.cv3 = Conv(2 * channels, out_channels, activation=activation)
        self.m = self.inner_blocks(channels, activation=activation, **inner)

    def inner_blocks(
        self, channels: int, *, activation: Module, repeats: int = 1, shortcut: bool = True, groups: int = 1
    ) -> Module:
        """Return the blocks of the first branch, which keep `channels`: `repeats` bottlenecks."""
        return _bottlenecks(channels, repeats, shortcut, groups, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        return self.cv3(join([self.m(self.cv1(x)), self.cv2(x)]))


class C3x(C3):
    """C3 with cross convolutions."""

    def inner_blocks(
        self, channels: int, *, activation: Module, repeats: int = 1, shortcut: bool = True, groups: int = 1
    ) -> Module:
        """Return `repeats` cross convolutions."""
        return nn.Sequential(*(CrossConv(channels, shortcut, groups, activation=activation) for _ in range(repeats)))


class C3TR(C3):
    """C3 with transformer layers."""

    def inner_blocks(self, channels: int, *, activation: Module, repeats: int = 1, **_: Any) -> Module:
        """Return a transformer of `repeats` layers, which have their own activation."""
        return TransformerBlock(channels, repeats)


class C3SPP(C3):
    """C3 with spatial pyramid pooling."""

    def inner_blocks(
        self, channels: int, *, activation: Module, kernels: Sequence[int] = (5, 9, 13), **_: Any
    ) -> Module:
        """Return an SPP with pools of these sizes."""
        return SPP(channels, channels, kernels, activation=activation)


class C3Ghost(C3):
    """C3 with ghost bottlenecks."""

    def inner_blocks(self, channels: int, *, activation: Module, repeats: int = 1, **_: Any) -> Module:
        """Return `repeats` ghost bottlenecks."""
        return nn.Sequential(*(GhostBottleneck(channels, channels, activation=activation) for _ in range(repeats)))


class SPP(nn.Module):
    """Spatial pyramid pooling: parallel max pools of several sizes."""

    def __init__(
        self, in_channels: int, out_channels: int, kernels: Sequence[int] = (5, 9, 13), *, activation: Module
    ) -> None:
        super().__init__()
        inner = in_channels // 2
        self.cv1 = Conv(in_channels, inner, activation=activation)
        self.cv2 = Conv(inner * (len(kernels) + 1), out_channels, activation=activation)
        self.m = nn.ModuleList([MaxPool2d(side, 1, side // 2) for side in kernels])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        x, *pooled = fork(self.cv1(x), [1] * (1 + len(self.m)))
        return self.cv2(join([x] + [pool(y) for pool, y in zip(self.m, pooled)]))  # noqa: B905 - block list


class SPPF(nn.Module):
    """Three successive max pools: equal to SPP(5, 9, 13) for kernel 5, but faster."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 5, *, activation: Module) -> None:
        super().__init__()
        inner = in_channels // 2
        self.cv1 = Conv(in_channels, inner, activation=activation)
        self.cv2 = Conv(4 * inner, out_channels, activation=activation)
        self.m = MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        x = self.cv1(x)
        once = self.m(x)
        twice = self.m(once)
        return self.cv2(join([x, once, twice, self.m(twice)]))


class Focus(nn.Module):
    """Space-to-depth of 2x2 patches, followed by a convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        activation: Module,
    ) -> None:
        super().__init__()
        self.conv = Conv(
            4 * in_channels, out_channels, kernel, stride, padding=padding, groups=groups, activation=activation
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) with even H and W to (B, out, H / 2 / stride, W / 2 / stride)."""
        if layout.channels_last():
            return self.conv(space_to_depth(x))
        return self.conv(flow.cat([x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=1))


class GhostConv(nn.Module):
    """Ghost convolution: half of the channels from a convolution, the other half from these by a 5x5 depth-wise one.

    Source: arXiv:1911.11907.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        activation: Module,
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.cv1 = Conv(in_channels, half, kernel, stride, groups=groups, activation=activation)
        # Every missing activation is a separate module, as in the reference.
        second_activation = nn.Identity() if isinstance(activation, nn.Identity) else activation
        self.cv2 = Conv(half, half, 5, groups=half, activation=second_activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        half = self.cv1(x)
        return join([half, self.cv2(half)])


class GhostBottleneck(nn.Module):
    """Two ghost convolutions with a shortcut, with a depth-wise convolution between them at stride 2."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, *, activation: Module
    ) -> None:
        super().__init__()
        inner = out_channels // 2

        def reduce(channels: int) -> Module:
            return DWConv(channels, channels, kernel, stride, activation=nn.Identity())

        self.conv = nn.Sequential(
            GhostConv(in_channels, inner, activation=activation),
            reduce(inner) if stride == 2 else nn.Identity(),
            GhostConv(inner, out_channels, activation=nn.Identity()),
        )
        self.shortcut = (
            nn.Sequential(reduce(in_channels), Conv(in_channels, out_channels, activation=nn.Identity()))
            if stride == 2
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        return self.conv(x) + self.shortcut(x)


class Concat(nn.Module):
    """Concatenation of feature maps of equal size along the channels."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map [(B, C_i, H, W)] to (B, sum C_i, H, W)."""
        return join(maps)


CONSTRUCTORS: Mapping[str, Callable[..., Module]] = {
    "Conv": Conv,
    "DWConv": DWConv,
    "C3": C3,
    "C3x": C3x,
    "C3TR": C3TR,
    "C3Ghost": C3Ghost,
    "C3SPP": C3SPP,
    "SPPF": SPPF,
    "SPP": SPP,
    "Bottleneck": Bottleneck,
    "BottleneckCSP": BottleneckCSP,
    "GhostConv": GhostConv,
    "GhostBottleneck": GhostBottleneck,
    "Focus": Focus,
}
"""Blocks with output channels; `network` makes Upsample, MaxPool2d, ZeroPad2d, Concat and Detect."""

BRANCHING = frozenset({"Bottleneck", "BottleneckCSP", "C3", "C3x", "C3TR", "C3Ghost", "C3SPP", "GhostBottleneck"})
"""Blocks whose input is used by two ops; see `models.layers.fork`."""
