"""Which of DALI's backends a graph works on: the CPU's, or one GPU's behind a decoder that both share."""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Backend:
    """The device that a graph decodes and draws on.

    Graphs hand every value they place through this type, so that the graph of a GPU can be built, and compared, on the
    CPU.

    Attributes:
        gpu: number of the GPU among those that the process may see; None for the CPU.
    """

    gpu: int | None = None

    @staticmethod
    def of(device: str) -> "Backend":
        """Return the backend for a device.

        Args:
            device: "cpu", or "cuda:1" for the second GPU that the process may see, as OneFlow spells it.
        Raises:
            ValueError: neither of these.
        """
        if device == "cpu":
            return Backend()
        match = re.fullmatch(r"cuda:(\d+)", device)
        if match is None:
            raise ValueError(f"device {device!r}: must be 'cpu' or 'cuda:N' with the number of a GPU")
        return Backend(int(match[1]))

    @property
    def decoder(self) -> str:
        """DALI's name of the backend that takes encoded images from the host."""
        return "cpu" if self.gpu is None else "mixed"

    @property
    def operators(self) -> str:
        """DALI's name of the backend of operators on pixels."""
        return "cpu" if self.gpu is None else "gpu"

    def place(self, node: Any) -> Any:
        """Return a value of the host where operators on pixels take it."""
        return node if self.gpu is None else node.gpu()
