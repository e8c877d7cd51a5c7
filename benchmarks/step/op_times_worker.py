"""Worker of `graph-bench ops`: executes compiled training steps and reports the time of each op."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.harness.channel import serve
from benchmarks.harness.points import Point, write_point
from benchmarks.step import step_worker
from benchmarks.step.graph_ops import ops_with_kernels
from graph_train.ranks.placement import Placement
from kernels.framework.activation_type import ActivationType
from kernels.framework.op_trace import ExecutedOp, executed_ops, reset_executed_ops, trace_ops
from kernels.plugin import load_plugin


class _Session:
    """The names of the ops of the graph, where they are timed."""

    names: frozenset[str] = frozenset()


def prepare(model: str, batch_size: int, imgsz: int, *, timed: bool) -> list[dict[str, Any]]:
    """Compile the step in float32 and execute it once; return the ops that have a kernel (`ops_with_kernels`)."""
    load_plugin("require")
    if timed:
        trace_ops()
    with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
        write_point(Path(folder), Point(model, batch_size, imgsz))
        step_worker.prepare_kind(Placement("cpu"), Path(folder), ActivationType.FLOAT32, graph=True)
    ops = ops_with_kernels(step_worker.step_job())
    _Session.names = frozenset(op["name"] for op in ops) if timed else frozenset()
    return ops


def steps(count: int) -> dict[str, Any]:
    """Execute steps.

    Returns:
        "seconds": of all steps. Where ops are timed, ms of one step, averaged: "ops_ms" by op, "others_ms" of
        OneFlow's step counter and of copies, "span_ms" from the start of the first of the ops to the end of the last.
    """
    seconds, span = 0.0, 0
    by_op: Counter[str] = Counter()
    for _ in range(count):
        if _Session.names:
            reset_executed_ops()
        seconds += step_worker.steps(1)
        if _Session.names:
            executed = executed_ops()
            span += _span(executed)
            by_op.update({op.name: op.nanoseconds for op in executed})
    if not _Session.names:
        return {"seconds": seconds}
    milliseconds = {name: spent / count / 1e6 for name, spent in by_op.items()}
    ops = {name: spent for name, spent in milliseconds.items() if name in _Session.names}
    others = sum(milliseconds.values()) - sum(ops.values())
    return {"seconds": seconds, "ops_ms": ops, "others_ms": others, "span_ms": span / count / 1e6}


def _span(executed: list[ExecutedOp]) -> int:
    """Return nanoseconds from the start of the first op of the graph to the end of the last."""
    of_graph = [op for op in executed if op.name in _Session.names]
    return max(op.last_end for op in of_graph) - min(op.first_start for op in of_graph)


if __name__ == "__main__":
    serve({"prepare": prepare, "steps": steps})
