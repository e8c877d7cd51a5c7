"""Compiler passes that skip shape inference: the compiled graph is the same."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

from kernels.framework.graph_memory import MemoryPlan, compile_graph, compiled_job, last_memory_plan
from kernels.framework.module_graph import ModuleGraph
from kernels.plugin import load_plugin, plugin_library
from kernels.runtime import Tensor, flow

_NUMBER = re.compile(r"\d+")
"""Numbers within names and symbols, which count up during a process."""


@pytest.fixture(autouse=True)
def _skipped_again() -> Iterator[None]:
    load_plugin("require")
    yield
    plugin_library().graph_train_skip_unread_shapes(1, 1)


class _Network(flow.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = flow.nn.ModuleList([flow.nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = layer(x) + x
        return x, x.sum(dim=(2, 3))


def _compiled(module: flow.nn.Module, images: Tensor) -> tuple[list[bytes], list[str], MemoryPlan, int]:
    """Return the outputs, the final ops without numbers, the memory plan, and how often shapes were inferred."""
    before = plugin_library().graph_train_shape_inferences()
    graph = ModuleGraph(module)
    compile_graph(graph, images)
    count = plugin_library().graph_train_shape_inferences() - before
    job = compiled_job(graph)
    ops = sorted(_NUMBER.sub("", str(op)) for op in job.net.op)
    return [output.numpy().tobytes() for output in graph(images)], ops, last_memory_plan(), count


def test_graph_is_the_same_with_fewer_inferences() -> None:
    module = _Network()
    images = flow.tensor(np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32))
    assert plugin_library().graph_train_skip_unread_shapes(1, 1)
    outputs, ops, plan, count = _compiled(module, images)
    assert plugin_library().graph_train_skip_unread_shapes(0, 1)
    expected_outputs, expected_ops, expected_plan, all_inferences = _compiled(module, images)
    assert outputs == expected_outputs
    assert plan == expected_plan
    assert len(ops) > 10
    assert ops == expected_ops
    assert (count, all_inferences) == (3, 14)
