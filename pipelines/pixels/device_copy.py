"""Batches from DALI's memory into OneFlow's on the same device, without a way through the host."""

import math
from typing import Any


class DeviceCopy:
    """Images that OneFlow copies out of DALI's memory, on its own stream and in its own order.

    DALI's output is complete when it is collected. OneFlow's copy is queued behind what its stream already has, so
    DALI's memory must stay as it is until `wait` has returned. That waits for the copy alone, through one byte that
    follows it to the host; neither the device nor OneFlow's other work is waited for. Only copies are queued, no kernel
    of OneFlow's, so it also works on GPUs that its wheel has no code for.
    """

    def __init__(self, drawn: Any, shape: tuple[int, ...]) -> None:
        """
        Args:
            drawn: DALI TensorList of uint8 in one block of memory, which begins with the images.
            shape: (B, 3, H, W) of the images.
        """
        # Imported here so that pipelines on a CPU do not wait for the CUDA libraries.
        from kernels.runtime import flow

        volume = sum(math.prod(entry) for entry in drawn.shape())
        shared = flow.from_dlpack(drawn.as_reshaped_tensor([volume]).__dlpack__())
        copied = shared[: math.prod(shape)].clone()
        self._images = copied.view(*shape)
        self._last_byte = copied[-1:].to("cpu")

    def wait(self) -> Any:
        """The images, once they are complete; then DALI may have its memory back."""
        self._last_byte.numpy()
        return self._images
