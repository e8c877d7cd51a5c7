"""Fine-tuning from a YOLOv5 checkpoint on real photos: graph matches eager for each relevant flag."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from graph_train.runs.checkpoint import load_checkpoint
from models.weights import load_weights
from tests.graph_train.training_runner import FinishedRun, TrainingRunner

IMAGES = {"train": 24, "val": 8}
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "freeze": {"freeze": 10},
    "cos-lr": {"cos_lr": True},
    "label-smoothing": {"label_smoothing": 0.1},
    "multi-scale": {"multi_scale": True},
    "image-weights": {"image_weights": True},
    "adamw": {"optimizer": "AdamW"},
    "quad": {"quad": True},
}


@pytest.fixture(scope="module")
def blood_cells(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the first photos of each split."""
    root = tmp_path_factory.mktemp("cells")
    content = yaml.safe_load(bccd.read_text())
    for split, count in IMAGES.items():
        source = bccd.parent / content.get("path", ".") / content[split]
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for image in sorted(source.iterdir())[:count]:
            shutil.copy(image, root / "images" / split)
            label = Path(str(source).replace("images", "labels")) / f"{image.stem}.txt"
            shutil.copy(label, root / "labels" / split)
    path = root / "cells.yaml"
    splits = {split: f"images/{split}" for split in IMAGES}
    path.write_text(yaml.safe_dump({"path": ".", **splits, "names": content["names"]}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
def test_graph_matches_eager(name: str, runner: TrainingRunner, blood_cells: Path, goldens: Path) -> None:
    weights = goldens / "yolov5n_nc3.pt"

    def run(*, graph: bool) -> FinishedRun:
        return runner.train(
            data=blood_cells, weights=weights, cfg="", imgsz=128, batch_size=8, epochs=2, graph=graph, **FLAGS[name]
        )

    compiled, eager = run(graph=True), run(graph=False)
    assert "Compiled the step" in compiled.log
    assert compiled.recorded.shapes == eager.recorded.shapes
    assert compiled.recorded.losses == eager.recorded.losses
    assert np.isfinite(compiled.recorded.losses).all()
    assert (compiled.folder / "results.csv").read_bytes() == (eager.folder / "results.csv").read_bytes()
    one, two = (load_checkpoint(run.folder / "weights" / "last.safetensors").arrays for run in (compiled, eager))
    assert [key for key in one if not np.array_equal(one[key], two[key])] == []
    start = load_weights(weights).arrays
    frozen = [
        key for key, value in start.items() if key.endswith("weight") and np.array_equal(one[f"model/{key}"], value)
    ]
    assert {int(key.split(".")[1]) for key in frozen} == (set(range(10)) if name == "freeze" else set())
