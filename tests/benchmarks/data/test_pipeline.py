"""`graph-bench pipeline`: its rows, and the OpenCV loader compared with ours."""

import importlib
import json
import os
import sys
from pathlib import Path
from queue import Queue
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.data.pipeline import NEEDED, NO_OPENCV, STAGES
from benchmarks.harness.results import read_result
from benchmarks.harness.workers import Worker
from benchmarks.step.competitors import find_torch
from tests.pipelines.rendered import label_hits, rendered_index

SMALL = ["--imgsz", "64", "--workers", "1", "--repeats", "1", "--quick", "--cache", "none", "--batch-size", "4"]


@pytest.fixture(scope="module")
def opencv_python() -> Path:
    """Return an interpreter with OpenCV: named by GRAPH_TRAIN_TORCH_PYTHON, or this one."""
    found = find_torch(os.environ.get("GRAPH_TRAIN_TORCH_PYTHON"), NEEDED)
    if found is None:
        pytest.skip("no OpenCV: name an interpreter that has it in GRAPH_TRAIN_TORCH_PYTHON")
    return found


def test_reports_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "p.json", tmp_path / "p.png"
    assert main(["pipeline", *SMALL, "--json", str(file), "--plot", str(picture)]) == 0
    rows = [row for row in read_result(file)["rows"] if row["loader"] == "graph-train"]
    assert [row["stage"] for row in rows] == ["all", *STAGES]
    for row in rows:
        assert (row["imgsz"], row["threads"], row["device"]) == (64, 1, "cpu")
        assert row["images_per_second"] > 0
    assert picture.stat().st_size > 5000
    output = capsys.readouterr().out
    assert "Stages, each alone" in output
    if find_torch(None, NEEDED) is None:
        assert NO_OPENCV in output


def test_rejects_interpreter_without_opencv(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", *SMALL, "--torch-python", "/bin/false"]) == 2
    assert "opencv-python-headless" in capsys.readouterr().err


def test_partial_batch_counts_its_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two processes starts the clock with its first batch; batches of four and one image follow."""
    monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    loader = importlib.import_module("benchmarks.peers.opencv_worker")
    ready: Queue[tuple[int, None, int] | None] = Queue()
    free: Queue[int] = Queue()
    for made in ((0, None, 4), (1, None, 4), (0, None, 4), None, (1, None, 1), None):
        ready.put(made)
    clock = iter((10.0, 11.0, 12.0, 13.0))
    monkeypatch.setattr(loader, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert loader._consume(ready, free, 2) == (4 + 1) / (13.0 - 11.0)
    assert [free.get() for _ in range(4)] == [0, 1, 0, 1]


def test_compares_both_loaders(tmp_path: Path, opencv_python: Path) -> None:
    file = tmp_path / "p.json"
    assert main(["pipeline", *SMALL, "--torch-python", str(opencv_python), "--json", str(file)]) == 0
    result = read_result(file)
    assert {row["loader"] for row in result["rows"]} == {"graph-train", "opencv"}
    assert [pair["of"] for pair in result["speedups"]] == ["images_per_second", "cpu_ms_per_image"]
    for row in result["rows"]:
        assert (row["opencv"] is None) == (row["python"] is None) == (row["loader"] == "graph-train")


def test_opencv_loader_boxes_match_pixels(tmp_path: Path, opencv_python: Path) -> None:
    """The comparison is fair only if the OpenCV loader does all of the work."""
    index = rendered_index(tmp_path, images=8)
    listed = {"paths": [str(path) for path in index.paths], "labels": [rows.tolist() for rows in index.labels]}
    (tmp_path / "images.json").write_text(json.dumps(listed))
    with Worker("opencv", "benchmarks.peers.opencv_worker", threads=1, python=opencv_python) as worker:
        worker.call("prepare", data=str(tmp_path / "images.json"), image_px=256, batch=4, cache=False)
        worker.call("save_samples", count=24, file=str(tmp_path / "samples.npz"))
    with np.load(tmp_path / "samples.npz") as samples:
        images, labels = samples["images"], samples["labels"]
    hits = label_hits(images, labels, contrast=40)  # the OpenCV loader always changes colours
    assert len(hits) > 60
    assert np.median(hits) > 0.9
