"""Tracing of executed ops: kernel owner and time of each; off until `trace_ops` is called."""

from dataclasses import dataclass

from kernels.framework.coverage import plugin_lines
from kernels.plugin import plugin_library
from kernels.runtime import flow


@dataclass(frozen=True)
class ExecutedOp:
    """All calls of an op in a graph or of an eager op.

    Attributes:
        kind: op type, such as graph_train_convolution.
        owner: owner of the kernel, "OneFlow" or "plugin".
        name: OneFlow's name of the op, unique within a graph.
        calls: number of calls.
        nanoseconds: total time of all calls; on CUDA, only of the launches.
        first_start: start of the first call, on the clock of `time.perf_counter_ns`.
        last_end: end of the last call.
    """

    kind: str
    owner: str
    name: str
    calls: int
    nanoseconds: int
    first_start: int
    last_end: int


def trace_ops() -> None:
    """Start recording executed ops; call it once, after loading the plugin and before any op runs."""
    plugin_library().graph_train_trace_ops()


def executed_ops() -> list[ExecutedOp]:
    """Return the ops executed since the last `reset_executed_ops`, eagerly or in finished graphs."""
    flow._oneflow_internal.eager.Sync()
    rows = (line.split("\t") for line in plugin_lines("graph_train_executed_ops"))
    return [ExecutedOp(kind, owner, name, *map(int, numbers)) for kind, owner, name, *numbers in rows]


def reset_executed_ops() -> None:
    """Clear the record of executed ops."""
    flow._oneflow_internal.eager.Sync()
    plugin_library().graph_train_reset_executed_ops()
