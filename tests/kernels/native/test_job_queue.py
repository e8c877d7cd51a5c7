"""A graph run that finishes before OneFlow has queued it is harmless."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.python_process import preloading, run_python

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


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_graph_run_may_end_before_it_is_queued(tmp_path: Path) -> None:
    found = importlib.util.find_spec("oneflow")
    assert found is not None and found.origin is not None
    (library,) = (Path(found.origin).parents[1] / "oneflow.libs").glob("liboneflow-*.so")
    source = _DELAYING_LIBRARY % {"enqueue": _ENQUEUE, "library": library.name}
    done = run_python("-c", _PROGRAM, env=preloading(source, tmp_path), timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["done"]), done.stderr[-2000:]
