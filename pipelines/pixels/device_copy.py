"""Copies of batches from DALI's to OneFlow's memory on the same device."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RenderedImages:
    """Finished images of a batch in DALI's memory, which is valid as long as this object exists.

    Attributes:
        output: DALI TensorList of uint8 in one block of memory that begins with the images.
        shape: (B, 3, H, W) of the images.
    """

    output: Any
    shape: tuple[int, ...]


class DeviceCopy:
    """An asynchronous copy from DALI's memory to a OneFlow tensor.

    DALI's output is complete when it is collected. OneFlow copies it on its own stream, so DALI's memory is kept until
    `wait` has returned. `wait` blocks only until the copy is complete, by copying one byte to the host after it. Only
    copies are used, because OneFlow's kernels do not support the newest GPUs.

    Attributes:
        images: (B, 3, H, W) uint8; OneFlow can use it at once, because its work is executed in order.
    """

    def __init__(self, source: RenderedImages) -> None:
        # Imported here, because pipelines on a CPU do not need it.
        from kernels.runtime import flow

        volume = sum(math.prod(entry) for entry in source.output.shape())
        shared = flow.from_dlpack(source.output.as_reshaped_tensor([volume]).__dlpack__())
        copied = shared[: math.prod(source.shape)].clone()
        self.images = copied.view(*source.shape)
        self._source, self._last_byte = source, copied[-1:].to("cpu")

    def wait(self) -> None:
        """Wait until the images are complete."""
        self._last_byte.numpy()


class BatchCopier:
    """Copies of consecutive batches out of DALI's memory, which is released one batch later.

    To be used by the main thread, because OneFlow 0.9 can deadlock if two threads use it for the first time at once.
    """

    def __init__(self) -> None:
        self._current: DeviceCopy | None = None

    def take(self, source: RenderedImages) -> Any:
        """Start a copy to a OneFlow tensor (B, 3, H, W) uint8 and return it, after waiting for the previous copy."""
        self.finish()
        self._current = DeviceCopy(source)
        return self._current.images

    def finish(self) -> None:
        """Wait for the current copy, if there is one, and release its memory."""
        if self._current is not None:
            self._current.wait()
            self._current = None
