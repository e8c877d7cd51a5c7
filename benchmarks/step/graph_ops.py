"""The ops of a compiled training step as OneFlow describes them: the part of the step and the arithmetic of each."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kernels.framework.coverage import op_type

FORWARD, LOSS, BACKWARD, UPDATE = PARTS = ("forward", "loss", "backward", "update")
_LOSS_OP = "graph_train_detection_loss"
CONVOLUTIONS: Mapping[str, tuple[str, str]] = {
    "graph_train_convolution": ("output", "out"),
    "graph_train_convolution_data_grad": ("input", "dy"),
    "graph_train_convolution_filter_grad": ("input", "dy"),
}
"""Convolution ops -> name of the input or output with the shape of the forward output."""


def ops_with_kernels(job: Any) -> list[dict[str, Any]]:
    """Return the ops of a training step that a kernel computes, in OneFlow's order.

    Args:
        job: OneFlow's description of the graph.
    Returns:
        Rows with "name", "op" (its type), "part" (one of `PARTS`), and "gflop" (None unless it is a convolution).
    """
    ops = [op for op in job.net.op if op.HasField("user_conf")]
    parts = _parts(ops)
    shapes = {name: tuple(described.shape.dim) for name, described in job.helper.lbn2logical_blob_desc.items()}
    return [
        {"name": op.name, "op": op_type(op), "part": parts[op.name], "gflop": _convolution_gflop(op.user_conf, shapes)}
        for op in ops
    ]


def _parts(ops: Iterable[Any]) -> dict[str, str]:
    """Return the part of each op: forward up to the loss, backward from the loss, or update.

    The loss computes the gradients of the maps as well. `graph_train_begin_step` belongs to the update: it prepares the
    update's scalars, and averages the statistics of the step before.
    """
    kinds = {op.name: op_type(op) for op in ops}
    producers = {op.name: [name for name in _inputs(op) if name in kinds] for op in ops}
    (loss,) = (name for name, kind in kinds.items() if kind == _LOSS_OP)
    before: set[str] = set()
    waiting = [loss]
    while waiting:
        name = waiting.pop()
        if name not in before:
            before.add(name)
            waiting += producers[name]

    def part(name: str) -> str:
        if name == loss:
            return LOSS
        if kinds[name] == "graph_train_begin_step" or kinds[name].startswith("graph_train_update_"):
            return UPDATE
        return FORWARD if name in before else BACKWARD

    return {name: part(name) for name in kinds}


def _inputs(op: Any) -> list[str]:
    """Return the names of the ops whose outputs are inputs of an op."""
    return [tensor.partition("/")[0] for listed in op.user_conf.input.values() for tensor in listed.s]


def _convolution_gflop(conf: Any, shapes: Mapping[str, Sequence[int]]) -> float | None:
    """Return the GFLOP of a convolution or of one of its gradients, with a multiplication and an addition per term."""
    if conf.op_type_name not in CONVOLUTIONS:
        return None
    side, argument = CONVOLUTIONS[conf.op_type_name]
    output = shapes[getattr(conf, side)[argument].s[0]]
    weight = shapes[conf.input["weight"].s[0]]
    return 2 * math.prod(output) * math.prod(weight[1:]) / 1e9
