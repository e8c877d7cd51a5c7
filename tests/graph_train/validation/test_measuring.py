from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from graph_train.validation.measuring import ImageDetections, ValidationSettings, validate

NAMES = ("circle", "square")


class Place(NamedTuple):
    original_hw: tuple[int, int]
    ratio_hw: tuple[float, float]
    pad_wh: tuple[float, float]


@dataclass
class Batch:
    """Two letterboxed 64 x 64 images: files of 128 x 128, and of 128 x 64 with a border of 16 px."""

    labels: np.ndarray
    images: np.ndarray = field(default_factory=lambda: np.full((2, 3, 64, 64), 114, np.uint8))
    paths: Sequence[str] = ("data/a.jpg", "data/b.jpg")
    geometry: Sequence[Place] = (Place((128, 128), (0.5, 0.5), (0.0, 0.0)), Place((128, 64), (0.5, 0.5), (16.0, 0.0)))


def labels_of(*rows: tuple[float, ...]) -> np.ndarray:
    """Return the rows of image, class, cx, cy, w, h in px of the 64 px images."""
    return np.asarray(rows, np.float32).reshape(-1, 6) / np.asarray([1, 1, 64, 64, 64, 64], np.float32)


class Oracle:
    """A network that predicts given boxes: (image, class, cx, cy, w, h, objectness) in px of the 64 px images."""

    def __init__(self, *rows: tuple[float, ...], num_classes: int = 2, loss: tuple[float, float, float] | None = None):
        self.rows, self.num_classes, self.loss = rows, num_classes, loss
        self.calls = 0

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        predictions = np.zeros((len(images), len(self.rows), 5 + self.num_classes), np.float32)
        for number, (image, category, *box, objectness) in enumerate(self.rows):
            predictions[int(image), number] = [*box, objectness, *(np.arange(self.num_classes) == category)]
        self.calls += 1
        return predictions, None if self.loss is None else np.asarray(self.loss) * self.calls


BATCH = Batch(labels_of((0, 0, 20, 20, 10, 10), (0, 1, 40, 40, 20, 20), (1, 1, 32, 32, 16, 16)))
PERFECT = ((0, 0, 20, 20, 10, 10, 0.9), (0, 1, 40, 40, 20, 20, 0.8), (1, 1, 32, 32, 16, 16, 0.7))


def test_perfect_detector() -> None:
    result = validate(Oracle(*PERFECT), [BATCH], NAMES)
    assert result.means == pytest.approx((1, 1, 0.995, 0.995))
    assert result.fitness == pytest.approx(0.995)
    assert result.maps == pytest.approx([0.995, 0.995])
    assert (result.images, result.labels_per_class.tolist(), result.images_per_class.tolist()) == (2, [1, 2], [1, 2])
    assert result.confusion.counts.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert result.loss is None


def test_boxes_are_in_file_pixels() -> None:
    seen: list[ImageDetections] = []
    validate(Oracle(*PERFECT), [BATCH], NAMES, on_image=seen.append)
    assert [(image.path, image.image_hw) for image in seen] == [
        (Path("data/a.jpg"), (128, 128)),
        (Path("data/b.jpg"), (128, 64)),
    ]
    # (20 -+ 5) / 0.5; (32 -+ 8 - 16) / 0.5 across, (32 -+ 8) / 0.5 down
    assert seen[0].detections[0].tolist() == pytest.approx([30, 30, 50, 50, 0.9, 0])
    assert seen[1].detections[0].tolist() == pytest.approx([16, 48, 48, 80, 0.7, 1])
    assert seen[1].labels.tolist() == [[1, 16, 48, 48, 80]]


def test_boxes_are_clipped_to_file_before_matching() -> None:
    # The detection reaches into the border on the left; clipped it equals the label.
    batch = Batch(labels_of((1, 0, 20, 32, 8, 8)))
    result = validate(Oracle((1, 0, 16, 32, 16, 8, 0.9)), [batch], NAMES)
    assert result.map50_95 == pytest.approx(0.995)


def test_losses_are_averaged_over_batches() -> None:
    result = validate(Oracle(*PERFECT, loss=(1, 2, 3)), [BATCH, BATCH], NAMES)
    assert result.loss == pytest.approx([1.5, 3, 4.5])  # the oracle doubles them at the second call


def test_images_without_detections_or_labels() -> None:
    result = validate(Oracle(PERFECT[0]), [BATCH], NAMES)
    assert result.classes.recall.tolist() == pytest.approx([1, 0])
    nothing = validate(Oracle(*PERFECT), [Batch(labels_of())], NAMES)
    assert nothing.means == (0, 0, 0, 0)
    assert nothing.labels_per_class.tolist() == [0, 0]


def test_validation_without_batches() -> None:
    result = validate(Oracle(), [], NAMES)
    assert (result.images, result.means, result.fitness) == (0, (0, 0, 0, 0), 0)


def test_single_class_ignores_classes() -> None:
    wrong_class = tuple((image, 1 - category, *rest) for image, category, *rest in PERFECT)
    settings = ValidationSettings(single_cls=True)
    result = validate(Oracle(*wrong_class), [BATCH], ("item",), settings)
    assert result.map50 == pytest.approx(0.995)


def test_label_hints_are_added_to_detections() -> None:
    seen: list[ImageDetections] = []
    oracle, settings = Oracle((0, 0, 60, 60, 2, 2, 0.5)), ValidationSettings(label_hints=True)
    result = validate(oracle, [BATCH], NAMES, settings, on_image=seen.append)
    assert result.recall == pytest.approx(1)
    assert [len(image.detections) for image in seen] == [3, 1]


def test_class_count_mismatch_raises() -> None:
    with pytest.raises(ValueError, match="predicts 3 classes, but the data set has 2"):
        validate(Oracle(*PERFECT, num_classes=3), [BATCH], NAMES)


def test_label_without_name_raises() -> None:
    with pytest.raises(ValueError, match="label with class 2"):
        validate(Oracle(*PERFECT), [Batch(labels_of((0, 2, 20, 20, 10, 10)))], NAMES)


def test_results_table() -> None:
    result = validate(Oracle(*PERFECT), [BATCH], NAMES)
    assert [line.split() for line in result.table(per_class=True).splitlines()] == [
        ["all", "2", "3", "1", "1", "0.995", "0.995"],
        ["circle", "1", "1", "1", "1", "0.995", "0.995"],
        ["square", "2", "2", "1", "1", "0.995", "0.995"],
    ]
    assert len(result.table(per_class=False).splitlines()) == 1
    assert "at shape (2, 3, 64, 64)" in result.speed_line()


def test_plots_are_written(tmp_path: Path) -> None:
    validate(Oracle(*PERFECT), [BATCH] * 4, NAMES, ValidationSettings(plots_dir=tmp_path))
    expected = {f"val_batch{i}_{kind}.jpg" for i in range(3) for kind in ("labels", "pred")}
    expected |= {f"{name}.png" for name in ("PR_curve", "F1_curve", "P_curve", "R_curve", "confusion_matrix")}
    assert {path.name for path in tmp_path.iterdir()} == expected
