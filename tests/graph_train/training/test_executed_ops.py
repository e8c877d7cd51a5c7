"""A whole training, from start or resumed, executes no CUDA kernel of OneFlow, which has none for GPUs above 8.9."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kernels.framework.coverage import COPIES
from tests.graph_train.training_runner import TrainingRunner
from tests.models.every_block import EVERY_BLOCK
from tests.python_process import run_python

NO_CODE = {*COPIES, "assign", "empty"}
"""Ops without CUDA code: copies by the driver, and uninitialised memory."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "flags",
    [
        {"graph": False, "optimizer": "AdamW", "save_steps": 1, "quad": True, "freeze": [2], "cache": "disk"},
        {"graph": True, "amp": True, "save_steps": 1, "multi_scale": True, "cache": "ram"},
        {"graph": False, "amp": True, "cfg": EVERY_BLOCK},
        {"graph": False, "evolve": 1},
    ],
    ids=["eager", "graph", "every block", "evolve"],
)
def test_all_training_ops_have_plugin_kernels(tmp_path: Path, flags: dict[str, Any]) -> None:
    runner = TrainingRunner(tmp_path)
    if isinstance(flags.get("cfg"), dict):
        (tmp_path / "network.yaml").write_text(yaml.safe_dump(flags["cfg"]))
        flags = {**flags, "cfg": tmp_path / "network.yaml"}
    assert_no_kernel_of_oneflow(tmp_path, {**runner.flags(project=tmp_path / "runs", epochs=2), **flags})
    assert (tmp_path / "cache").exists() == (flags.get("cache") == "disk")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("graph", [False, True])
def test_resumed_training_ops_have_plugin_kernels(tmp_path: Path, graph: bool) -> None:
    stopped = TrainingRunner(tmp_path).train(epochs=2, stop_after=1, graph=graph)
    assert_no_kernel_of_oneflow(tmp_path, {"resume": stopped.folder})
    assert len((stopped.folder / "results.csv").read_text().splitlines()) == 1 + 2


def assert_no_kernel_of_oneflow(folder: Path, flags: dict[str, Any]) -> None:
    """Run `executed_ops_job` and check the ops of the whole command."""
    words = json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in flags.items()})
    done = run_python("-m", "tests.graph_train.training.executed_ops_job", folder / "ops.json", words)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = {tuple(pair) for pair in json.loads((folder / "ops.json").read_text())}
    # The trace is complete: it contains the step, and the EMA update and the copies of a save.
    assert {("graph_train_begin_step", "plugin"), ("assign", "OneFlow")} <= executed
    assert {op for op, owner in executed if owner == "OneFlow"} <= NO_CODE
