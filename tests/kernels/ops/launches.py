"""What CUDA kernels a call starts, for tests that run with `--kernels emulated-cuda`."""

import ctypes
from collections.abc import Callable

from kernels.plugin import plugin_library
from kernels.runtime import flow


def launches_of(call: Callable[[], object]) -> dict[str, int]:
    """Return names and numbers of the kernels that a call starts; empty where the CPU's kernels run."""
    library = plugin_library()
    library.graph_train_cuda_counts.restype = ctypes.c_char_p
    flow._oneflow_internal.eager.Sync()
    library.graph_train_cuda_reset_counts()
    call()
    flow._oneflow_internal.eager.Sync()
    lines = library.graph_train_cuda_counts().decode().splitlines()
    return {name: int(number) for name, number in (line.split() for line in lines)}


def shuffle_threads(seed: int) -> None:
    """Run emulated threads of a block in a random order from now on, for 0 in the order of their numbers."""
    plugin_library().graph_train_emulated_order(ctypes.c_uint64(seed))
