from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.cli import benchmark_parser
from benchmarks.data.resized_set import make_resized_set
from benchmarks.training.accuracy_trainings import FLOAT32, Trainings
from pipelines.data.dataset import load_dataset
from pipelines.data.index import index_images


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a dataset yaml with one landscape and one portrait image, each with sides in the ratio 2:1."""
    for split, size in (("train", (200, 100)), ("val", (60, 120))):
        for name in ("images", "labels"):
            (tmp_path / name / split).mkdir(parents=True)
        half = Image.new("RGB", size, "white")
        half.paste("black", (0, 0, size[0] // 2, size[1]))
        half.save(tmp_path / "images" / split / "a.png")
        (tmp_path / "labels" / split / "a.txt").write_text("1 0.25 0.5 0.5 1\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [white, black]\n")
    return tmp_path / "data.yaml"


def test_images_shrink_and_labels_are_unchanged(data: Path, tmp_path: Path) -> None:
    made = load_dataset(str(make_resized_set(tmp_path / "made", data=str(data), image_px=50)))
    for split, size in (("train", (50, 25)), ("val", (25, 50))):
        index = index_images(made.split(split), made.class_names)  # type: ignore[arg-type]
        assert index.sizes_wh == [size]
        assert index.labels[0].tolist() == [[1.0, 0.25, 0.5, 0.5, 1.0]]
        pixels = np.asarray(Image.open(index.paths[0]))
        assert (pixels[:, : size[0] // 2 - 1] == 0).all()
        assert (pixels[:, size[0] // 2 + 1 :] == 255).all()
    assert made.class_names == ("white", "black")


def test_resized_set_is_created_once(data: Path, tmp_path: Path) -> None:
    made = make_resized_set(tmp_path / "made", data=str(data), image_px=50)
    data.unlink()
    assert make_resized_set(tmp_path / "made", data=str(data), image_px=50) == made


def test_accuracy_trains_on_resized_set(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(data), "--imgsz", "64"]
    for flags, expected in ([], str(data)), (["--resized"], str(tmp_path / "work" / "resized-64" / "data.yaml")):
        trainings = Trainings(benchmark_parser("accuracy").parse_args(arguments + flags), tmp_path / "work", None)
        words = trainings._arguments(FLOAT32, 0, tmp_path)
        assert words[words.index("--data") + 1] == expected
