"""A graph run may finish before OneFlow has queued it, and OneFlow's threads sleep while a graph runs."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.python_process import run_python

_ENQUEUE = "_ZN7oneflow2vm19LazyJobStreamPolicy14EnqueueNNGraphERKSt10shared_ptrINS_9NNGraphIfEE"

# Loaded before OneFlow, so that OneFlow calls it: delays the thread that has started a run.
_DELAYING_LIBRARY = """
#include <dlfcn.h>
#include <unistd.h>
extern "C" void %(enqueue)s(void* stream, const void* graph) {
  usleep(20000);
  static void* const oneflow = dlopen("%(library)s", RTLD_LAZY | RTLD_NOLOAD);
  static const auto next = reinterpret_cast<void (*)(void*, const void*)>(dlsym(oneflow, "%(enqueue)s"));
  next(stream, graph);
}
"""

_PROGRAM = """
import numpy as np
from kernels.plugin import load_plugin
load_plugin("require")
from kernels.framework.graph_memory import compile_graph
from kernels.runtime import flow

class Doubled(flow.nn.Graph):
    def build(self, x):
        return x * 2

values = flow.tensor(np.arange(4, dtype=np.float32))
graphs = [Doubled(), Doubled()]
for graph in graphs:
    compile_graph(graph, values)
for number in range(40):
    assert (graphs[number % 2](values).numpy() == [0, 2, 4, 6]).all()
print("done")
"""


# Loaded before libc, so that OneFlow and the plugin call it.
_COUNTING_LIBRARY = """
#include <atomic>
#include <sys/syscall.h>
#include <unistd.h>
static std::atomic<long> calls{0};
extern "C" int sched_yield() { ++calls; return syscall(SYS_sched_yield); }
extern "C" long counted() { return calls; }
"""

_COUNTING_PROGRAM = """
import ctypes
from kernels.plugin import load_plugin, plugin_library
load_plugin("require")
from kernels.framework.graph_memory import compile_graph
from kernels.runtime import flow

class Product(flow.nn.Graph):
    def build(self, x):
        for _ in range(8):
            x = flow.matmul(x, x)
        return x

ones = flow.full((1500, 1500), 1 / 1500)
graph = Product()
compile_graph(graph, ones)
counted = ctypes.CDLL(None).counted
counted.restype = ctypes.c_long

def yields():
    before = counted()
    for _ in range(3):
        assert abs(graph(ones).numpy() * 1500 - 1).max() < 1e-3
    return counted() - before

yields()
sleeping = yields()
assert plugin_library().graph_train_sleep_while_graphs_run(0)
print(sleeping, yields())
"""


def _preloaded(source: str, folder: Path) -> dict[str, str]:
    """Return an environment in which a library compiled from C++ is loaded first."""
    (folder / "first.cpp").write_text(source)
    library = folder / "first.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", "first.cpp", "-o", library, "-ldl"], check=True, cwd=folder)
    preloaded = " ".join((os.environ.get("LD_PRELOAD", ""), str(library)))  # the sanitizers', which must be first
    return {**os.environ, "LD_PRELOAD": preloaded.strip()}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_graph_run_may_end_before_it_is_queued(tmp_path: Path) -> None:
    found = importlib.util.find_spec("oneflow")
    assert found is not None and found.origin is not None
    (library,) = (Path(found.origin).parents[1] / "oneflow.libs").glob("liboneflow-*.so")
    source = _DELAYING_LIBRARY % {"enqueue": _ENQUEUE, "library": library.name}
    done = run_python("-c", _PROGRAM, env=_preloaded(source, tmp_path), timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["done"]), done.stderr[-2000:]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_threads_sleep_while_a_graph_runs(tmp_path: Path) -> None:
    done = run_python("-c", _COUNTING_PROGRAM, env=_preloaded(_COUNTING_LIBRARY, tmp_path), timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    sleeping, yielding = map(int, done.stdout.split())
    assert sleeping < yielding / 10
