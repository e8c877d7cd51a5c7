"""Large blocks of host memory: clear, mapped at once, and returned to the system."""

import shutil
from pathlib import Path

import pytest

from tests.python_process import preloading, run_python

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


_NO_MORE_THREADS = """
#include <cerrno>
#include <dlfcn.h>
#include <pthread.h>
extern "C" int fails = 0;
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* data) {
  if (fails != 0) return EAGAIN;
  return reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"))(thread, attributes, run, data);
}
"""
_PROGRAM_WITHOUT_THREADS = """
import ctypes
from kernels.plugin import load_plugin, plugin_library
load_plugin("require")
from kernels.runtime import flow
flow._oneflow_internal.eager.Sync()
fails = ctypes.c_int.in_dll(ctypes.CDLL(None), "fails")
flow.ones(4).numpy()
fails.value = 1
assert not flow.empty(16 << 20).numpy().any()
assert plugin_library().graph_train_mapped_bytes() == 64 << 20
fails.value = 0
print("done")
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_no_thread_can_be_started(tmp_path: Path) -> None:
    environment = preloading(_NO_MORE_THREADS, tmp_path)
    done = run_python("-c", _PROGRAM_WITHOUT_THREADS, env=environment, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["done"]), done.stderr[-2000:]
