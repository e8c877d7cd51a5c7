"""Files of predictions: names of crops, image ids, crop boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graph_train.plots.images import BoxStyle
from graph_train.prediction.prediction_files import OutputSettings, Prediction, PredictionWriter, crop_box

WIDTH, HEIGHT = 96, 64


def test_crops_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """The second crop of `1.png` and the first one of `12.png` differ; so do crops of two classes in one folder."""
    rows = np.asarray([[8, 8, 30, 30, 0.9, 0], [40, 8, 60, 30, 0.8, 0], [8, 40, 30, 60, 0.7, 1]], np.float32)
    output = OutputSettings(tmp_path / "out", None, labels=False, confidences=False, crops=True, entries=False)
    writer = PredictionWriter(output, ("a/b", "a_b"), workers=2)
    for name in ("1.png", "12.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
        writer.add_image(Prediction(tmp_path / name, None, (HEIGHT, WIDTH), rows, Path(name)))
    writer.close()
    crops = {path.name for path in (tmp_path / "out/crops/a_b").iterdir()}
    assert crops == {"1.jpg", "12.jpg", "13.jpg", "122.jpg", "123.jpg", "124.jpg"}


def test_long_names_of_crops_are_cut(tmp_path: Path) -> None:
    """File names have at most 255 bytes, not characters."""
    rows = np.asarray([[8, 8, 30, 30, 0.9, 0], [40, 8, 60, 30, 0.8, 0]], np.float32)
    output = OutputSettings(tmp_path / "out", None, labels=False, confidences=False, crops=True, entries=False)
    writer, name = PredictionWriter(output, ("é" * 200,), workers=1), f"{'x' * 251}.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
    writer.add_image(Prediction(tmp_path / name, None, (HEIGHT, WIDTH), rows, Path(name)))
    writer.close()
    crops = sorted(path.name for path in (tmp_path / "out/crops" / ("é" * 127)).iterdir())
    assert crops == [f"{'x' * 250}2.jpg", f"{'x' * 251}.jpg"]


@pytest.mark.parametrize("name", ["..jpg", "...png", " .bmp", "%41.webp"])
def test_names_of_dots_are_written(tmp_path: Path, name: str) -> None:
    """Pillow takes leading dots for a name without a suffix."""
    rows = np.asarray([[8, 8, 30, 30, 0.9, 0]], np.float32)
    output = OutputSettings(tmp_path / "out", BoxStyle(), labels=True, confidences=False, crops=True, entries=False)
    writer = PredictionWriter(output, ("a",), workers=1)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name, format=Image.registered_extensions()[Path(name).suffix])
    writer.add_image(Prediction(tmp_path / name, None, (HEIGHT, WIDTH), rows, Path(name)))
    writer.close()
    with Image.open(tmp_path / "out" / name) as drawn:
        assert drawn.size == (WIDTH, HEIGHT)
    assert len(list((tmp_path / "out/crops").rglob("*.jpg"))) == 1


def test_image_ids_are_unique(tmp_path: Path) -> None:
    rows = np.asarray([[8, 8, 30, 30, 0.9, 0]], np.float32)
    output = OutputSettings(tmp_path, None, labels=False, confidences=False, crops=False, entries=True)
    writer = PredictionWriter(output, ("cat",), workers=1)
    for name in ("007.png", "7.png", "a/7.png", "photo.1.jpg", "photo.2.jpg"):
        writer.add_image(Prediction(Path(name), None, (HEIGHT, WIDTH), rows, Path(name)))
    for number in (1, 2):
        frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        writer.add_frame(Prediction(Path("x.v2.mp4"), number, (HEIGHT, WIDTH), rows, Path("x.v2.mp4")), frame, None)
    writer.close()
    ids = [entry["image_id"] for entry in json.loads((tmp_path / "predictions.json").read_text())]
    assert ids == [7, "7", "a/7", "photo.1", "photo.2", "x.v2_1", "x.v2_2"]


def test_crop_known_values() -> None:
    # 40 x 20 px become 50.8 x 30.4 px around the same centre, and 0 is the edge.
    assert crop_box(np.asarray([100, 10, 140, 30]), (200, 300)) == (94, 4, 145, 35)
    assert crop_box(np.asarray([0, 0, 4, 4]), (200, 300)) == (0, 0, 9, 9)
    assert crop_box(np.asarray([300, 200, 300, 200]), (200, 300)) == (295, 195, 300, 200)
