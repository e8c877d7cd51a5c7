"""Graphs use one thread if the plugin is loaded first, and still run if it is loaded later."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import sys
from kernels.plugin import load_plugin
from kernels.runtime import flow

class Doubled(flow.nn.Graph):
    def build(self, x):
        return x * 2 + x.sum()

x = flow.ones(2)
if sys.argv[1] == "after":
    assert Doubled()(x).numpy().tolist() == [4, 4]
load_plugin("require")
assert Doubled()(x).numpy().tolist() == [4, 4]
print("threads:", flow.framework.session_context.GetDefaultSession().resource.cpu_device_num)
"""


def _threads(when: str) -> int:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _SCRIPT, when]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    output = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout
    return int(output.split("threads:")[1])


def test_plugin_loaded_before_graph() -> None:
    assert _threads("first") == 1


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="with one core there is one thread anyway")
def test_plugin_loaded_after_graph() -> None:
    assert _threads("after") > 1
