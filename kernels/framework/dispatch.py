"""Calls of plugin ops with any number of inputs and outputs, eagerly and inside `nn.Graph.build`."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels.plugin import plugin_library
from kernels.runtime import Tensor, flow

Op = Any
"""A OneFlow op, ready to be called; OneFlow ships no type information."""
_VALUE_OFFSET = 16
"""Size in bytes of a Python object's header; in a pybind11 object, the pointer to the C++ object follows."""


@cache
def build_op(name: str, inputs: tuple[tuple[str, int], ...], outputs: int = 1) -> Op:
    """Return the op `name`, with (name, number of tensors) of each input and `outputs` outputs named "out"."""
    builder = flow.stateful_op(name)
    for input_name, count in inputs:
        builder = builder.Input(input_name, count)
    return builder.Output("out", outputs).Build()


def op_of(name: str, *inputs: str, outputs: int = 1) -> Op:
    """Return the op `name` whose inputs are single tensors of these names."""
    return build_op(name, tuple((one, 1) for one in inputs), outputs)


def call(op: Op, tensors: Sequence[Tensor], *, integers: Sequence[int] = (), floats: Sequence[float] = ()) -> Tensor:
    """Run an op with one output; arguments as for `call_many`."""
    return call_many(op, tensors, integers=integers, floats=floats)[0]


def call_many(
    op: Op, tensors: Sequence[Tensor], *, integers: Sequence[int] = (), floats: Sequence[float] = ()
) -> list[Tensor]:
    """Run an op.

    Args:
        op: from `build_op`.
        tensors: tensors of all inputs, in the order of `build_op`.
        integers, floats: the op's attributes (int64, float32).
    Returns:
        All outputs.
    Raises:
        RuntimeError: shapes or data types that the op rejects.
        ValueError: the plugin is not loaded.
    """
    inputs, outputs = (flow._oneflow_internal.TensorTuple(group) for group in (list(tensors), []))
    objects = (_cpp_object(item) for item in (op, inputs, outputs))
    numbers = (ctypes.c_int64 * len(integers))(*integers), len(integers)
    error = _dispatcher()(*objects, *numbers, (ctypes.c_float * len(floats))(*floats), len(floats))
    if error is not None:
        raise RuntimeError(f"{op.op_type_name}: {error.decode(errors='replace')}")
    return list(outputs)


def _cpp_object(wrapper: Any) -> int:
    return ctypes.c_void_p.from_address(id(wrapper) + _VALUE_OFFSET).value or 0


@cache
def _dispatcher() -> Any:
    # The GIL is kept, as in OneFlow's own functions, because recording an op may query Python's stack.
    function = ctypes.PyDLL(plugin_library()._name).graph_train_dispatch
    function.restype = ctypes.c_char_p
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, pointer, pointer, size, pointer, size]
    return function
