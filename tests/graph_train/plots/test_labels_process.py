"""`labels.jpg` is plotted in a separate process: the file, and the messages on failures."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graph_train.plots.labels_process import labels_plotted
from tests.python_process import run_python

LABELS = np.array([[0, 0.5, 0.5, 0.2, 0.3], [1, 0.25, 0.5, 0.1, 0.1]], np.float32)
NAMES = ("ball", "Würfel – 'blau'")


def test_plot_is_drawn_in_parallel(tmp_path: Path) -> None:
    with labels_plotted(LABELS, NAMES, tmp_path / "labels.jpg"):
        assert not (tmp_path / "labels.jpg").exists()
        assert "matplotlib.figure" not in _modules_at_start()
    with Image.open(tmp_path / "labels.jpg") as image:
        assert image.size == (1200, 1080)


def test_modules_in_working_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    for name in ("random", "matplotlib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    with labels_plotted(LABELS, NAMES, Path("run/labels.jpg")):
        pass
    assert (tmp_path / "run" / "labels.jpg").is_file()


def _modules_at_start() -> str:
    """Return the modules loaded by importing `labels_process` only."""
    program = "import sys, graph_train.plots.labels_process; print(sorted(sys.modules))"
    return run_python("-c", program, check=True).stdout


def test_failing_plot_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "labels.jpg").mkdir()
    with caplog.at_level(logging.WARNING), labels_plotted(LABELS, NAMES, tmp_path / "labels.jpg"):
        pass
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == f"{tmp_path / 'labels.jpg'}: plotting failed: Is a directory"


def test_failing_process_start_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with caplog.at_level(logging.WARNING), labels_plotted(LABELS, NAMES, tmp_path / "labels.jpg"):
        pass
    assert "plotting failed: " in caplog.text


def test_error_in_body_is_raised_after_plot(tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("of the body")

    with pytest.raises(ValueError, match="of the body"), labels_plotted(LABELS, NAMES, tmp_path / "labels.jpg"):
        fail()
    assert (tmp_path / "labels.jpg").is_file()
