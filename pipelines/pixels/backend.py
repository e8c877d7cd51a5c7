"""DALI's backend of a graph: the CPU, or a GPU with the mixed decoder."""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Backend:
    """The device on which a graph decodes and draws.

    Graphs place all values through this type, so that the GPU's graph can also be built and tested on the CPU.

    Attributes:
        gpu: index of the GPU among those visible to the process; None for the CPU.
    """

    gpu: int | None = None

    @staticmethod
    def of(device: str) -> "Backend":
        """Return the backend for a device.

        Args:
            device: "cpu", or for instance "cuda:1" for the second visible GPU, as in OneFlow.
        Raises:
            ValueError: the device is neither of these.
        """
        if device == "cpu":
            return Backend()
        match = re.fullmatch(r"cuda:(\d+)", device)
        if match is None:
            raise ValueError(f"device {device!r}: must be 'cpu' or 'cuda:N' with the number of a GPU")
        return Backend(int(match[1]))

    @property
    def decoder(self) -> str:
        """DALI's name of the decoder's backend."""
        return "cpu" if self.gpu is None else "mixed"

    def place(self, node: Any) -> Any:
        """Move a host value to the backend of pixel operators."""
        return node if self.gpu is None else node.gpu()
