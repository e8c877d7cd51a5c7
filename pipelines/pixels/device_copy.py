"""Batches from DALI's memory into OneFlow's on the same device, without a way through the host."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DrawnImages:
    """Finished images of a batch in memory of DALI's, which keeps it as long as this exists.

    Attributes:
        drawn: DALI TensorList of uint8 in one block of memory, which begins with the images.
        shape: (B, 3, H, W) of the images.
    """

    drawn: Any
    shape: tuple[int, ...]


class DeviceCopy:
    """A OneFlow tensor that is being filled from DALI's memory.

    DALI's output is complete when it is collected. OneFlow copies on its own stream, behind what that already has, so
    DALI's memory is kept until `wait` has returned. That waits for the copy alone, through one byte that follows it to
    the host; the device goes on meanwhile. Copies are all that is queued, so that no GPU is too new for OneFlow's
    kernels here.

    Attributes:
        images: (B, 3, H, W) uint8; may be used at once by OneFlow, which keeps its own work in order.
    """

    def __init__(self, source: DrawnImages) -> None:
        # Imported here so that pipelines on a CPU do not wait for the CUDA libraries.
        from kernels.runtime import flow

        volume = sum(math.prod(entry) for entry in source.drawn.shape())
        shared = flow.from_dlpack(source.drawn.as_reshaped_tensor([volume]).__dlpack__())
        copied = shared[: math.prod(source.shape)].clone()
        self.images = copied.view(*source.shape)
        self._source, self._last_byte = source, copied[-1:].to("cpu")

    def wait(self) -> None:
        """Wait until the images are complete."""
        self._last_byte.numpy()


class HandOver:
    """Copies of one batch after another out of DALI's memory, which goes back one batch later.

    To be used by the thread that trains: OneFlow 0.9 can deadlock when two threads use it for the first time at once.
    """

    def __init__(self) -> None:
        self._under_way: DeviceCopy | None = None

    def take(self, source: DrawnImages) -> Any:
        """Return OneFlow tensor (B, 3, H, W) uint8 of the images.

        It waits for the copy before it, which is usually long complete.
        """
        self.finish()
        self._under_way = DeviceCopy(source)
        return self._under_way.images

    def finish(self) -> None:
        """Wait for the copy under way, if there is one, and give its memory back."""
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None
