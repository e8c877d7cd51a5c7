import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.points import BATCHES, Point, parse_point, random_batches, write_point
from benchmarks.step.competitors import available, break_even_steps
from benchmarks.step.whole_step import groups


def test_point_parses_from_text(tmp_path: Path) -> None:
    assert parse_point("yolov5s.yaml:4:320") == Point("yolov5s", 4, 320)
    own = tmp_path / "own.yaml"
    own.touch()
    assert parse_point(f"{own}:4:320") == Point(str(own), 4, 320)


@pytest.mark.parametrize(
    "text",
    [
        "yolov5s",
        "yolov5s:4",
        "yolov5s:0:320",
        ":4:320",
        "yolov5s:4:321",
        "yolov5s:a:320",
        "yolov5s:²:320",
        "yolov5s:٣:320",
        "yolov5s:99999999999:320",
        "yolov5s:65537:320",
        "yolov5s:4:16416",
    ],
)
def test_invalid_point_raises(text: str) -> None:
    with pytest.raises(ValueError, match="--points"):
        parse_point(text)


def test_batches_are_valid_and_repeatable() -> None:
    point = Point("yolov5n", 3, 64)
    images, labels = random_batches(point, 80)
    assert images.shape == (BATCHES, 3, 3, 64, 64)
    assert labels.shape == (BATCHES, 3, 32, 5)
    used = labels[labels[..., 0] >= 0]
    assert (used[:, 0] < 80).all()
    corners = np.concatenate((used[:, 1:3] - used[:, 3:] / 2, used[:, 1:3] + used[:, 3:] / 2))
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6
    np.testing.assert_array_equal(images, random_batches(point, 80)[0])


def test_saved_point_is_plain_data(tmp_path: Path) -> None:
    size = write_point(tmp_path, Point("yolov5n", 2, 64))
    assert size["parameters"] == 1872157  # YOLOv5's own figure for yolov5n with 80 classes
    point = json.loads((tmp_path / "point.json").read_text())
    assert [row["kind"] for row in point["network"]][-1] == "Detect"
    assert point["head"]["balance"] == pytest.approx([4.0, 1.0, 0.4])
    with np.load(tmp_path / "weights.npz") as arrays:
        assert "model.0.conv.weight" in arrays.files


def test_activation_of_own_network_is_plain_data(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    conv = "[-1, 1, Conv, [16, 3, 2, None, 1, 1, nn.LeakyReLU(0.1)]]"
    own.write_text(f"nc: 2\nanchors: [[10, 13]]\nbackbone: [{conv}]\nhead: [[[0], 1, Detect, [nc, anchors]]]\n")
    write_point(tmp_path, Point(str(own), 1, 64))
    conv_row, detect_row = json.loads((tmp_path / "point.json").read_text())["network"]
    assert conv_row["arguments"]["activation"] == {"name": "LeakyReLU", "arguments": [0.1]}
    assert not {"anchors", "num_classes"} & detect_row["arguments"].keys()


def test_compile_break_even_known_values() -> None:
    # 10 s for the first step instead of 0.1 s; then 50 ms less each step. The eager side starts in 0.2 s.
    graph = {"ms_per_step": 100.0, "first_step_s": 10.0}
    eager = {"ms_per_step": 150.0, "first_step_s": 0.2}
    assert break_even_steps(graph, eager) == round((10_000 - 100 - 50) / 50)
    assert break_even_steps(eager, graph) is None


def test_pytorch_is_skipped_with_note() -> None:
    kept, notes = available(["plugin-graph", "pytorch-eager"], None)
    assert kept == ["plugin-graph"]
    assert "--torch-python" in notes[0]
    with pytest.raises(ValueError, match="--torch-python"):
        available(["pytorch-eager"], None)
    with pytest.raises(ValueError, match="must be one of"):
        available(["pytorch"], None)


def test_every_variant_is_compared_with_the_first() -> None:
    assert groups(["a", "b", "c", "d", "e"]) == [["a", "b", "c", "d"], ["a", "e"]]
    assert groups(["a"]) == [["a"]]
