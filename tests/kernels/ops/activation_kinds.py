"""Activations for the tests of ops: every data type that the loaded kernels know, and their values in float32."""

import numpy as np
import pytest

from kernels.framework.activation_type import ActivationType
from kernels.plugin import emulates_cuda, is_loaded
from kernels.runtime import Tensor, flow

needs_plugin = pytest.mark.skipif(not is_loaded(), reason="needs the kernel plugin")
needs_cuda_kernels = pytest.mark.skipif(
    not emulates_cuda(), reason="CUDA kernels only: run with --kernels emulated-cuda"
)

ROUNDING = {ActivationType.FLOAT32: 2.0**-24, ActivationType.BFLOAT16: 2.0**-9, ActivationType.FLOAT16: 2.0**-12}
"""Largest relative error of one rounding, twice over for safety at the border of two exponents."""


def known_types() -> tuple[ActivationType, ...]:
    """Data types of activations that the loaded kernels compute with; float16 on CUDA only."""
    return tuple(ActivationType) if emulates_cuda() else (ActivationType.FLOAT32, ActivationType.BFLOAT16)


every_type = pytest.mark.parametrize("kind", known_types(), ids=lambda kind: kind.name.lower())


def activation(values: np.ndarray, kind: ActivationType) -> Tensor:
    """The values as a tensor of that type."""
    if kind is ActivationType.FLOAT16:
        return flow.tensor(values.astype(np.float16))
    return flow.tensor(np.asarray(values, np.float32)).to(kind.dtype)


def values_of(x: Tensor) -> np.ndarray:
    """What a tensor of any activation type holds, in float32."""
    x = x.detach()
    return x.numpy().astype(np.float32) if x.dtype == flow.float16 else x.to(flow.float32).numpy()
