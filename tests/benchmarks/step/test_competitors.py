"""Variants are compared only if they compute the same step."""

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import workers
from benchmarks.harness.points import Point
from benchmarks.step import competitors
from benchmarks.step.competitors import _check_losses

POINT = Point("yolov5n", 1, 64)


def losses(**given: float) -> dict[str, dict[str, Any]]:
    return {name.replace("_", "-"): {"loss": loss} for name, loss in given.items()}


@pytest.mark.parametrize(
    "given",
    [
        {"plugin_graph": 10.0, "pytorch_eager": 10.009},  # within a thousandth
        {"plugin_graph": 10.0, "plugin_graph_amp": 10.4},  # half precision may be 5 % away
        {"plugin_graph": 10.0},
    ],
)
def test_sides_with_equal_losses_are_compared(given: dict[str, float]) -> None:
    _check_losses(POINT, losses(**given))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"plugin_graph": 10.0, "pytorch_eager": 10.011}, "pytorch-eager"),
        ({"plugin_graph": 10.0, "plugin_graph_amp": 10.6}, "plugin-graph-amp"),
        ({"plugin_graph_amp": 10.6, "plugin_graph": 10.0}, "plugin-graph-amp"),  # compared with the float32 variant
        ({"plugin_graph": 10.0, "stock_eager": float("nan")}, "stock-eager"),
        ({"plugin_graph": float("nan"), "stock_eager": 10.0}, "plugin-graph"),
    ],
)
def test_sides_with_different_losses_are_rejected(given: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"with {named} .*they do not compute the same step"):
        _check_losses(POINT, losses(**given))


def test_other_checkout_is_a_variant_only_if_named(tmp_path: Path) -> None:
    names = ["plugin-graph", "other-graph"]
    assert competitors.available(names, None)[0] == ["plugin-graph"]
    assert competitors.available(names, None, tmp_path)[0] == names
    with pytest.raises(ValueError, match=r"step_worker.py not found; must be a checkout of graph-train"):
        competitors.other_checkout(str(tmp_path))
    assert competitors.other_checkout(None) is None


@pytest.mark.parametrize("program", ["exit 0", "echo broken >&2; exit 1", "sleep 60", None])
def test_other_checkout_needs_a_working_interpreter(
    tmp_path: Path, program: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_PROBE_SECONDS", 0.5)
    for file in (tmp_path / "benchmarks/step/step_worker.py", tmp_path / workers.CHECKOUT_PYTHON):
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{program}\n")
    reason = {"exit 0": "not a Python interpreter", "sleep 60": "no answer within", None: "Permission denied"}
    if program is not None:
        (tmp_path / workers.CHECKOUT_PYTHON).chmod(0o755)
    with pytest.raises(ValueError, match=rf"--against .*: {reason.get(program, 'broken')}.*; run `uv sync` there"):
        competitors.other_checkout(str(tmp_path))


@pytest.mark.parametrize("place", ["step/step_worker.py", "step_worker.py"])
def test_worker_of_other_checkout_uses_its_code_and_interpreter(tmp_path: Path, place: str) -> None:
    """Cover checkouts from before `benchmarks` had packages, too."""
    file = tmp_path / "benchmarks" / place
    file.parent.mkdir(parents=True)
    for folder in {tmp_path / "benchmarks", file.parent}:
        (folder / "__init__.py").touch()
    file.write_text(
        "import json, sys\nsys.stdin.readline()\nprint(json.dumps({'value': [sys.executable, __file__]}))\n"
    )
    interpreter = tmp_path / workers.CHECKOUT_PYTHON
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    with workers.Worker("other", competitors.worker_module(tmp_path), threads=1, checkout=tmp_path) as worker:
        assert worker.call("any") == [str(interpreter), str(file)]
