"""Large blocks of host memory: clear, mapped at once, and returned to the system."""

from tests.python_process import run_python

_PROGRAM = """
import os
import numpy as np
from kernels.plugin import load_plugin, plugin_library
load_plugin("require")
from kernels.framework.graph_memory import compile_graph
from kernels.runtime import flow

PAGES, LARGE = os.sysconf("SC_PAGESIZE"), 16 << 20  # float32 numbers: 64 MiB
library = plugin_library()

def resident():
    flow._oneflow_internal.eager.Sync()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGES

def mapped():
    flow._oneflow_internal.eager.Sync()
    return library.graph_train_mapped_bytes()

def empty_cache():
    flow._oneflow_internal.eager.Sync()
    flow._oneflow_internal.EmptyCache()

before = resident()
values = flow.empty(LARGE)
assert mapped() == 4 * LARGE
if tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (5, 14):
    assert resident() - before >= 4 * LARGE
assert not values.numpy().any()
values[:] = 1.5
assert (values.numpy() == 1.5).all()
del values
full = resident()
empty_cache()
assert mapped() == 0
assert full - resident() >= 4 * LARGE - 256 * PAGES  # the call itself touches a few new pages

small = flow.empty(LARGE // 4)
assert mapped() == 0

class Doubled(flow.nn.Graph):
    def build(self, x):
        return (x * 2).sum()

ones = flow.ones(LARGE)
count = mapped()
graph = Doubled()
compile_graph(graph, ones)
assert graph(ones).item() == 2 * LARGE
assert mapped() >= count + 4 * LARGE  # the product

assert library.graph_train_map_large_blocks(0)
count = mapped()
large = flow.zeros(2 * LARGE)
assert mapped() == count
print("done")
"""


def test_large_blocks() -> None:
    done = run_python("-c", _PROGRAM, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["done"]), done.stderr[-2000:]
