"""The form in which a network keeps its activations, decided once for each of its forward passes.

Images, weights and detections have the same shapes in all of them. The layers of `models.layers` and
`models.batch_norm` have an implementation for each; a block made of them needs to know nothing but `channel_axis()`.
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
"""Largest value of a pixel."""
_COLOURS = 3
"""Channels of the images that an op of ours takes."""


@dataclass(frozen=True)
class Layout:
    """Axes and data type of activations, and which weights convolutions take.

    Attributes:
        channels_last: (B, H, W, C), else (B, C, H, W); our own ops have the former, OneFlow's the latter.
        activation_type: data type between the layers; other than float32 only with channels last.
        packed_weights: weights are rearranged and rounded once, all together, as cuDNN wants them.
    """

    channels_last: bool = False
    activation_type: ActivationType = ActivationType.FLOAT32
    packed_weights: bool = False

    @classmethod
    def fastest_for(cls, images: Tensor, activation_type: ActivationType) -> "Layout":
        """Return channels last where the plugin brings the ops for it, else OneFlow's layout.

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


# Not an attribute of each layer: it depends on where the images are.
_current: ContextVar[_Pass] = ContextVar("layout", default=_Pass(Layout()))  # noqa: B039 - frozen


@contextmanager
def activations(layout: Layout, weights: Sequence[Tensor] = ()) -> Iterator[None]:
    """Let layers called inside take and give activations in this layout.

    Args:
        layout: from `Layout.fastest_for`.
        weights: of all convolutions, (O, I, KH, KW), in the order of their `weight_index`.
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


def packs_weights() -> bool:
    """Return whether convolutions take packed weights."""
    return _current.get().layout.packed_weights


def packed_weight(index: int) -> Tensor | None:
    """Return the packed weight of a convolution, (O, KH, KW, I), or None where weights are taken as they are."""
    running = _current.get()
    return running.packed_weights[index] if running.layout.packed_weights else None


def channel_axis() -> int:
    """Return the axis that counts channels; height and width follow each other in both layouts."""
    return 3 if channels_last() else 1


def size_of(x: Tensor) -> tuple[int, int]:
    """Return the height and width of an activation."""
    first = 1 if channels_last() else 2
    return x.shape[first], x.shape[first + 1]


def from_images(images: Tensor) -> Tensor:
    """Turn images (B, C, H, W) into an activation, without a gradient: uint8, which is divided by 255, or float32."""
    running = _current.get().layout
    if running.channels_last and images.shape[1] == _COLOURS:
        return pixels(images, running.activation_type)
    return from_channels_first(images if images.dtype != flow.uint8 else images.to(flow.float32) / PIXEL_SCALE)


def from_channels_first(x: Tensor) -> Tensor:
    """Turn (B, C, H, W) float32 into an activation of the current layout."""
    return stored(x.permute(0, 2, 3, 1)) if channels_last() else x


def to_channels_first(x: Tensor) -> Tensor:
    """Turn an activation of the current layout into (B, C, H, W) float32."""
    return in_float32(x).permute(0, 3, 1, 2) if channels_last() else x


def stored(x: Tensor) -> Tensor:
    """Return the same numbers in the data type in which the current layout keeps activations."""
    dtype = _current.get().layout.activation_type.dtype
    return x if x.dtype == dtype else x.to(dtype)


def in_float32(x: Tensor) -> Tensor:
    """Return the same numbers for a layer that computes in float32 only."""
    return x if x.dtype == flow.float32 else x.to(flow.float32)
