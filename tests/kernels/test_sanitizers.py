"""The kernel tests once more, with a plugin that AddressSanitizer watches: nothing beside its memory is touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]

# Draws 8 rows into a target of 4.
BEYOND_THE_END = """
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


def library(name: str) -> str:
    """Return the compiler's own library of that name."""
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables that compile the plugin for AddressSanitizer, in its own cache, and run under it."""
    if shutil.which("g++") is None or not Path(library("libasan.so")).is_absolute():
        pytest.skip("g++ with libasan is needed")
    folder = tmp_path_factory.mktemp("asan")
    compiler = folder / "g++"
    compiler.write_text('#!/bin/sh\nexec g++ -fsanitize=address -fno-omit-frame-pointer -g1 "$@"\n')
    compiler.chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
        "CXX": str(compiler),
        "XDG_CACHE_HOME": str(folder / "cache"),
        # libstdc++ too: it comes with OneFlow later than the sanitizer looks for its exceptions.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        # Python and OneFlow keep memory until the end; that is not ours to judge.
        "ASAN_OPTIONS": f"detect_leaks=0:detect_odr_violation=0:log_path={folder / 'found'}",
    }


def found(watched: dict[str, str]) -> list[str]:
    """Return the sanitizer's reports."""
    folder = Path(watched["CXX"]).parent
    return [path.read_text(errors="replace")[:2000] for path in sorted(folder.glob("found.*"))]


def test_kernels_stay_within_their_memory(watched: dict[str, str]) -> None:
    without = (
        "--deselect=tests/kernels/build/test_plugin_build.py",  # compiles a plugin of its own in each test
        # Of glibc's heaps, which ASan replaces.
        "--deselect=tests/kernels/test_runtime.py::test_large_blocks_go_back_to_the_system",
        "--deselect=tests/kernels/framework/test_graph_memory.py::test_what_only_compiling_needs_is_freed",
    )
    command = [sys.executable, "-m", "pytest", "-n", "2", "tests/kernels", *without]
    done = subprocess.run(command, env=watched, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found(watched) == []
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_access_beyond_the_end_would_be_found(watched: dict[str, str]) -> None:
    command = [sys.executable, "-c", BEYOND_THE_END]
    done = subprocess.run(command, env=watched, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode != 0
    assert any("heap-buffer-overflow" in text and "draw" in text for text in found(watched))
