"""The data types that activations may have."""

from enum import IntEnum
from typing import Any

from kernels.runtime import flow


class ActivationType(IntEnum):
    """A data type of activations; the number is what our ops are told."""

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
            ValueError: a data type that activations never have.
        """
        for kind in cls:
            if kind.dtype == dtype:
                return kind
        raise ValueError(f"{dtype}: activations are float32, bfloat16 or float16")
