import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from graph_train.runs.checkpoint import load_checkpoint
from tests.distributed.jobs import JobRunner
from tests.graph_train.training_runner import detecting, laid_out_as_coco

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]
EPOCHS = 10  # of two steps each


@pytest.fixture(scope="module")
def one_rank(runner: JobRunner) -> Path:
    runner.run(runner.flags("alone", epochs=EPOCHS), 1)
    return runner.root / "runs" / "alone"


def rows(folder: Path) -> np.ndarray:
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_checkpoint(folder / "weights" / "last.safetensors").arrays)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_match_single_process(runner: JobRunner, one_rank: Path, ranks: int) -> None:
    """Include three ranks, which split a batch of four unevenly."""
    job = runner.run(runner.flags(f"ranks{ranks}", epochs=EPOCHS, **{"sync-bn": True}), ranks)
    folder = runner.root / "runs" / f"ranks{ranks}"
    np.testing.assert_allclose(rows(folder), rows(one_rank), rtol=2e-4, atol=2e-5)
    ours, theirs = arrays(folder), arrays(one_rank)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-3, atol=2e-5, err_msg=name)
    assert re.search(rf"All {ranks} ranks hold the same weights: [0-9a-f]{{32}}", job.text(0))
    # Only rank 0 prints.
    assert [job.text(rank) for rank in range(1, ranks)] == [""] * (ranks - 1)


def test_validation_matches_single_process(runner: JobRunner) -> None:
    """The four images are split 2 + 2 and 2 + 1 + 1."""
    found = {}
    for ranks in (1, 2, 3):
        name = f"detecting{ranks}"
        runner.run(runner.flags(name, epochs=1, **{"sync-bn": ranks > 1}, **detecting(runner.root, runner.data)), ranks)
        (found[ranks],) = rows(runner.root / "runs" / name)
    measures = slice(4, 8)  # precision, recall, mAP50, mAP50-95
    assert found[1][measures].min() > 0
    for ranks in (2, 3):
        np.testing.assert_allclose(found[ranks][measures], found[1][measures], rtol=1e-6)


def test_rank_0_writes_and_evaluates_coco_results(runner: JobRunner) -> None:
    data, found = laid_out_as_coco(runner.data, runner.root / "as-coco"), {}
    for ranks in (1, 2):
        flags = {**detecting(runner.root, runner.data), "data": data, "sync-bn": ranks > 1}
        job = runner.run(runner.flags(f"coco{ranks}", epochs=1, **flags), ranks)
        assert "COCO metrics with" in job.text(0)
        entries = json.loads((runner.root / "runs" / f"coco{ranks}" / "best_predictions.json").read_text())
        found[ranks] = [(entry["image_id"], entry["score"]) for entry in entries]
    assert [number for number, _ in found[2]] == [number for number, _ in found[1]]
    np.testing.assert_allclose(found[2], found[1], atol=2e-4)


def test_running_means_cover_all_ranks(runner: JobRunner) -> None:
    """Use one batch of eight, so that the first layer sees the same images on any number of ranks."""
    flags = {"epochs": 1, "batch-size": 8, **detecting(runner.root, runner.data)}
    mean, variance = ("model/model.0.bn.running_mean", "model/model.0.bn.running_var")
    saved = []
    for ranks in (1, 2):
        runner.run(runner.flags(f"means{ranks}", **flags), ranks)
        saved.append(arrays(runner.root / "runs" / f"means{ranks}"))
    np.testing.assert_allclose(saved[1][mean], saved[0][mean], rtol=1e-4, atol=1e-7)
    # The variances within parts do not include the variance between parts.
    assert not np.array_equal(saved[1][variance], saved[0][variance])
    np.testing.assert_allclose(saved[1][variance], saved[0][variance], rtol=0.1)


def test_per_rank_statistics_are_averaged(runner: JobRunner) -> None:
    job = runner.run(runner.flags("own-statistics", epochs=2), 2)
    assert "All 2 ranks hold the same weights" in job.text(0)
    saved = arrays(runner.root / "runs" / "own-statistics")
    assert all(np.isfinite(value).all() for value in saved.values())
    # With channels first, which uses OneFlow's own ops.
    runner.run(runner.flags("channels-first", epochs=2), 2, module="tests.distributed.channels_first_job")
    reference = runner.root / "runs" / "channels-first"
    np.testing.assert_allclose(rows(runner.root / "runs" / "own-statistics"), rows(reference), rtol=2e-4, atol=2e-5)
    for name, value in arrays(reference).items():
        np.testing.assert_allclose(saved[name], value, rtol=2e-3, atol=2e-5, err_msg=name)


def test_ranks_train_without_plugin(runner: JobRunner) -> None:
    """Gradients of accumulated batches are all-reduced only when an update is due."""
    for kernels in ("off", "require"):
        job = runner.run(runner.flags(f"kernels-{kernels}", epochs=2, **{"kernels": kernels, "sync-bn": True}), 2)
        assert "All 2 ranks hold the same weights" in job.text(0)
    stock, plugin = (runner.root / "runs" / f"kernels-{kernels}" for kernels in ("off", "require"))
    np.testing.assert_allclose(rows(stock), rows(plugin), rtol=2e-4, atol=2e-5)


def test_resume_across_numbers_of_ranks(runner: JobRunner) -> None:
    """A run on two, then four, then one rank ends like a run on one rank."""

    def through(name: str, *ranks: int) -> Path:
        folder = runner.root / "runs" / name
        runner.run(runner.flags(name, epochs=3, **{"sync-bn": ranks[0] > 1}), ranks[0])
        for epochs, number in enumerate(ranks[1:], start=4):
            runner.run(["--resume", str(folder), "--epochs", str(epochs)], number)
        return folder

    several, one = through("resumed", 2, 4, 1), through("resumed-alone", 1, 1, 1)
    assert len(rows(one)) == 5
    np.testing.assert_allclose(rows(several), rows(one), rtol=2e-4, atol=2e-5)
    ours, theirs = arrays(several), arrays(one)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-3, atol=2e-5, err_msg=name)
