"""CUDA kernel launches of a call, for tests that run with `--kernels emulated-cuda`."""

import ctypes
from collections.abc import Callable

from kernels.plugin import plugin_library
from kernels.runtime import flow


def launches_of(call: Callable[[], object]) -> dict[str, int]:
    """Return how often a call launches each kernel; empty if CPU kernels run."""
    library = plugin_library()
    library.graph_train_cuda_counts.restype = ctypes.c_char_p
    flow._oneflow_internal.eager.Sync()
    library.graph_train_cuda_reset_counts()
    call()
    flow._oneflow_internal.eager.Sync()
    lines = library.graph_train_cuda_counts().decode().splitlines()
    return {name: int(number) for name, number in (line.split() for line in lines)}


def shuffle_threads(seed: int) -> None:
    """Run emulated threads of a block in random order from now on; seed 0 restores the natural order."""
    plugin_library().graph_train_emulated_order(ctypes.c_uint64(seed))
