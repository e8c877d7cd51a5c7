"""Data types of activations."""

from enum import IntEnum
from typing import Any

from kernels.runtime import flow


class ActivationType(IntEnum):
    """A data type of activations; our ops take its number as an attribute."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2

    @property
    def dtype(self) -> Any:
        """OneFlow's data type."""
        return (flow.float32, flow.bfloat16, flow.float16)[self]

    @classmethod
    def of(cls, dtype: Any) -> "ActivationType":
        """Return the type of a tensor's `dtype`.

        Raises:
            ValueError: not a data type of activations.
        """
        for kind in cls:
            if kind.dtype == dtype:
                return kind
        raise ValueError(f"{dtype}: activations are float32, bfloat16 or float16")
