"""Memory of compiled graphs: sharing between tensors on the CPU, and freeing of compile-time data.

OneFlow reuses memory between the tensors of a graph on CUDA only; the plugin does so on the CPU
(`native/graph_memory.cpp`).
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kernels.host.heap import heap_for_compiling
from kernels.plugin import is_loaded, plugin_library
from kernels.runtime import Tensor, flow

_BUILDING = threading.Lock()


@dataclass(frozen=True)
class MemoryPlan:
    """Memory in bytes of the last graph compiled on the CPU, over all ranks, without variables.

    Attributes:
        separate: without sharing, as planned by OneFlow.
        shared: with sharing.
        peak: maximum in use at any time, a lower bound of any plan for this order of execution.
    """

    separate: int
    shared: int
    peak: int


def share_graph_memory(*, enabled: bool) -> bool:
    """Enable or disable memory sharing in CPU graphs compiled from now on.

    It is enabled when the plugin is loaded; results are bitwise the same.

    Returns:
        False if this build of OneFlow does not support it; every tensor then has its own memory.

    Raises:
        ValueError: the plugin is not loaded.
    """
    return bool(plugin_library().graph_train_share_graph_memory(int(enabled)))


def last_memory_plan() -> MemoryPlan:
    """Return the memory of the last graph planned in this process.

    All values are 0 if nothing was shared, and on ranks other than 0, which receive their plan from rank 0.

    Raises:
        ValueError: the plugin is not loaded.
    """
    sizes = (ctypes.c_int64 * 3)()
    plugin_library().graph_train_last_memory_plan(sizes)
    return MemoryPlan(*sizes)


def compile_graph(graph: Any, *inputs: Tensor) -> None:
    """Compile an `nn.Graph` for inputs of these shapes, as its first call would, and free compile-time memory.

    `nn.Graph` keeps three descriptions of itself for printing, and the compiler keeps its records (freed by the
    plugin).

    Raises:
        ValueError: state was loaded by `Graph.load_state_dict`; load the modules instead.
    """
    if graph._additional_variable_tobe_loaded:
        names = ", ".join(graph._additional_variable_tobe_loaded)
        raise ValueError(f"{graph.name}: has its own loaded state ({names}); call it, or load its modules instead")
    with heap_for_compiling():
        _build(graph, *inputs)
        graph._forward_job_proto = graph._full_job_proto = None
        if is_loaded():
            plugin_library().graph_train_free_build_records()
        flow._oneflow_internal.eager.Sync()  # all state has its values
        graph._c_nn_graph.complie_and_init_runtime()
        graph._is_compiled = True
        if is_loaded():
            plugin_library().graph_train_free_plan()


def built_job(graph: Any, *inputs: Tensor) -> Any:
    """Build an `nn.Graph` for inputs of these shapes without compiling it, and return the `JobProto` with its ops."""
    _build(graph, *inputs)
    _clear_tensor_names()
    return graph._full_job_proto


def compiled_job(graph: Any) -> Any:
    """Return the `JobProto` of a compiled `nn.Graph`, after all passes of the compiler; only rank 0 has it."""
    return flow.core.job.job_pb2.Job.FromString(graph._c_nn_graph.get_current_job_str())


def _build(graph: Any, *inputs: Tensor) -> None:
    try:
        with _variables_in_module_scope():
            graph.build_graph(*inputs)
    except BaseException:
        _clear_tensor_names()
        raise


def _clear_tensor_names() -> None:
    """Clear OneFlow's record of the tensors of a graph that will not be compiled, so that later graphs do not abort."""
    if is_loaded():
        plugin_library().graph_train_clear_tensor_names()


@contextlib.contextmanager
def _variables_in_module_scope() -> Iterator[None]:
    """Build variables in the scope of their module instead of one scope each, which saves a sixth of compiling.

    A scope of its own would only matter to a variable with its own pipeline stage.
    """
    variable = flow.nn.graph.graph_block.GraphTensor
    with _BUILDING:
        own_scope = variable.scope_context
        variable.scope_context = lambda _: contextlib.nullcontext()
        try:
            yield
        finally:
            variable.scope_context = own_scope
