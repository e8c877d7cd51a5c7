"""Memory layout and data type of a network's activations, chosen once per forward pass.

Images, weights and detections have the same shapes in every layout. The layers of `models.layers` and
`models.batch_norm` implement each of them; blocks built from these layers only need `channel_axis()`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from kernels.framework.activation_type import ActivationType
from kernels.ops.pixels.function import pixels
from kernels.ops.weight_packing.function import pack_weights
from kernels.plugin import is_loaded, runs_cuda_kernels
from kernels.runtime import Tensor, flow

PIXEL_SCALE = 255.0
"""Largest pixel value."""
_COLOURS = 3
"""Channels of the images that our `pixels` op accepts."""


@dataclass(frozen=True)
class Layout:
    """Axis order and data type of activations, and the format of convolution weights.

    Attributes:
        channels_last: (B, H, W, C) as in our ops, else (B, C, H, W) as in OneFlow's.
        activation_type: data type between the layers; other than float32 only with channels last.
        packed_weights: all weights are rearranged and rounded in one launch to the format of cuDNN.
    """

    channels_last: bool = False
    activation_type: ActivationType = ActivationType.FLOAT32
    packed_weights: bool = False

    @classmethod
    def fastest_for(cls, images: Tensor, activation_type: ActivationType) -> "Layout":
        """Return channels last if the plugin is loaded, else OneFlow's layout.

        Raises:
            ValueError: 16-bit activations without the plugin.
        """
        if not is_loaded():
            if activation_type is not ActivationType.FLOAT32:
                raise ValueError(f"{activation_type.name.lower()} activations need the kernel plugin")
            return cls()
        return cls(True, activation_type, packed_weights=runs_cuda_kernels(images))


@dataclass(frozen=True)
class _Pass:
    """One forward pass."""

    layout: Layout
    packed_weights: tuple[Tensor, ...] = ()


# Not an attribute of the layers, since it depends on the device of the images.
_current: ContextVar[_Pass] = ContextVar("layout", default=_Pass(Layout()))  # noqa: B039 - frozen


@contextmanager
def activations(layout: Layout, weights: Sequence[Tensor] = ()) -> Iterator[None]:
    """Use this layout for all layers called within the context.

    Args:
        layout: from `Layout.fastest_for`.
        weights: weights of all convolutions and linear layers, in the order of their `weight_index`.
    """
    packed = pack_weights(weights, layout.activation_type) if layout.packed_weights and weights else ()
    token = _current.set(_Pass(layout, tuple(packed)))
    try:
        yield
    finally:
        _current.reset(token)


def channels_last() -> bool:
    """Return whether activations are (B, H, W, C)."""
    return _current.get().layout.channels_last


def packed_weight(index: int) -> Tensor | None:
    """Return the packed weight of a layer, (O, KH, KW, I), or None if weights are not packed."""
    running = _current.get()
    return running.packed_weights[index] if running.layout.packed_weights else None


def channel_axis() -> int:
    """Return the channel axis; height and width are adjacent in both layouts."""
    return 3 if channels_last() else 1


def size_of(x: Tensor) -> tuple[int, int]:
    """Return the height and width of an activation."""
    first = 1 if channels_last() else 2
    return x.shape[first], x.shape[first + 1]


def from_images(images: Tensor) -> Tensor:
    """Convert images (B, C, H, W), uint8 (divided by 255) or float32, to an activation without gradient."""
    running = _current.get().layout
    if running.channels_last and images.shape[1] == _COLOURS:
        return pixels(images, running.activation_type)
    return from_channels_first(images if images.dtype != flow.uint8 else images.to(flow.float32) / PIXEL_SCALE)


def from_channels_first(x: Tensor) -> Tensor:
    """Convert (B, C, H, W) float32 to an activation in the current layout."""
    return to_activation_type(x.permute(0, 2, 3, 1)) if channels_last() else x


def to_activation_type(x: Tensor) -> Tensor:
    """Cast to the activation type of the current layout."""
    dtype = _current.get().layout.activation_type.dtype
    return x if x.dtype == dtype else x.to(dtype)


def to_float32(x: Tensor) -> Tensor:
    """Cast to float32, for layers that compute in float32 only."""
    return x if x.dtype == flow.float32 else x.to(flow.float32)
