"""Memory sharing in compiled CPU graphs: no tensor is overwritten while it is still read."""

import ctypes
import gc
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oneflow.nn.graph.graph_block import GraphTensor

from graph_train.engine.step import EagerStep, GraphStep
from kernels.framework.graph_memory import (
    MemoryPlan,
    compile_graph,
    compiled_job,
    last_memory_plan,
    share_graph_memory,
)
from kernels.framework.module_graph import ModuleGraph
from kernels.plugin import emulates_cuda, load_plugin, plugin_library
from kernels.runtime import Tensor, flow
from tests.graph_train.tiny import random_batch, tiny_schedule, tiny_step
from tests.python_process import run_python

ROOT = Path(__file__).resolve().parents[3]

lifetimes = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 30), st.integers(0, 30)).map(
        lambda drawn: (512 * drawn[0], min(drawn[1:]), max(drawn[1:]))
    ),
    max_size=40,
)


@pytest.fixture(autouse=True, scope="module")
def _plugin() -> None:
    assert load_plugin("require").loaded


@pytest.fixture(params=[True, False], ids=["shared", "separate"])
def sharing(request: pytest.FixtureRequest) -> Iterator[bool]:
    assert share_graph_memory(enabled=request.param)
    yield request.param
    share_graph_memory(enabled=True)


def _pack(tensors: list[tuple[int, int, int]]) -> tuple[int, npt.NDArray[np.int64]]:
    sizes, begins, ends = (np.array([row[column] for row in tensors], dtype=np.int64) for column in range(3))
    offsets = np.zeros(len(tensors), dtype=np.int64)
    pack = plugin_library().graph_train_pack
    pack.restype = ctypes.c_int64
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (sizes, begins, ends, offsets)]
    return pack(ctypes.c_int64(len(tensors)), *pointers), offsets


@given(lifetimes)
def test_live_tensors_do_not_overlap(tensors: list[tuple[int, int, int]]) -> None:
    block, offsets = _pack(tensors)
    places = [(offset, offset + size, begin, end) for offset, (size, begin, end) in zip(offsets, tensors, strict=True)]
    for i, (low, high, begin, end) in enumerate(places):
        assert low >= 0 and high <= block
        for other_low, other_high, other_begin, other_end in places[:i]:
            at_once = begin <= other_end and other_begin <= end
            assert not at_once or high <= other_low or other_high <= low


@given(lifetimes)
def test_planned_size_is_between_peak_and_sum(tensors: list[tuple[int, int, int]]) -> None:
    block, _ = _pack(tensors)
    in_use = [sum(size for size, begin, end in tensors if begin <= step <= end) for step in range(31)]
    assert max(in_use) <= block <= sum(size for size, _, _ in tensors)


def test_chain_needs_two_buffers() -> None:
    block, offsets = _pack([(512, step, step + 1) for step in range(10)])
    assert block == 2 * 512
    assert sorted(set(offsets.tolist())) == [0, 512]


class _Branches(flow.nn.Module):
    """Layers whose outputs are read immediately, much later, several times, or only by the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = flow.nn.ModuleList([flow.nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        early = self.layers[0](x)
        y = early
        for layer in self.layers[1:]:
            y = flow.nn.functional.silu(layer(y)) + y
        return y * early, y.sum(dim=(2, 3))


def _images(seed: int, px: int = 32) -> Tensor:
    return flow.tensor(np.random.default_rng(seed).normal(size=(2, 8, px, px)).astype(np.float32))


def test_graph_matches_eager_bitwise(sharing: bool) -> None:
    module = _Branches()
    graph = ModuleGraph(module)
    compile_graph(graph, _images(0))
    plan = last_memory_plan()
    assert (plan.shared > 0) == sharing
    for seed in range(4):
        for ours, expected in zip(graph(_images(seed)), module(_images(seed)), strict=True):
            np.testing.assert_array_equal(ours.numpy(), expected.detach().numpy())


def test_results_outlive_later_calls() -> None:
    module = _Branches()
    graph = ModuleGraph(module)
    results = [graph(_images(seed)) for seed in range(3)]
    for seed, result in enumerate(results):
        for ours, expected in zip(result, module(_images(seed)), strict=True):
            np.testing.assert_array_equal(ours.numpy(), expected.detach().numpy())


def test_two_graphs_do_not_share_memory() -> None:
    module = _Branches()
    graphs = {px: ModuleGraph(module) for px in (16, 32)}
    for seed in range(3):
        for px, graph in graphs.items():
            expected = module(_images(seed, px))[0].detach().numpy()
            np.testing.assert_array_equal(graph(_images(seed, px))[0].numpy(), expected)


def _trained(kind: type[EagerStep] | type[GraphStep], steps: int = 6) -> tuple[list[float], list[npt.NDArray[Any]]]:
    step, schedule = tiny_step(kind), tiny_schedule()
    losses = []
    for number in range(steps):
        images, labels = random_batch(number, side=64, labels=4)
        losses.append(step(flow.tensor(images), flow.tensor(labels), schedule.at(number, 0)).total)
    step.state.flush()
    return losses, [parameter.numpy() for parameter in step.state.network.parameters()]


def test_training_steps_match_eager_bitwise(sharing: bool) -> None:
    losses, weights = _trained(GraphStep)
    assert (last_memory_plan() != MemoryPlan(0, 0, 0)) == sharing
    expected_losses, expected_weights = _trained(EagerStep)
    assert losses == expected_losses
    for ours, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.skipif(emulates_cuda(), reason="packed weights, which only CUDA has, are kept for the backward pass")
def test_training_step_needs_less_than_half_the_memory() -> None:
    _trained(GraphStep, steps=1)
    plan = last_memory_plan()
    assert plan.peak <= plan.shared <= 1.1 * plan.peak
    assert plan.shared < plan.separate / 2


def _bytes_in_use() -> int:
    """Return the bytes in use in the C library's heaps."""

    class Heaps(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        ]

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Heaps
    return int(mallinfo2().uordblks)


def test_compile_time_memory_is_freed() -> None:
    module, images = _Branches(), _images(0)
    compile_graph(ModuleGraph(module), images)  # exclude memory allocated by the first graph
    kept = {}
    for name, compiled in (("all", ModuleGraph._compile), ("needed", compile_graph)):
        graphs = [ModuleGraph(module) for _ in range(4)]
        gc.collect()
        before = _bytes_in_use()
        for graph in graphs:
            compiled(graph, images)
        gc.collect()
        kept[name] = _bytes_in_use() - before
    assert kept["needed"] < 0.5 * kept["all"]


def test_graph_can_be_printed_and_more_graphs_compiled() -> None:
    module = _Branches()
    graph = ModuleGraph(module)
    compile_graph(graph, _images(0))
    job = compiled_job(graph)
    assert sum(op.HasField("user_conf") for op in job.net.op) > 10
    assert ModuleGraph(module)(_images(0))[0].shape == (2, 8, 32, 32)  # compiled by its first call


def test_variables_need_no_scope_of_their_own() -> None:
    module = _Branches()
    own, shared = ModuleGraph(module), ModuleGraph(module)
    own._compile(_images(0))
    compile_graph(shared, _images(0))
    assert _variable_names(shared) == _variable_names(own)
    scopes = [{state.to(GraphTensor)._scope is None for state in graph._state()} for graph in (own, shared)]
    assert scopes == [{False}, {True}]


def _variable_names(graph: flow.nn.Graph) -> list[str]:
    job = compiled_job(graph)
    return [op.name for op in job.net.op if op.HasField("variable_conf")]


_UNUSED_GRAPH = """
from kernels.framework.graph_memory import built_job, compile_graph
from kernels.plugin import load_plugin
from kernels.runtime import flow
load_plugin("require")
layer, x = flow.nn.Linear(4, 4), flow.ones(2, 4)
class Layer(flow.nn.Graph):
    def __init__(self):
        super().__init__()
        self.layer = layer
    def build(self, x):
        return self.layer(x)
class Failing(Layer):
    def build(self, x):
        raise RuntimeError(self.layer(x).shape)
class Sum(flow.nn.Graph):
    def build(self, x):
        return x + layer.bias
assert len(built_job(Layer(), x).net.op) > 3
assert (Sum()(x) == x + layer.bias).numpy().all()
try:
    compile_graph(Failing(), x)
except RuntimeError:
    assert (Sum()(x) == x + layer.bias).numpy().all()
    print("both")
"""


def test_unused_graphs_do_not_disturb_later_ones() -> None:
    # Without forgetting the tensors of the first graph, OneFlow aborts the process in the second one.
    done = run_python("-c", _UNUSED_GRAPH, cwd=ROOT)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["both"]), done.stderr[-2000:]


def test_graph_with_loaded_state_raises() -> None:
    graph = ModuleGraph(_Branches())
    graph.load_state_dict({"System-Train-TrainStep": flow.zeros(1, dtype=flow.int64)})
    with pytest.raises(ValueError, match=r"its own loaded state \(System-Train-TrainStep\)"):
        compile_graph(graph, _images(0))


_TWO_RANKS = """
import sys
from kernels.framework.graph_memory import MemoryPlan, compile_graph, last_memory_plan
from kernels.plugin import emulates_cuda, load_plugin, plugin_library
from kernels.runtime import flow
from kernels.framework.module_graph import ModuleGraph
load_plugin("require")
ranks, rank = flow.placement("cpu", ranks=[0, 1]), flow.env.get_rank()
module = flow.nn.Linear(4, 4).to_global(placement=ranks, sbp=flow.sbp.broadcast)
x = flow.ones(2, 4).to_global(placement=ranks, sbp=flow.sbp.split(0))
compile_graph(ModuleGraph(module), x)
assert (last_memory_plan() == MemoryPlan(0, 0, 0)) == (rank == 1)
graph = ModuleGraph(module)
graph.build_graph(x)
plugin_library().graph_train_free_build_records()
graph._c_nn_graph.complie_and_init_runtime()
graph._is_compiled = True
freed = [plugin_library().graph_train_free_plan() for _ in range(2)]
assert (graph(x) == module(x)).numpy().all()
sys.stderr.write(f"rank {rank} freed {freed}\\n")
"""


@pytest.mark.distributed
def test_every_rank_frees_its_plan(tmp_path: Path) -> None:
    program = tmp_path / "ranks.py"
    program.write_text(_TWO_RANKS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--nproc_per_node", "2", "--master_port", str(port)]
    done = run_python("-m", "oneflow.distributed.launch", *flags, str(program), cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [f"rank {rank} freed [1, 0]" in done.stderr for rank in range(2)] == [True, True], done.stderr[-3000:]


def test_training_step_op_count() -> None:
    # Each costs every step time. Per layer: convolution, statistics, normalisation, and their gradients.
    step, schedule = tiny_step(GraphStep), tiny_schedule()
    images, labels = random_batch(0, side=64, labels=4)
    step(flow.tensor(images), flow.tensor(labels), schedule.at(0, 0))
    (job,) = step.jobs()
    network = step.state.network
    layers = sum(isinstance(module, flow.nn.Conv2d) for module in network.modules())
    computing = sum(op.HasField("user_conf") for op in job.net.op)
    variables = sum(op.HasField("variable_conf") for op in job.net.op)
    assert computing < 8 * layers + 90
    assert variables < 2 * len(list(network.parameters())) + len(list(network.buffers()))
