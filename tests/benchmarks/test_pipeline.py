"""`graph-bench pipeline`: its rows, and that the OpenCV loader does what ours does."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.pipeline import NO_OPENCV, STAGES, find_opencv
from benchmarks.results import read_result
from benchmarks.workers import Worker
from tests.pipelines.rendered import label_hits, rendered_index

SMALL = ["--imgsz", "64", "--workers", "1", "--repeats", "1", "--quick", "--cache", "none", "--batch-size", "4"]


@pytest.fixture(scope="module")
def opencv_python() -> Path:
    """An interpreter with OpenCV: named by GRAPH_TRAIN_TORCH_PYTHON, or this one."""
    found = find_opencv(os.environ.get("GRAPH_TRAIN_TORCH_PYTHON"))
    if found is None:
        pytest.skip("no OpenCV: name an interpreter that has it in GRAPH_TRAIN_TORCH_PYTHON")
    return found


def test_rows_of_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "p.json", tmp_path / "p.png"
    assert main(["pipeline", *SMALL, "--json", str(file), "--plot", str(picture)]) == 0
    rows = [row for row in read_result(file)["rows"] if row["loader"] == "graph-train"]
    assert [row["stage"] for row in rows] == ["all", *STAGES]
    for row in rows:
        assert (row["imgsz"], row["threads"], row["device"]) == (64, 1, "cpu")
        assert row["images_per_second"] > 0
    assert picture.stat().st_size > 5000
    said = capsys.readouterr().out
    assert "Stages, each alone" in said
    if find_opencv(None) is None:
        assert NO_OPENCV in said


def test_interpreter_that_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--torch-python"):
        find_opencv(str(tmp_path / "python"))
    assert find_opencv("/bin/false") is None


def test_both_loaders_are_compared(tmp_path: Path, opencv_python: Path) -> None:
    file = tmp_path / "p.json"
    assert main(["pipeline", *SMALL, "--torch-python", str(opencv_python), "--json", str(file)]) == 0
    result = read_result(file)
    assert {row["loader"] for row in result["rows"]} == {"graph-train", "opencv"}
    assert [pair["of"] for pair in result["speedups"]] == ["images_per_second", "cpu_ms_per_image"]


def test_boxes_of_the_opencv_loader_follow_its_pixels(tmp_path: Path, opencv_python: Path) -> None:
    """It is a fair peer only if it does the whole work."""
    index = rendered_index(tmp_path, images=8)
    listed = {"paths": [str(path) for path in index.paths], "labels": [rows.tolist() for rows in index.labels]}
    (tmp_path / "images.json").write_text(json.dumps(listed))
    with Worker("opencv", "benchmarks.peers.opencv_worker", threads=1, python=opencv_python) as worker:
        worker.call("prepare", data=str(tmp_path / "images.json"), image_px=256, batch=4, cache=False)
        worker.call("save_samples", count=24, file=str(tmp_path / "samples.npz"))
    with np.load(tmp_path / "samples.npz") as samples:
        images, labels = samples["images"], samples["labels"]
    hits = label_hits(images, labels, contrast=40)  # colours change: they cannot be switched off there
    assert len(hits) > 60
    assert np.median(hits) > 0.9
