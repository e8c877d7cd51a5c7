"""The CPU kernels, and the CUDA kernels executed on the CPU, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.build.plugin_build import find_compiler

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]

# The compiler itself runs without the preloaded sanitizers, whose allocator slows it down.
# -O1 is last and takes precedence: with full optimisation, instrumented code compiles several times as slowly.
COMPILER = """#!/bin/sh
unset LD_PRELOAD
case " $* " in *" -shared "*) exec {compiler} -fsanitize=address,undefined "$@";; esac
exec {compiler} "$@" -fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -g1 -O1 \
    -D_GLIBCXX_ASSERTIONS
"""

# Draws 8 rows into a target of 4.
OUT_OF_BOUNDS = """
import ctypes
import numpy as np
from kernels.plugin import load_plugin, plugin_library
load_plugin("require")
crop, target = np.zeros((16, 16, 3), np.uint8), np.zeros((3, 4, 8), np.uint8)
number, edges = ctypes.c_int64, (ctypes.c_double * 4)(0, 0, 16, 16)
plugin_library().graph_train_draw_region(
    ctypes.c_void_p(crop.ctypes.data), number(16), number(16), number(48), edges, number(0), number(8), number(8),
    ctypes.c_void_p(target.ctypes.data), number(32), number(8))
"""

# CUDA kernels that write one element beyond the buffer, and to an unaligned target.
FILL = """
import numpy as np
from tests.gpu.devices import EmulatedGpu
from tests.gpu.layouts import structure
device = EmulatedGpu()
target = device.put(np.zeros(1000, np.float32))
args = structure("ops/elementwise/elementwise.h", "FillArgs")(target + {shift}, {count}, 2.5)
device.launch("fill_f32", (4, 1, 1), 256, args)
"""

STEPS = """
import tempfile
from pathlib import Path
from benchmarks.harness.points import Point, write_point
from benchmarks.step import step_worker
from graph_train.ranks.placement import Placement
from kernels.framework.activation_type import ActivationType
from kernels.plugin import load_plugin
load_plugin("emulated-cuda")
folder = Path(tempfile.mkdtemp())
write_point(folder, Point("yolov5n", 1, 64))
step_worker.prepare_kind(Placement("cpu"), folder, ActivationType.{kind}, graph={graph})
step_worker.steps(2)
"""


def library(name: str) -> str:
    """Return the compiler's runtime library of that name."""
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


class SanitizedPython:
    """Processes with a plugin instrumented by sanitizers.

    Args:
        folder: cache of compiled files, for one compiler and one set of flags.
        reports: folder for the sanitizers' reports.
    """

    def __init__(self, folder: Path, reports: Path) -> None:
        self.reports = reports
        # Leaks are ignored, because Python and OneFlow keep memory until the end.
        address = f"detect_leaks=0:detect_odr_violation=0:log_path={reports / 'found'}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
            "CXX": str(folder / "g++"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            # libstdc++ too, since OneFlow loads it after the sanitizer has looked for its exception functions.
            "LD_PRELOAD": " ".join(library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")),
            "ASAN_OPTIONS": address,
            # It cannot write to the same file, so it ends the process, which fails the test.
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python after deleting reports of earlier processes."""
        shutil.rmtree(self.reports, ignore_errors=True)
        self.reports.mkdir()
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False)

    def found(self, done: subprocess.CompletedProcess[str]) -> list[str]:
        """Return the sanitizer reports."""
        undefined = [line for line in done.stderr.splitlines() if "runtime error: " in line]
        return undefined + [path.read_text(errors="replace")[:2000] for path in sorted(self.reports.iterdir())]

    def check(self, *arguments: str) -> None:
        """Run Python, which must succeed without a sanitizer report."""
        done = self.run(*arguments)
        assert self.found(done) == []
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

    def check_tests(self, *arguments: str) -> None:
        """Run pytest the same way, without output capture, so that sanitizer messages are printed."""
        self.check("-m", "pytest", "-n", "0", "-s", "-rf", *arguments)


def sanitizing_compiler(parent: Path) -> Path:
    """Write a compiler wrapper that adds the sanitizers, in a separate folder for each choice of flags."""
    text = COMPILER.format(compiler=find_compiler())
    compiler = parent / hashlib.sha256(text.encode()).hexdigest()[:16] / "g++"
    compiler.parent.mkdir(exist_ok=True)
    compiler.write_text(text)
    compiler.chmod(0o755)
    return compiler


@pytest.fixture(scope="module")
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SanitizedPython:
    if shutil.which("g++") is None or not Path(library("libasan.so")).is_absolute():
        pytest.skip("g++ with libasan is needed")
    # Compiling takes minutes: pytest's cache keeps the objects for the next run.
    compiler = sanitizing_compiler(request.config.cache.mkdir("sanitizers"))
    return SanitizedPython(compiler.parent, tmp_path_factory.mktemp("sanitizers"))


def test_cpu_kernels(sanitized: SanitizedPython) -> None:
    without = (
        "--ignore=tests/kernels/build/test_plugin_build.py",  # compiles a plugin in each test
        # They run no compiled code of ours: Python only, or NVRTC.
        "--ignore=tests/kernels/host",
        "--ignore=tests/kernels/build/test_cuda_build.py",
        "--ignore=tests/kernels/build/test_nvrtc.py",
        "--ignore=tests/kernels/build/test_wheel_hook.py",
        # They measure glibc's heaps, which ASan replaces.
        "--deselect=tests/kernels/test_runtime.py::test_large_blocks_are_returned_to_system",
        "--deselect=tests/kernels/framework/test_graph_memory.py::test_compile_time_memory_is_freed",
        # AddressSanitizer needs /proc.
        "--deselect=tests/kernels/test_runtime.py::test_training_without_proc_is_a_user_error",
        # AddressSanitizer rejects RTLD_DEEPBIND, with which the plugin opens a newer cuDNN.
        "--deselect=tests/kernels/native/test_launch.py::test_newer_cudnn_has_a_handle_per_stream",
    )
    sanitized.check_tests("tests/kernels", *without)


def test_every_cuda_kernel_alone(sanitized: SanitizedPython) -> None:
    sanitized.check("-m", "tests.gpu", "--emulated")


def test_cuda_kernels_in_ops(sanitized: SanitizedPython) -> None:
    sanitized.check_tests("--kernels", "emulated-cuda", "tests/kernels/ops")


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("kind", ["FLOAT32", "BFLOAT16", "FLOAT16"])
def test_cuda_steps(sanitized: SanitizedPython, kind: str, graph: bool) -> None:
    sanitized.check("-c", STEPS.format(kind=kind, graph=graph))


def test_out_of_bounds_access_is_detected(sanitized: SanitizedPython) -> None:
    done = sanitized.run("-c", OUT_OF_BOUNDS)
    assert done.returncode != 0
    assert any("heap-buffer-overflow" in text and "draw" in text for text in sanitized.found(done))


@pytest.mark.parametrize(
    ("shift", "count", "report"), [(0, 1001, "heap-buffer-overflow"), (2, 999, "misaligned address")]
)
def test_wrong_cuda_kernel_is_detected(sanitized: SanitizedPython, shift: int, count: int, report: str) -> None:
    done = sanitized.run("-c", FILL.format(shift=shift, count=count))
    assert done.returncode != 0
    (found,) = sanitized.found(done)
    assert report in found and ("elementwise" in found or "device.h" in found)


def test_correct_cuda_kernel_is_not_reported(sanitized: SanitizedPython) -> None:
    sanitized.check("-c", FILL.format(shift=0, count=1000))
