"""All commands in folders whose names contain control characters: every message stays on its line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.harness.training_command import as_flags
from graph_train.cli import check, export, predict, train, val
from graph_train.launch.train import train as train_network
from kernels.host.paths import printable
from tests.graph_train.training_runner import FinishedRun, TrainingRunner

FOLDER = "line\nfeed\x1b[31m"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> TrainingRunner:
    root = tmp_path_factory.mktemp("runner") / FOLDER
    root.mkdir()
    return TrainingRunner(root)


@pytest.fixture(scope="module")
def finished(runner: TrainingRunner) -> FinishedRun:
    hyp = runner.hyp()
    hyp.write_text("".join(hyp.read_text().splitlines(keepends=True)[:-1]))  # incomplete, which is reported
    return runner.train(hyp=hyp, noplots=False, epochs=2)


def ends_in_one_line(out: str, place: Path) -> bool:
    return FOLDER not in out and f"Results saved to {printable(place)}\n" in out


def test_training(runner: TrainingRunner, finished: FinishedRun) -> None:
    assert ends_in_one_line(finished.log, finished.folder)
    assert printable(runner.data) in finished.log


def test_resuming_after_damage(
    runner: TrainingRunner, finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = runner.train(keep_saves=2, epochs=2).folder / "weights"
    (weights / "last.safetensors").write_bytes(b"damaged")
    (weights / "best.safetensors").write_bytes(b"damaged")
    capsys.readouterr()
    train_network(resume=weights.parent)
    out = capsys.readouterr().out
    assert "Using the previous checkpoint" in out and "renamed to" in out
    assert ends_in_one_line(out, weights.parent)


@pytest.mark.parametrize("command", ["val", "predict", "export", "check"])
def test_using_the_weights(
    runner: TrainingRunner, finished: FinishedRun, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    weights, project = finished.folder / "weights" / "best.safetensors", tmp_path / FOLDER
    size = as_flags(imgsz=64, device="cpu", project=project, weights=weights)
    ends: dict[str, Callable[[], int]] = {
        "val": lambda: val.main([*as_flags(data=runner.data), *size, "--save-json"]),
        "predict": lambda: predict.main([*as_flags(source=runner.root / "set/images/val"), *size]),
        "export": lambda: export.main(as_flags(weights=weights, include="safetensors")),
        "check": lambda: check.main(as_flags(data=runner.data)),
    }
    assert ends[command]() == 0
    out = capsys.readouterr().out
    assert FOLDER not in out
    if command in ("val", "predict"):
        assert ends_in_one_line(out, project / "exp")


def test_usage_errors(runner: TrainingRunner, capsys: pytest.CaptureFixture[str]) -> None:
    missing = runner.root / "missing.yaml"
    assert train.main(as_flags(data=missing, cfg=runner.cfg)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and FOLDER not in error
