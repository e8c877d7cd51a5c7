import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graph_train.metrics.average_precision import metrics_per_class
from graph_train.metrics.confusion import ConfusionMatrix
from graph_train.plots.curves import plot_study, plot_validation
from graph_train.plots.images import MAX_IMAGES, plot_detections, plot_labelled
from graph_train.plots.labels import plot_labels
from graph_train.plots.results import _panel, plot_results, read_results
from graph_train.plots.style import class_colour, escape_mathtext, legend_outside, new_figure, optional_plot
from graph_train.runs.results_csv import COLUMNS
from tests.python_process import ROOT, run_python

NAMES = ("circle", "square", "Dreieck ß")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def images(count: int, height: int = 512, width: int = 512) -> np.ndarray:
    return np.full((count, 3, height, width), 255, np.uint8)


def test_box_is_drawn_at_its_position(tmp_path: Path) -> None:
    # 512 px need no enlarging; tiles start behind a gap of 4 px. Box from 128 to 384 in both directions.
    rows = np.asarray([[0, 1, 0.5, 0.5, 0.5, 0.5]], np.float32)
    plot_labelled(images(1), rows, NAMES, tmp_path / "a.png")
    drawn = pixels(tmp_path / "a.png")
    is_colour = (drawn == class_colour(1)).all(axis=2)
    assert is_colour[4 + 128, 4 + 300]  # upper side
    assert is_colour[4 + 300, 4 + 384]  # right side
    lines, columns = np.nonzero(is_colour[140:])
    assert (columns.min() - 4, columns.max() - 4, lines.max() + 140 - 4) == (128, 384, 384)


def test_detections_below_confidence_are_not_drawn(tmp_path: Path) -> None:
    for name, confidence in (("low", 0.25), ("high", 0.26)):
        found = [np.asarray([[10, 10, 200, 200, confidence, 0]], np.float32)]
        plot_detections(images(1), found, NAMES, tmp_path / f"{name}.png")
    assert (pixels(tmp_path / "low.png") == 255).all()
    assert not (pixels(tmp_path / "high.png") == 255).all()


def test_drawing_needs_no_valid_matplotlib_configuration(tmp_path: Path) -> None:
    """As of graph-predict: matplotlib cannot be imported with a wrong MPLBACKEND."""
    code = (
        "import numpy as np; from PIL import Image; from graph_train.plots.images import BoxStyle, draw_detections; "
        "rows, picture = np.array([[4, 40, 60, 60, 0.9, 0]]), Image.new('RGB', (64, 64)); "
        "draw_detections(picture, rows, ['cat'], BoxStyle()); assert picture.getextrema()[0][1] > 0"
    )
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\0nonsense")
    settings = {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = run_python("-c", code, env={**os.environ, **settings})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (2, (2, 1)), (5, (3, 2)), (20, (4, 4))])
def test_mosaic_shows_up_to_16_images(tmp_path: Path, count: int, grid: tuple[int, int]) -> None:
    height, width = 300, 450
    names = [f"{i}.jpg" for i in range(count)]
    plot_labelled(images(count, height, width), np.zeros((0, 6)), NAMES, tmp_path / "a.jpg", paths=names)
    with Image.open(tmp_path / "a.jpg") as picture:
        columns, lines = grid
        assert picture.width / picture.height == pytest.approx(columns * width / (lines * height), rel=0.02)  # the gaps
        assert max(picture.size) <= 1920 + 4 * (columns + 1)
    assert columns * lines <= MAX_IMAGES


def test_boxes_outside_or_without_area_are_ignored(tmp_path: Path) -> None:
    found = [np.asarray([[-50, -50, -10, -10, 0.9, 0], [30, 30, 30, 30, 0.9, 7], [9, 9, 5, 5, 0.9, 1]], np.float32)]
    plot_detections(images(1), found, NAMES, tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").stat().st_size > 0


def write_results(path: Path, epochs: int) -> None:
    rows = [",".join(f"{name:>20}" for name in COLUMNS)]
    rows += [
        ",".join([f"{epoch:>20}", *(f"{0.1 * epoch + column:>20.5g}" for column in range(13))])
        for epoch in range(epochs)
    ]
    path.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_plot_results(tmp_path: Path, epochs: int) -> None:
    write_results(tmp_path / "results.csv", epochs)
    plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    first = (tmp_path / "results.png").read_bytes()
    plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes() == first
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.width >= 2000


def test_marked_epoch_is_the_saved_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved best epoch is the last one of three with equal results."""
    write_results(tmp_path / "results.csv", 2)
    rows = (tmp_path / "results.csv").read_text().splitlines()
    rows += [f"{epoch:>20},{rows[2].split(',', 1)[1]}" for epoch in (2, 3)]
    (tmp_path / "results.csv").write_text("\n".join(rows))
    titles: list[str] = []

    def figure(width: float, height: float, title: str) -> Any:
        titles.append(title)
        return new_figure(width, height, title)

    monkeypatch.setattr("graph_train.plots.results.new_figure", figure)
    plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert "4 epochs · best epoch 3" in titles[0]


def test_padded_column_names_are_parsed(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", 3)
    columns = read_results(tmp_path / "results.csv")
    assert tuple(columns) == COLUMNS
    assert columns["metrics/precision"] == pytest.approx([3, 3.1, 3.2])


def test_pipe_in_place_of_results_is_not_waited_for(tmp_path: Path) -> None:
    """The report of a run whose file is replaced would have waited forever, or read /dev/zero to the end."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "endless.csv"):
        with pytest.raises(ValueError, match=f"{name}: not a regular file"):
            read_results(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch\n", "no epochs yet"),
        ("a,b\n1,2\n1\n", r"results.csv:3: 1 value for 2 columns"),
        ("a,b\n1,x\n", "every value must be a number"),
        ("epoch,b\n1,2\n", "no column train/box_loss"),
    ],
)
def test_invalid_results_raise(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        plot_results(tmp_path / "results.csv", tmp_path / "results.png")


def test_non_finite_values_leave_gap(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", 5)
    text = (tmp_path / "results.csv").read_text().splitlines()
    cells = text[3].split(",")
    text[3] = ",".join([*cells[:1], "nan", "inf", *cells[3:]])
    (tmp_path / "results.csv").write_text("\n".join(text))
    plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000


@pytest.mark.parametrize("count", [0, 1, 1500])
def test_plot_labels(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(0)
    labels = np.column_stack((random.integers(0, 3, count), random.uniform(0.1, 0.3, (count, 4))))
    plot_labels(labels, NAMES, tmp_path / "labels.jpg")
    assert pixels(tmp_path / "labels.jpg").shape == (1080, 1200, 3)


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_plot_validation(tmp_path: Path, classes: int) -> None:
    random = np.random.default_rng(1)
    names = [f"class {i}" for i in range(classes)]
    labels = random.integers(0, classes, 200)
    found = metrics_per_class(random.random((200, 10)) < 0.6, random.random(200), labels, labels)
    matrix = ConfusionMatrix(classes)
    matrix.counts += random.integers(0, 20, matrix.counts.shape)
    plot_validation(found, matrix, names, tmp_path)
    for name in ("PR_curve", "F1_curve", "P_curve", "R_curve", "confusion_matrix"):
        assert pixels(tmp_path / f"{name}.png").std() > 10


@pytest.mark.parametrize("name", [r"$\frac{$", "$x$", "_hidden", r"a\$b", "n" * 500, "<b>", "{}", "%s"])
def test_class_names_are_drawn_verbatim(tmp_path: Path, name: str) -> None:
    labels = np.zeros(20, np.int64)
    found = metrics_per_class(np.ones((20, 10), bool), np.ones(20), labels, labels)
    plot_validation(found, ConfusionMatrix(1), [name], tmp_path)
    plot_labels(np.full((3, 5), 0.2) * [0, 1, 1, 1, 1], [name], tmp_path / "labels.jpg")
    axes = new_figure(3, 3, "").subplots()
    axes.plot([0, 1], [0, 1], label=escape_mathtext(name))
    legend_outside(axes)
    (shown,) = axes.get_legend().get_texts()
    shown.figure.canvas.draw()
    assert not shown._preprocess_math(shown.get_text())[1]
    assert (tmp_path / "PR_curve.png").exists()


def test_failing_plot_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with optional_plot(tmp_path / "a.png"):
        raise ValueError("two\nlines")
    assert caplog.messages == [f"{tmp_path / 'a.png'}: plotting failed: two lines"]
    with pytest.raises(OSError, match="full"), optional_plot(tmp_path / "a.png"):
        raise OSError("full")


def test_no_curves_without_labels(tmp_path: Path) -> None:
    nothing = metrics_per_class(np.zeros((0, 10), bool), np.zeros(0), np.zeros(0), np.zeros(0))
    plot_validation(nothing, ConfusionMatrix(3), NAMES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["confusion_matrix.png"]


def test_epoch_axis_has_integer_ticks(tmp_path: Path) -> None:
    axes = new_figure(3, 3, "").subplots()
    _panel(axes, np.arange(3.0), np.asarray([0.1, 0.2, 0.15]), best=1)
    assert all(place == round(place) for place in axes.get_xticks())


def test_plot_study(tmp_path: Path) -> None:
    plot_study({"a.pt": [(256, 5.0, 0.3), (384, 9.0, 0.4)], "b.pt": [(256, 2.0, 0.2)]}, tmp_path / "study.png")
    assert pixels(tmp_path / "study.png").std() > 10
