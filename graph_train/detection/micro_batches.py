"""Micro-batches: inference with a fixed batch size per image size, so that each is compiled only once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.host.memory import resident_bytes
from kernels.host.free_memory import free_memory
from kernels.runtime import flow

Array = npt.NDArray[Any]

MICRO_BATCH_PX = 640 * 640
"""Maximum number of pixels per micro-batch on a CPU. Compiled graphs never free their memory there, and larger
micro-batches are no faster or, from 640 px on, even slower because they exceed the CPU's caches."""
_MEMORY_FRACTION = 0.9
_MIN_MEASURED_PX = 100_000
"""Below this number of pixels, the memory of a graph is not representative of larger ones."""


class MicroBatched:
    """Predictor that splits batches into micro-batches of equal size; the last one is padded.

    Args:
        predict: maps images (b, 3, H, W) to predictions (b, N, 5 + classes), independently of each other.
        on_cpu: limit micro-batches to `MICRO_BATCH_PX`; otherwise they have the size of the first batch of an image
            size.
    """

    def __init__(self, predict: Callable[[Any], Array], *, on_cpu: bool) -> None:
        self._predict, self._on_cpu = predict, on_cpu
        self._batch_sizes: dict[tuple[int, int], int] = {}
        self._bytes_per_px = 0.0

    def __call__(self, images: Any) -> Array:
        """Return predictions (B, N, 5 + classes) for images (B, 3, H, W), an array or a tensor.

        Raises:
            ValueError: there is not enough memory for a new image size.
        """
        count, size = int(images.shape[0]), (int(images.shape[2]), int(images.shape[3]))
        if size not in self._batch_sizes:
            self._batch_sizes[size] = self._micro_batch_size(count, size)
        micro_batch = self._batch_sizes[size]
        parts = []
        for start in range(0, count, micro_batch):
            part = images[start : start + micro_batch]
            before = resident_bytes()
            parts.append(self._predict(_padded(part, micro_batch))[: part.shape[0]])
            # A size may be compiled after several calls, see `Inference`.
            self._record_memory(resident_bytes() - before, micro_batch * size[0] * size[1])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else flow.cat(parts, dim=0)

    def _micro_batch_size(self, count: int, size: tuple[int, int]) -> int:
        if not self._on_cpu:
            return count
        px = size[0] * size[1]
        micro_batch = max(1, min(count, MICRO_BATCH_PX // px))
        required, free = self._bytes_per_px * micro_batch * px, free_memory()
        if required > _MEMORY_FRACTION * free:
            raise ValueError(
                f"images of {size[1]} x {size[0]} px need about {required / 1e9:.1f} GB, but only {free / 1e9:.1f} GB "
                f"is free ({len(self._batch_sizes)} other sizes keep their memory); use a smaller --imgsz, or --eager"
            )
        return micro_batch

    def _record_memory(self, used: int, px: int) -> None:
        if px >= _MIN_MEASURED_PX:
            self._bytes_per_px = max(self._bytes_per_px, used / px)


def _padded(images: Any, count: int) -> Any:
    """Pad images to (count, 3, H, W) by repeating the last one."""
    missing = count - images.shape[0]
    if not missing:
        return images
    if isinstance(images, np.ndarray):
        return np.concatenate((images, np.repeat(images[-1:], missing, axis=0)))
    return flow.cat([images, *[images[-1:]] * missing], dim=0)
