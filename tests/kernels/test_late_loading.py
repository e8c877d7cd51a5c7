"""Loading the plugin after OneFlow has run ops gives the same results as loading it first."""

import subprocess
import sys

import pytest

STOCK_OPS = """
from kernels.runtime import flow
from models.network import DetectionModel
from tests.graph_train.tiny import random_batch, tiny_network, tiny_step
from graph_train.engine.step import EagerStep, GraphStep

def train(kind, steps=3):
    step = tiny_step(kind)
    from tests.graph_train.tiny import tiny_schedule
    for number in range(steps):
        images, labels = random_batch(number, side=64, labels=5)
        step(flow.tensor(images), flow.tensor(labels), tiny_schedule().at(number, 0))
    step.state.flush()
    return step.state.arrays()

def digest(arrays):
    import hashlib
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
"""
BEFORE = """
train(EagerStep)
flow.nn.MaxPool2d(5, 1, 2)(flow.zeros(0, 4, 8, 8)).numpy()
flow._C.max_pool2d(flow.zeros(1, 8, 8, 4), kernel_size=5, stride=1, padding=2, data_format="channels_last")
"""
GRAPH_BEFORE = """
train(GraphStep)
"""
AFTER = """
from kernels.plugin import load_plugin
load_plugin("require")
print(digest(train(EagerStep)), digest(train(GraphStep)))
"""


def output_of(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def loaded_first() -> str:
    return output_of(STOCK_OPS + AFTER)


def test_plugin_changes_results(loaded_first: str) -> None:
    """If results were equal, the tests below would prove nothing."""
    eager, graph = loaded_first.split()
    assert eager == graph
    assert output_of(STOCK_OPS + "print(digest(train(EagerStep)))") != eager


@pytest.mark.parametrize("before", [BEFORE, GRAPH_BEFORE, BEFORE + GRAPH_BEFORE], ids=["eager", "graph", "both"])
def test_executed_ops_switch_to_plugin_kernels(before: str, loaded_first: str) -> None:
    assert output_of(STOCK_OPS + before + AFTER) == loaded_first
