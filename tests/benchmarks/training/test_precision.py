"""`graph-bench precision`: pairs are compared seed by seed, against the spread between seeds."""

from pathlib import Path

import pytest
import yaml

from benchmarks.cli import main
from benchmarks.harness.results import read_result
from benchmarks.training.precision import MEASURES, at_the_end, pairs, plot, tables
from tests.graph_train.tiny import TINY


def row(precision: str, seed: int, end: float) -> dict[str, object]:
    return {"precision": precision, "seed": seed, "seconds": 1.0, **{name: [0.0, end] for name in MEASURES}}


def test_the_end_is_the_last_fifth() -> None:
    assert at_the_end([9.0] * 8 + [1.0, 2.0]) == 1.5
    assert at_the_end([9.0, 3.0]) == 3.0


def test_pairs_share_a_seed() -> None:
    # Order of the trainings does not matter; differences 0.1 and 0.3: mean 0.2, deviation sqrt(2) / 10, error / sqrt(2)
    rows = [row("amp", 1, 0.8), row("float32", 1, 0.5), row("float32", 0, 0.2), row("amp", 0, 0.3)]
    found = pairs(rows)["map"]
    assert found["float32_mean"] == pytest.approx(0.35)
    assert found["float32_spread"] == pytest.approx(0.3 / 2**0.5)
    assert found["difference"] == pytest.approx(0.2)
    assert found["difference_spread"] == pytest.approx(0.1 * 2**0.5)
    assert found["error"] == pytest.approx(0.1)
    shown = tables({"rows": rows, "pairs": pairs(rows)})
    assert "+0.2000 ± 0.1000" in shown[0].rows[0]
    assert [cells[:2] for cells in shown[1].rows] == [(s, p) for s in "01" for p in ("float32", "amp")]


def test_curves_are_drawn(tmp_path: Path) -> None:
    rows = [row(precision, seed, 0.5) for precision in ("float32", "amp") for seed in (0, 1)]
    plot({"rows": rows}, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 0


def test_a_training_that_fails_is_told_with_its_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["precision", "--cfg", "nowhere.yaml"]) == 1
    error = capsys.readouterr().err
    assert "float32-0 ended with exit code 2: " in error
    assert "nowhere.yaml: no such model yaml" in error


def test_one_seed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["precision", "--seeds", "1"]) == 2
    assert "--seeds 1: must be at least 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_pairs_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, result, picture = tmp_path / "tiny.yaml", tmp_path / "precision.json", tmp_path / "precision.png"
    cfg.write_text(yaml.safe_dump(TINY))
    flags = ["--cfg", str(cfg), "--imgsz", "64", "--epochs", "2", "--seeds", "2"]
    if main(["precision", *flags, "--json", str(result), "--plot", str(picture)]):
        assert "--amp changes nothing on this machine" in capsys.readouterr().err
        pytest.skip("this processor multiplies bfloat16 no faster")
    body = read_result(result)
    assert [(row["seed"], row["precision"]) for row in body["rows"]] == [
        (0, "float32"),
        (0, "amp"),
        (1, "amp"),
        (1, "float32"),
    ]
    losses = {(row["seed"], row["precision"]): row["train_loss"] for row in body["rows"]}
    assert all(len(curve) == 2 for curve in losses.values())
    assert losses[0, "amp"] != losses[0, "float32"]
    # The first epoch of a pair is the same but for rounding; another seed has other images and weights.
    assert losses[0, "amp"][0] == pytest.approx(losses[0, "float32"][0], rel=0.02)
    assert picture.stat().st_size > 0
