"""Records which ops a process executes and whose kernels compute them, in the emulated CUDA build only."""

from kernels.framework.coverage import plugin_lines
from kernels.plugin import plugin_library
from kernels.runtime import flow


def trace_ops() -> None:
    """Start recording; must be called before any op is executed."""
    plugin_library().graph_train_trace_ops()


def executed_ops() -> list[tuple[str, str]]:
    """Return the ops executed, eagerly or in graphs, and whose kernels computed them: "OneFlow" or "plugin"."""
    flow._oneflow_internal.eager.Sync()
    pairs = (line.rsplit(" ", 1) for line in plugin_lines("graph_train_executed_ops"))
    return [(op, whose) for op, whose in pairs]


def forget_executed_ops() -> None:
    """Clear the record."""
    flow._oneflow_internal.eager.Sync()
    plugin_library().graph_train_forget_executed_ops()
