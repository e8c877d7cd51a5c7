"""The order of axes in which a network keeps its activations, decided once for each of its forward passes.

Images, weights and raw maps of the head have the same shapes in both orders. The layers of `models.layers` and
`models.batch_norm` have a form for each; a block made of them needs to know nothing but `channel_axis()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum

from kernels.plugin import cpu_bf16, is_loaded
from kernels.runtime import Tensor, flow


class Layout(Enum):
    """Axes of an activation, batch first."""

    CHANNELS_FIRST = "(B, C, H, W)"
    CHANNELS_LAST = "(B, H, W, C)"
    CHANNELS_LAST_BFLOAT16 = "(B, H, W, C), bfloat16"

    @classmethod
    def fastest_for(cls, images: Tensor, *, synchronised: bool = False) -> "Layout":
        """Channels last where the plugin brings the ops for it: float32 images on the CPU.

        BatchNorm over the images of all ranks (`synchronised`) has no such op. `kernels.plugin.set_cpu_bf16` decides on
        bfloat16.
        """
        spread = images.is_global and synchronised
        suits = is_loaded() and not spread and not images.is_cuda and images.dtype == flow.float32
        if not suits:
            return cls.CHANNELS_FIRST
        return cls.CHANNELS_LAST_BFLOAT16 if cpu_bf16() else cls.CHANNELS_LAST


# Of one forward pass. Not an attribute of each layer: it depends on where the images are.
_current: ContextVar[Layout] = ContextVar("layout", default=Layout.CHANNELS_FIRST)


@contextmanager
def activations(layout: Layout) -> Iterator[None]:
    """Layers called inside take and give activations in this layout."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def channels_last() -> bool:
    """True when activations are (B, H, W, C)."""
    return _current.get() is not Layout.CHANNELS_FIRST


def channel_axis() -> int:
    """The axis of an activation that counts channels; height and width follow each other in both layouts."""
    return 3 if channels_last() else 1


def size_of(x: Tensor) -> tuple[int, int]:
    """Height and width of an activation."""
    first = 1 if channels_last() else 2
    return x.shape[first], x.shape[first + 1]


def from_channels_first(x: Tensor) -> Tensor:
    """(B, C, H, W) float32 as an activation of the current layout."""
    return stored(x.permute(0, 2, 3, 1)) if channels_last() else x


def to_channels_first(x: Tensor) -> Tensor:
    """An activation of the current layout as (B, C, H, W) float32."""
    return in_float32(x).permute(0, 3, 1, 2) if channels_last() else x


def stored(x: Tensor) -> Tensor:
    """The same numbers in the data type in which the current layout keeps activations."""
    rounds = _current.get() is Layout.CHANNELS_LAST_BFLOAT16 and x.dtype != flow.bfloat16
    return x.to(flow.bfloat16) if rounds else x


def in_float32(x: Tensor) -> Tensor:
    """The same numbers for a layer that has no form for bfloat16."""
    return x.to(flow.float32) if x.dtype == flow.bfloat16 else x
