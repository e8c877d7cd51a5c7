"""Calling the plugin's own ops: OneFlow has no public dispatcher for a new op, so generic ones are borrowed, here only.

A dispatcher hands its tensors and attributes to whichever op it is given. The attributes' names come with the borrowed
dispatcher; the C++ side reads them under the neutral names of `csrc/attributes.h`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels.runtime import Tensor, flow

Op = Any
"""An op of OneFlow, ready to be given to a dispatcher; OneFlow ships no type information."""


@cache
def build_op(name: str, inputs: tuple[tuple[str, int], ...], outputs: int = 1) -> Op:
    """The op `name` with its (input name, number of tensors) pairs and so many tensors under the output name "out"."""
    builder = flow.stateful_op(name)
    for input_name, count in inputs:
        builder = builder.Input(input_name, count)
    return builder.Output("out", outputs).Build()


def call(
    op: Op, tensors: Sequence[Tensor], *, integers: tuple[int, int] = (0, 0), floats: Sequence[float] = ()
) -> Tensor:
    """Runs an op with any number of inputs and one output.

    Args:
        op: from `build_op`.
        tensors: of all inputs, in the order of `build_op`.
        integers, floats: attributes FIRST_INTEGER, SECOND_INTEGER and FLOATS (float32) on the C++ side.
    """
    return flow._C.dispatch_crop_mirror_normalize_from_uint8(
        op,
        flow._oneflow_internal.TensorTuple(list(tensors)),
        crop_h=integers[0],
        crop_w=integers[1],
        mean=list(floats),
        std=[],
        crop_pos_x=0.0,
        crop_pos_y=0.0,
        output_dtype=flow.float32,
        output_layout="",
        color_space="",
    )


def call_pair(op: Op, first: Tensor, second: Tensor) -> Sequence[Tensor]:
    """Runs an op with two inputs and any number of outputs; it declares the attribute `num_sample` (int64), unused."""
    return flow._C.dispatch_distributed_partial_fc_sample(op, first, second, num_sample=0)
