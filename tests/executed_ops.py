"""Which ops a process executes, and whose kernels compute them: in the build that emulates CUDA only."""

from kernels.framework.coverage import plugin_lines
from kernels.plugin import plugin_library
from kernels.runtime import flow


def trace_ops() -> None:
    """Note from now on which ops are executed; to be called before any is."""
    plugin_library().graph_train_trace_ops()


def executed_ops() -> list[tuple[str, str]]:
    """Return the ops that were executed, eagerly or in graphs, and whose kernels did it: "OneFlow" or "plugin"."""
    flow._oneflow_internal.eager.Sync()
    pairs = (line.rsplit(" ", 1) for line in plugin_lines("graph_train_executed_ops"))
    return [(op, whose) for op, whose in pairs]


def forget_executed_ops() -> None:
    """Forget what was executed so far."""
    flow._oneflow_internal.eager.Sync()
    plugin_library().graph_train_forget_executed_ops()
