"""What OneFlow's native code prints: known notes are hidden, everything else is not."""

import os
import subprocess
import sys

import pytest

from kernels import runtime


def test_only_known_notes_are_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    with runtime.known_notes_hidden():
        os.write(2, b"libibverbs not available, ibv_fork_init skipped\nE2026 conv.cpp:7] out of memory\n")
        os.write(2, b"E2026 cuda_device_manager_factory.cpp:65] Failed to get cuda runtime version: too old\nlast")
    shown = capfd.readouterr().err
    assert "libibverbs" not in shown
    assert "E2026 conv.cpp:7] out of memory\n" in shown
    assert shown.endswith("last")
    # With a GPU driver the second note says that something is wrong.
    assert ("cuda_device_manager_factory" in shown) == runtime._GPU_DRIVER.exists()


def test_a_first_graph_prints_nothing() -> None:
    code = (
        "from kernels.plugin import load_plugin\nload_plugin('off')\nfrom kernels.runtime import flow\n"
        "class Add(flow.nn.Graph):\n    def build(self, x): return x + 1\nprint(Add()(flow.zeros(2)).numpy())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1. 1.]\n"
    if not runtime._GPU_DRIVER.exists():
        assert done.stderr == ""
