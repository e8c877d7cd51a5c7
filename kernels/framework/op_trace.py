"""Which ops a process executes, whose kernels compute them, and how long each takes; off until `trace_ops`."""

from dataclasses import dataclass

from kernels.framework.coverage import plugin_lines
from kernels.plugin import plugin_library
from kernels.runtime import flow


@dataclass(frozen=True)
class ExecutedOp:
    """All calls of one op of a graph, or of one that is called eagerly.

    Attributes:
        kind: the op's type, such as graph_train_convolution.
        owner: whose kernel computes it, "OneFlow" or "plugin".
        name: OneFlow's name of the op, in a graph unique.
        calls: how often it was executed.
        nanoseconds: of all calls together; on CUDA of starting it, which does not wait for its end.
        first_start: of the first call, as `time.perf_counter_ns`.
        last_end: of the last call.
    """

    kind: str
    owner: str
    name: str
    calls: int
    nanoseconds: int
    first_start: int
    last_end: int


def trace_ops() -> None:
    """Record from now on which ops are executed; to be called once, after the plugin is loaded and before any op is.

    Without this call no op is slowed down.
    """
    plugin_library().graph_train_trace_ops()


def executed_ops() -> list[ExecutedOp]:
    """Return the ops that were executed since the last `forget_executed_ops`, eagerly or in graphs that have ended."""
    flow._oneflow_internal.eager.Sync()
    rows = (line.split("\t") for line in plugin_lines("graph_train_executed_ops"))
    return [ExecutedOp(kind, owner, name, *map(int, numbers)) for kind, owner, name, *numbers in rows]


def forget_executed_ops() -> None:
    """Forget what was executed so far."""
    flow._oneflow_internal.eager.Sync()
    plugin_library().graph_train_forget_executed_ops()
