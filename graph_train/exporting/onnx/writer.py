"""Builder of ONNX graphs with readable names."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

OPSETS = (12, 22)
"""Oldest and newest supported opset."""
_AXES_ARE_INPUTS = 13
_EXTERNAL_DATA_BYTES = 2_000_000_000
"""Limit of a protobuf file."""


class GraphWriter:
    """An ONNX graph under construction; names of nodes and tensors follow `DetectionModel`, e.g. `model.2.cv1.conv`."""

    def __init__(self, opset: int) -> None:
        """Start an empty graph.

        Raises:
            ValueError: the opset is not supported.
        """
        if not OPSETS[0] <= opset <= OPSETS[1]:
            raise ValueError(f"--opset {opset}: must be between {OPSETS[0]} and {OPSETS[1]}")
        self.opset = opset
        self._scopes: list[str] = []
        self._nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._tensors: list[TensorProto] = []
        self._used_names: set[str] = set()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix all names added in this context."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def add(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output; return its name, which is that of the node too."""
        return self.add_many(operator, inputs, [name], **attributes)[0]

    def add_many(self, operator: str, inputs: Sequence[str], names: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node with several outputs, named after the first; return their names."""
        outputs = [self._unused(name) for name in names]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs

    def constant(self, value: Any, name: str, dtype: Any = np.float32) -> str:
        """Add a constant, unless an equal one exists; return its name."""
        array = np.array(value, dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._unused(name)
            self._tensors.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def integers(self, values: Sequence[int]) -> str:
        """Add a constant (n,) int64."""
        return self.constant(values, f"shape_{'x'.join(map(str, values))}".replace("-", "_"), np.int64)

    def part(self, tensor: str, name: str, *, axis: int, start: int, end: int, step: int = 1) -> str:
        """Add a slice along an axis."""
        bounds = [self.integers([value]) for value in (start, end, axis, step)]
        return self.add("Slice", [tensor, *bounds], name)

    def reshaped(self, tensor: str, shape: Sequence[int], name: str) -> str:
        """Add a reshape; 0 keeps a dimension, -1 is inferred."""
        return self.add("Reshape", [tensor, self.integers(shape)], name)

    def summed(self, tensor: str, axis: int, name: str) -> str:
        """Add a sum over an axis, which is removed."""
        if self.opset < _AXES_ARE_INPUTS:
            return self.add("ReduceSum", [tensor], name, axes=[axis], keepdims=0)
        return self.add("ReduceSum", [tensor, self.integers([axis])], name, keepdims=0)

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], metadata: dict[str, str]) -> ModelProto:
        """Return the finished model.

        Args:
            inputs, outputs: value infos.
            metadata: entries of `metadata_props`.
        Raises:
            ValueError: the model is too large for a single ONNX file.
        """
        if sum(tensor.ByteSize() for tensor in self._tensors) > _EXTERNAL_DATA_BYTES:
            raise ValueError("the network has more than 2 GB of weights, the limit of a single ONNX file")
        graph = helper.make_graph(self._nodes, "graph-train", list(inputs), list(outputs), initializer=self._tensors)
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=helper.find_min_ir_version_for(imports),
            producer_name="graph-train",
        )
        helper.set_model_props(model, metadata)
        return model

    def _unused(self, name: str) -> str:
        scoped = ".".join([*self._scopes, name])
        unused, number = scoped, 2
        while unused in self._used_names:
            unused, number = f"{scoped}_{number}", number + 1
        self._used_names.add(unused)
        return unused
