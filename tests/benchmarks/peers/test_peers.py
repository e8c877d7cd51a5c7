"""The PyTorch peer computes the same network, loss, update and EMA as we do."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.points import Point
from benchmarks.harness.workers import Worker
from benchmarks.step.competitors import OURS, TORCH, VARIANTS, find_torch

POINT = Point("yolov5n", 2, 64)
STEPS = 5


@pytest.fixture(scope="module")
def both(torch_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], ...]]:
    """Yield the results of our worker and PyTorch's after five steps from the same weights."""
    folder = str(tmp_path_factory.mktemp("point"))
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    with Worker("ours", OURS, threads=2) as worker:
        ours |= worker.call("describe", folder=folder, **asdict(POINT))
        ours |= worker.call("prepare", folder=folder, device="cpu", threads=2, **VARIANTS["plugin-eager"].options)
        worker.call("steps", count=STEPS - 1)
        ours |= worker.call("trained")
    with Worker("theirs", TORCH, threads=2, python=torch_python) as worker:
        options = VARIANTS["pytorch-eager"].options
        theirs |= worker.call("prepare", folder=folder, device="cpu", threads=2, **options)
        theirs |= {"macs": worker.call("multiply_accumulates", image_px=POINT.imgsz)}
        worker.call("steps", count=STEPS - 1)
        theirs |= worker.call("trained")
    yield ours, theirs


def test_peer_has_same_parameter_count(both: tuple[dict[str, Any], ...]) -> None:
    ours, theirs = both
    assert ours["parameters"] == theirs["parameters"]
    assert ours["macs"] == theirs["macs"]


def test_peer_has_same_loss(both: tuple[dict[str, Any], ...]) -> None:
    ours, theirs = both
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert theirs["loss_parts"] == pytest.approx(ours["loss_parts"], rel=1e-4)


def test_peer_trains_like_ours(both: tuple[dict[str, Any], ...]) -> None:
    """Later losses depend on gradients, clipping, parameter groups and momentum."""
    ours, theirs = both
    assert len(ours["losses"]) == STEPS
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert theirs["losses"][-1] != pytest.approx(theirs["losses"][0], rel=1e-3)
    for name in ("weights", "average"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-6)
    assert ours["weights"] != pytest.approx(ours["average"], rel=1e-9)


def test_rejects_interpreter_without_torch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--torch-python"):
        find_torch(str(tmp_path / "python"))
    with pytest.raises(ValueError, match="pip install torch"):
        find_torch("/bin/false")
    with pytest.raises(ValueError, match="not a Python interpreter"):
        find_torch("/bin/true")
