"""`graph-bench accuracy`: ours and PyTorch are compared per seed, relative to the spread over seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.cli import main
from benchmarks.harness.results import read_result
from benchmarks.harness.workers import Worker
from benchmarks.step.competitors import find_torch
from benchmarks.training.accuracy import CURVES, comparisons, mean_of_last_fifth, measured, plot, tables
from benchmarks.training.accuracy_trainings import SIDES
from tests.graph_train.tiny import TINY

SMALL = ["--imgsz", "64", "--epochs", "2", "--threads", "1"]


def row(side: str, seed: int, end: float) -> dict[str, Any]:
    return {"side": side, "seed": seed, "seconds": 1.0, **{name: [0.0, end] for name in CURVES}}


@pytest.fixture
def cfg(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def test_final_metrics_average_last_fifth() -> None:
    assert mean_of_last_fifth([9.0] * 8 + [1.0, 2.0]) == 1.5
    assert mean_of_last_fifth([9.0, 3.0]) == 3.0


def test_best_epoch_has_highest_fitness() -> None:
    row = {"map50": [0.5, 0.4, 0.3], "map": [0.1, 0.2, 0.15]}
    assert measured(row, "best_map50") == 0.4
    assert measured(row, "best_map") == 0.2
    assert measured(row, "map50") == 0.3


def test_pairs_share_seed() -> None:
    # Order of the trainings does not matter; differences 0.1 and 0.3: mean 0.2, deviation sqrt(2) / 10, error / sqrt(2)
    rows = [row("amp", 1, 0.8), row("float32", 1, 0.5), row("float32", 0, 0.2), row("amp", 0, 0.3)]
    found = comparisons([*rows, row("float32", 2, 0.9), row("pytorch", 0, 0.1)])
    assert found.keys() == {"amp - float32"}  # PyTorch has only one pair
    measured = found["amp - float32"]["map"]
    assert measured["pairs"] == 2
    assert measured["float32_mean"] == pytest.approx(0.35)
    assert measured["float32_spread"] == pytest.approx(0.3 / 2**0.5)
    assert measured["difference"] == pytest.approx(0.2)
    assert measured["difference_spread"] == pytest.approx(0.1 * 2**0.5)
    assert measured["error"] == pytest.approx(0.1)
    shown = tables({"rows": rows})
    assert "+0.2000 ± 0.1000" in shown[0].rows[0]
    assert [cells[:2] for cells in shown[1].rows] == [(s, p) for s in "01" for p in ("float32", "amp")]


def test_difference_is_ours_minus_pytorch() -> None:
    rows = [row(side, seed, end + seed) for side, end in (("float32", 0.5), ("pytorch", 0.4)) for seed in (0, 1)]
    assert comparisons(rows)["float32 - pytorch"]["map50"]["difference"] == pytest.approx(0.1)


def test_draws_curves(tmp_path: Path) -> None:
    plot({"rows": [row(side, seed, 0.5) for side in SIDES for seed in (0, 1)]}, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 0


def test_failed_training_is_reported_with_its_last_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "--cfg", "nowhere.yaml", "--sides", "float32", "amp"]) == 2
    error = capsys.readouterr().err
    assert "float32-0 exited with code 2: " in error
    assert "nowhere.yaml: no such model yaml" in error and "internal error" not in error


def test_rejects_single_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "--seeds", "1"]) == 2
    assert "--seeds 1: must be at least 2" in capsys.readouterr().err


@pytest.mark.skipif(find_torch(None, ("torch", "numpy", "cv2")) is not None, reason="this interpreter has PyTorch")
def test_rejects_pytorch_without_interpreter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "--sides", "float32", "pytorch"]) == 2
    assert "--torch-python" in capsys.readouterr().err


def _keep(folder: Path, side: str, seed: int, **other: Any) -> None:
    settings = {
        "data": "shapes",
        "cfg": "tiny.yaml",
        "imgsz": 64,
        "batch_size": 16,
        "epochs": 2,
        "device": "cpu",
        "threads": 1,
        "train_flags": "",
        **other,
    }
    content = {"settings": settings, "row": row(side, seed, 0.5 + seed / 10)}
    (folder / f"{side}-{seed}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}, "row": {"seed": 1, "side": []}}'])
def test_damaged_training_is_named(tmp_path: Path, cfg: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "amp-3.json").write_text(content)
    assert main(["accuracy", "--cfg", cfg, *SMALL, "--seeds", "0", "--work", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'amp-3.json'}: damaged graph-bench result (" in error and error.count("\n") == 1


def test_finished_trainings_are_reused(tmp_path: Path, cfg: str) -> None:
    work, result = tmp_path / "work", tmp_path / "a.json"
    work.mkdir()
    for seed in (3, 7):
        for side in ("float32", "amp"):
            _keep(work, side, seed)
    assert main(["accuracy", "--cfg", cfg, *SMALL, "--seeds", "0", "--work", str(work), "--json", str(result)]) == 0
    body = read_result(result)
    assert [(item["side"], item["seed"]) for item in body["rows"]] == [
        ("amp", 3),
        ("amp", 7),
        ("float32", 3),
        ("float32", 7),
    ]
    assert body["comparisons"]["amp - float32"]["map"]["difference"] == pytest.approx(0)


def test_rejects_trainings_with_other_settings(tmp_path: Path, cfg: str, capsys: pytest.CaptureFixture[str]) -> None:
    _keep(tmp_path, "amp", 0, epochs=9)
    (tmp_path / "work").mkdir()
    (tmp_path / "amp-0.json").rename(tmp_path / "work" / "amp-0.json")
    assert main(["accuracy", "--cfg", cfg, *SMALL, "--work", str(tmp_path / "work")]) == 2
    assert "amp-0.json: trained with --epochs 9, not 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_adds_precision_and_seed_to_finished_trainings(tmp_path: Path, cfg: str) -> None:
    result, picture, work = tmp_path / "a.json", tmp_path / "a.png", tmp_path / "work"
    command = [
        "accuracy",
        "--cfg",
        cfg,
        *SMALL,
        "--sides",
        "float32",
        "amp",
        "--work",
        str(work),
        "--json",
        str(result),
    ]
    assert main([*command, "--seeds", "2", "--plot", str(picture)]) == 0
    first = {(item["seed"], item["side"]): item["train_loss"] for item in read_result(result)["rows"]}
    assert sorted(first) == [(0, "amp"), (0, "float32"), (1, "amp"), (1, "float32")]
    assert all(len(curve) == 2 for curve in first.values())
    assert first[0, "amp"] != first[0, "float32"]
    # The first epochs of a pair differ by rounding only; another seed has other images and weights.
    assert first[0, "amp"][0] == pytest.approx(first[0, "float32"][0], rel=0.02)
    assert picture.stat().st_size > 0
    kept = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    assert main([*command, "--seeds", "3"]) == 0
    assert len(read_result(result)["rows"]) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ema_validates_as_in_its_run(tmp_path: Path, cfg: str) -> None:
    """Our EMA weights, validated like PyTorch's, reproduce the row that `graph-train` wrote."""
    from graph_train import train
    from graph_train.plots.results import read_results
    from models.weights import load_weights

    flags: dict[str, Any] = {"data": "shapes", "cfg": cfg, "imgsz": 64, "epochs": 2, "workers": 1, "seed": 3}
    train(**flags, noplots=True, project=str(tmp_path), name="run")
    weights = load_weights(tmp_path / "run" / "weights" / "last.safetensors", prefer="ema")
    np.savez(tmp_path / "average.npz", **weights.arrays)
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    with Worker("validation", "benchmarks.training.accuracy_worker", threads=1) as worker:
        worker.call("describe", folder=str(tmp_path), arguments=arguments)
        found = worker.call("validate", weights=str(tmp_path / "average.npz"))
    columns = read_results(tmp_path / "run" / "results.csv")
    assert found["map"] == pytest.approx(columns["metrics/mAP_0.5:0.95"][-1], abs=1e-4)
    losses = sum(columns[f"val/{part}_loss"][-1] for part in ("box", "obj", "cls"))
    assert found["val_loss"] == pytest.approx(losses, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pytorch_and_ours_reach_similar_losses(tmp_path: Path, torch_python: Path) -> None:
    """Both start from the same weights and reach similar losses with the same warm-up and accumulation."""
    if find_torch(str(torch_python), ("torch", "numpy", "cv2")) is None:
        pytest.skip("no OpenCV in PyTorch's interpreter")
    result = tmp_path / "a.json"
    flags = [
        "--sides",
        "float32",
        "pytorch",
        "--torch-python",
        str(torch_python),
        "--seeds",
        "2",
        "--json",
        str(result),
    ]
    assert main(["accuracy", "--cfg", "yolov5n.yaml", *SMALL, *flags]) == 0
    body = read_result(result)
    losses = {(item["seed"], item["side"]): item["train_loss"] for item in body["rows"]}
    for seed in (0, 1):
        assert losses[seed, "pytorch"] == pytest.approx(losses[seed, "float32"], rel=0.1)
    assert body["comparisons"].keys() == {"float32 - pytorch"}
    assert all(item["pytorch"] for item in body["rows"] if item["side"] == "pytorch")


@pytest.mark.slow
def test_rejects_flags_unsupported_by_pytorch(tmp_path: Path) -> None:
    with Worker("validation", "benchmarks.training.accuracy_worker", threads=1) as worker:
        arguments = ["--data", "shapes", "--cfg", "yolov5n.yaml", "--imgsz", "64", "--optimizer", "Adam"]
        with pytest.raises(ValueError, match="the default optimizer only"):
            worker.call("describe", folder=str(tmp_path), arguments=arguments)
