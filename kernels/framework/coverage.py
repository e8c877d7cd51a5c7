"""Coverage of a graph's ops by the plugin's CUDA kernels; OneFlow 0.9's own end at compute capability 8.9."""

import ctypes
from collections import Counter
from collections.abc import Iterable
from typing import Any

from kernels.plugin import plugin_library

# Copies by the driver. OneFlow inserts the cast where the sharding of a tensor changes.
COPIES = frozenset(
    {"reshape", "reshape_like", "expand_dims", "squeeze", "identity", "copy", "hierarchical_parallel_cast"}
)


def job_ops(job: Any) -> dict[str, int]:
    """Count the ops of a compiled graph's job."""
    return dict(Counter(op_type(op) for op in job.net.op))


def op_type(op: Any) -> str:
    """Return the op type of a graph's op; OneFlow's system ops end in `_conf`."""
    kind: str = op.WhichOneof("op_type")
    return str(op.user_conf.op_type_name) if kind == "user_conf" else kind


def covered_ops() -> frozenset[str]:
    """Return the ops with a CUDA kernel in the loaded plugin."""
    return frozenset(plugin_lines("graph_train_cuda_ops"))


def is_copy_or_system_op(op: str) -> bool:
    """Return whether an op is a copy or a OneFlow system op, such as a variable or an input."""
    return op in COPIES or op.endswith("_conf")


def uncovered_ops(ops: Iterable[str], covered: Iterable[str]) -> list[str]:
    """Return the ops that need a CUDA kernel of OneFlow, and thus fail on GPUs that it does not support."""
    return sorted(op for op in ops if not is_copy_or_system_op(op) and op not in covered)


def plugin_lines(function: str) -> list[str]:
    """Return the lines of text returned by a plugin function."""
    ask = getattr(plugin_library(), function)
    ask.restype = ctypes.c_char_p
    return list(ask().decode().splitlines())
