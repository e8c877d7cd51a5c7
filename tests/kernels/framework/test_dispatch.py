"""Calls of the plugin's ops: several inputs and outputs, attributes, errors, graphs."""

import numpy as np
import pytest

from kernels.framework import dispatch
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow


@pytest.fixture(autouse=True, scope="module")
def _plugin() -> None:
    load_plugin("require")


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 6, 5, 4)).astype(np.float32)


def pooled(x: Tensor) -> list[Tensor]:
    """Return the maxima and their indices within the windows."""
    op = dispatch.op_of("graph_train_max_pool", "x", outputs=2)
    return dispatch.call_many(op, (x,), integers=(2, 2, 0))


class _Graph(flow.nn.Graph):
    def build(self, *given: Tensor) -> list[Tensor]:
        return [*pooled(given[0]), flattened(list(given))]


def flattened(tensors: list[Tensor]) -> Tensor:
    """Concatenate all elements with an op that has any number of inputs of one name."""
    op = dispatch.build_op("graph_train_flatten", (("tensor", len(tensors)),))
    return dispatch.call(op, tensors)


def test_outputs_of_different_types() -> None:
    x = image()
    values, where = pooled(flow.tensor(x))
    windows = x[:, :6, :4].reshape(2, 3, 2, 2, 2, 4).transpose(0, 1, 3, 5, 2, 4).reshape(2, 3, 2, 4, 4)
    np.testing.assert_array_equal(values.numpy(), windows.max(axis=-1))
    assert where.dtype == flow.int32
    np.testing.assert_array_equal(where.numpy(), windows.argmax(axis=-1))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_repeated_inputs_of_one_name(count: int) -> None:
    arrays = [image(number)[: number % 2 + 1] for number in range(count)]
    joined = flattened([flow.tensor(array) for array in arrays]).numpy()
    np.testing.assert_array_equal(joined, np.concatenate([array.ravel() for array in arrays]))


def test_attributes_do_not_persist_between_calls() -> None:
    """Test calls with other values and another number of attributes than in the previous call."""
    op, x = dispatch.op_of("graph_train_upsample", "in"), flow.tensor(image())
    for factor in (2, 1, 3, 2):
        wanted = image().repeat(factor, axis=1).repeat(factor, axis=2)
        np.testing.assert_array_equal(dispatch.call(op, (x,), integers=(factor,)).numpy(), wanted)


def test_op_is_built_once() -> None:
    assert dispatch.op_of("graph_train_upsample", "in") is dispatch.op_of("graph_train_upsample", "in")


def test_wrong_shapes_raise_with_reason() -> None:
    with pytest.raises(RuntimeError, match=r"^graph_train_max_pool: (?s:.*)\(3 vs 4\)(?s:.*)pooling/register.cpp"):
        pooled(flow.zeros(2, 3, 4))
    op = dispatch.op_of("graph_train_max_pool", "x", outputs=2)
    with pytest.raises(RuntimeError, match=r"^graph_train_max_pool: Check failed: .*2 \* padding <= kernel"):
        dispatch.call_many(op, (flow.zeros(1, 4, 4, 2),), integers=(2, 2, 2))
    assert pooled(flow.zeros(1, 4, 4, 2))[0].shape == (1, 2, 2, 2)  # an error does not affect the op


def test_graph_rejects_wrong_shapes() -> None:
    with pytest.raises(RuntimeError, match="graph_train_max_pool"):
        _Graph()(flow.zeros(2, 3, 4))


def test_graph_matches_eager_bitwise() -> None:
    given = [flow.tensor(image(seed)) for seed in (1, 2)]
    eager = [*pooled(given[0]), flattened(given)]
    graph = _Graph()
    for _ in range(2):
        for ours, theirs in zip(graph(*given), eager, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.numpy().tobytes() == theirs.numpy().tobytes()
