"""Which ops of a compiled graph have a CUDA kernel of ours: OneFlow 0.9 has code for GPUs from 6.0 to 8.9 only."""

import ctypes
from collections import Counter
from collections.abc import Iterable
from typing import Any

from kernels.plugin import plugin_library

# Copies by the driver. The cast is what OneFlow puts where a tensor is to be spread over ranks in another way.
COPIES = frozenset(
    {"reshape", "reshape_like", "expand_dims", "squeeze", "identity", "copy", "hierarchical_parallel_cast"}
)
_HOST_OPS = "System-Train-"
"""OneFlow's own counter of steps, which it keeps on the host wherever the step is."""


def job_ops(job: Any) -> dict[str, int]:
    """Count the ops of OneFlow's description of a graph, less what OneFlow keeps on the host."""
    return dict(Counter(op_kind(op) for op in job.net.op if runs_on_the_device(op)))


def op_kind(op: Any) -> str:
    """Return the type of an op of a graph; OneFlow's own kinds end in `_conf`."""
    kind: str = op.WhichOneof("op_type")
    return str(op.user_conf.op_type_name) if kind == "user_conf" else kind


def runs_on_the_device(op: Any) -> bool:
    """Return whether an op of a graph is not one that OneFlow keeps on the host."""
    return not op.name.startswith(_HOST_OPS)


def covered_ops() -> frozenset[str]:
    """Return the ops with a CUDA kernel of the plugin that is loaded."""
    return frozenset(plugin_lines("graph_train_cuda_ops"))


def needs_no_code(op: str) -> bool:
    """Whether an op is a copy, or one of OneFlow's own kinds, whose names end in `_conf`: variables, inputs, order."""
    return op in COPIES or op.endswith("_conf")


def uncovered_ops(ops: Iterable[str], covered: Iterable[str]) -> list[str]:
    """Return the ops that neither the plugin nor a copy computes: on a GPU that OneFlow has no code for they fail."""
    return sorted(op for op in ops if not needs_no_code(op) and op not in covered)


def plugin_lines(function: str) -> list[str]:
    """Return the lines of text that a function of the plugin gives."""
    ask = getattr(plugin_library(), function)
    ask.restype = ctypes.c_char_p
    return list(ask().decode().splitlines())
