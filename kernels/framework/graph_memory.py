"""Memory of compiled graphs: what their tensors take on a CPU, and what is kept of their description.

OneFlow lets the tensors of a graph share memory on CUDA only. On the CPU the plugin does (`native/graph_memory.cpp`).
"""

import ctypes
from dataclasses import dataclass
from typing import Any

from kernels.plugin import is_loaded, plugin_library
from kernels.runtime import Tensor, flow


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of the last graph that was compiled on the CPU, over all its processes; variables are in none of them.

    Attributes:
        separate: what its tensors would take with memory of their own, as OneFlow plans it.
        shared: what they take.
        peak: what is in use at once, at most: the least that any plan for that order of execution can take.
    """

    separate: int
    shared: int
    peak: int


def share_graph_memory(*, enabled: bool) -> bool:
    """Set whether tensors of CPU graphs compiled from now on reuse the memory of those no longer read.

    They do from the moment the plugin is loaded; results are the same bits either way.

    Returns:
        False where this build of OneFlow cannot be told to: each tensor has memory of its own then.

    Raises:
        ValueError: the plugin is not loaded.
    """
    return bool(plugin_library().graph_train_share_graph_memory(int(enabled)))


def last_memory_plan() -> MemoryPlan:
    """Return the memory of the last graph planned in this process.

    It is zeros if nothing was shared, and on ranks other than 0, which get their plan from rank 0.

    Raises:
        ValueError: the plugin is not loaded.
    """
    sizes = (ctypes.c_int64 * 3)()
    plugin_library().graph_train_last_memory_plan(sizes)
    return MemoryPlan(*sizes)


def compile_graph(graph: Any, *inputs: Tensor) -> None:
    """Compile an `nn.Graph` for inputs of these shapes, as its first call would, and free what only compiling needs.

    `nn.Graph` keeps three descriptions of itself to print them, the compiler its records (with the plugin they go too).

    Raises:
        ValueError: state of the graph's own was loaded (`Graph.load_state_dict`); modules are to be loaded themselves.
    """
    if graph._additional_variable_tobe_loaded:
        names = ", ".join(graph._additional_variable_tobe_loaded)
        raise ValueError(f"{graph.name}: has loaded state of its own ({names}); call it, or load its modules instead")
    graph.build_graph(*inputs)
    graph._forward_job_proto = graph._full_job_proto = None
    if is_loaded():
        plugin_library().graph_train_forget_building()
    flow._oneflow_internal.eager.Sync()  # all state has its values
    graph._c_nn_graph.complie_and_init_runtime()
    graph._is_compiled = True
    if is_loaded():
        plugin_library().graph_train_forget_plan()
    # glibc's own, absent from other C libraries.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
