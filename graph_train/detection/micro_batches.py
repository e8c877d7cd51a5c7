"""Feeds a network as many images at a time as suits the machine, so that each image size is compiled once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.host.memory import resident_bytes
from kernels.host.free_memory import free_memory
from kernels.runtime import flow

Array = npt.NDArray[Any]

MICRO_BATCH_PX = 640 * 640
"""Pixels that a CPU sees at a time. Its compiled graphs never free memory; larger micro-batches are no faster,
and from 640 px on slower, since they do not stay in the caches."""
_MEMORY_SHARE = 0.9
_TELLING_PX = 100_000
"""Below this, what a graph takes says little about larger ones."""


class MicroBatched:
    """Predictor that splits batches into micro-batches; the last is padded, so an image size has one shape.

    Args:
        predict: (images (b, 3, H, W)) to rows (b, N, 5 + classes); what it says of an image must not depend on others.
        on_cpu: micro-batches have at most `MICRO_BATCH_PX`; otherwise as many images as the first batch of
            their size.
    """

    def __init__(self, predict: Callable[[Any], Array], *, on_cpu: bool) -> None:
        self._predict, self._on_cpu = predict, on_cpu
        self._each: dict[tuple[int, int], int] = {}
        self._bytes_per_px = 0.0

    def __call__(self, images: Any) -> Array:
        """Return rows (B, N, 5 + classes) for images (B, 3, H, W), an array or a tensor.

        Raises:
            ValueError: there is no memory for another image size.
        """
        count, size = int(images.shape[0]), (int(images.shape[2]), int(images.shape[3]))
        new = size not in self._each
        if new:
            self._each[size] = self._micro_batch_size(count, size)
        each = self._each[size]
        before = resident_bytes()
        parts = []
        for start in range(0, count, each):
            part = images[start : start + each]
            parts.append(self._predict(_filled_up(part, each))[: part.shape[0]])
            if new and start == 0:
                self._note(resident_bytes() - before, each * size[0] * size[1])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else flow.cat(parts, dim=0)

    def _micro_batch_size(self, count: int, size: tuple[int, int]) -> int:
        if not self._on_cpu:
            return count
        px = size[0] * size[1]
        each = max(1, min(count, MICRO_BATCH_PX // px))
        need, free = self._bytes_per_px * each * px, free_memory()
        if need > _MEMORY_SHARE * free:
            raise ValueError(
                f"images of {size[1]} x {size[0]} px need about {need / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free "
                f"(the {len(self._each)} sizes seen before keep theirs): use a smaller --imgsz, or --eager"
            )
        return each

    def _note(self, taken: int, px: int) -> None:
        if px >= _TELLING_PX:
            self._bytes_per_px = max(self._bytes_per_px, taken / px)


def _filled_up(images: Any, count: int) -> Any:
    """Return (count, 3, H, W): repeat the last image as often as is needed."""
    missing = count - images.shape[0]
    if not missing:
        return images
    if isinstance(images, np.ndarray):
        return np.concatenate((images, np.repeat(images[-1:], missing, axis=0)))
    return flow.cat([images, *[images[-1:]] * missing], dim=0)
