"""Combinations of flags."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_train.training import assembly
from models.weights import load_weights
from tests.graph_train.training_runner import FinishedRun, TrainingRunner


@pytest.fixture(scope="module")
def baseline(runner: TrainingRunner) -> FinishedRun:
    """Return a run of two epochs with no special flags."""
    return runner.train(epochs=2, save_period=1, seed=3)


def test_hyp_file_anchors_override_weights(
    runner: TrainingRunner, baseline: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of anchors stands for placeholders that auto-anchor replaces, as in YOLOv5."""
    best, starts = baseline.folder / "weights" / "best.safetensors", []
    real = assembly.check_anchors

    def record(sizes: Any, labels: Any, start: np.ndarray, *given: Any, **more: Any) -> Any:
        starts.append(start)
        return real(sizes, labels, start, *given, **more)

    monkeypatch.setattr(assembly, "check_anchors", record)
    for hyp in (runner.hyp(anchors=3), "hyp.scratch-low.yaml"):
        runner.assemble(weights=best, cfg="", hyp=hyp).close()
    assert starts[0][0].ravel().tolist() == [0, 1, 2, 3, 4, 5]
    saved = load_weights(best).anchors_px
    assert saved is not None
    np.testing.assert_array_equal(starts[1], saved)


def test_finished_run_continues_with_more_epochs(runner: TrainingRunner) -> None:
    done = runner.train(epochs=1)
    assert "repeating the final validation only" in runner.train_as_given(resume=done.folder).log
    more = runner.train_as_given(resume=done.folder, epochs=3)
    assert [row["epoch"] for row in more.rows] == [0, 1, 2]


def test_auto_batch_size_is_kept_on_resume(runner: TrainingRunner) -> None:
    interrupted = runner.train(epochs=2, stop_after=1)
    ended = runner.train_as_given(resume=interrupted.folder, batch_size=-1)
    assert ended.recorded.shapes == [(4, 3, 64, 64)] * 3
    with pytest.raises(ValueError, match="--batch-size 2 differs from the saved run"):
        runner.train_as_given(resume=interrupted.folder, batch_size=2)


def test_resumed_run_accepts_moved_data_only(runner: TrainingRunner, tmp_path: Path) -> None:
    interrupted = runner.train(epochs=2, stop_after=1)
    assert "Settings: weights=" in interrupted.log and "Hyper-parameters: lr0=" in interrupted.log
    moved = tmp_path / "moved"
    shutil.copytree(runner.data.parent, moved, ignore=shutil.ignore_patterns("runs", "*.safetensors"))
    (other,) = (moved / "labels/train").glob("1.txt")
    kept = other.read_text()
    other.write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match=rf"--data {moved}/data.yaml: not the data set of the checkpoint"):
        runner.train_as_given(resume=interrupted.folder, data=str(moved / "data.yaml"))
    other.write_text(kept)
    ended = runner.train_as_given(resume=interrupted.folder, data=str(moved / "data.yaml"))
    assert [row["epoch"] for row in ended.rows] == [0, 1]
    assert "differs from the checkpoint" not in ended.log


def test_graph_matches_eager_with_many_flags(runner: TrainingRunner) -> None:
    flags: dict[str, Any] = {
        "multi_scale": True,
        "quad": True,
        "optimizer": "AdamW",
        "label_smoothing": 0.1,
        "cos_lr": True,
        "freeze": 2,
        "image_weights": True,
        "epochs": 2,
        "seed": 1,
    }
    eager, compiled = runner.train(**flags), runner.train(**flags, graph=True)
    assert compiled.recorded.losses == eager.recorded.losses
    assert (compiled.folder / "results.csv").read_bytes() == (eager.folder / "results.csv").read_bytes()
    assert "Multi-scale: " in compiled.log
