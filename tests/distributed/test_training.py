import csv
import re
from pathlib import Path

import numpy as np
import pytest

from graph_train.runs.checkpoint import load_checkpoint
from tests.distributed.jobs import JobLab

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]
EPOCHS = 10  # of two steps each


@pytest.fixture(scope="module")
def alone(lab: JobLab) -> Path:
    lab.run(lab.flags("alone", epochs=EPOCHS), 1)
    return lab.root / "runs" / "alone"


def rows(folder: Path) -> np.ndarray:
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_checkpoint(folder / "weights" / "last.safetensors").arrays)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_train_as_one_process(lab: JobLab, alone: Path, ranks: int) -> None:
    """Three ranks have uneven parts of a batch of four."""
    job = lab.run(lab.flags(f"ranks{ranks}", epochs=EPOCHS, **{"sync-bn": True}), ranks)
    folder = lab.root / "runs" / f"ranks{ranks}"
    np.testing.assert_allclose(rows(folder), rows(alone), rtol=2e-4, atol=2e-5)
    ours, theirs = arrays(folder), arrays(alone)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-3, atol=2e-5, err_msg=name)
    assert re.search(rf"All {ranks} ranks hold the same weights: [0-9a-f]{{32}}", job.text(0))
    # Only rank 0 speaks.
    assert [job.text(rank) for rank in range(1, ranks)] == [""] * (ranks - 1)


def test_statistics_of_each_rank_are_joined(lab: JobLab) -> None:
    job = lab.run(lab.flags("own-statistics", epochs=2), 2)
    assert "All 2 ranks hold the same weights" in job.text(0)
    saved = arrays(lab.root / "runs" / "own-statistics")
    assert all(np.isfinite(value).all() for value in saved.values())
    # By ops of another layout, which are OneFlow's own.
    lab.run(lab.flags("channels-first", epochs=2), 2, module="tests.distributed.channels_first_job")
    reference = lab.root / "runs" / "channels-first"
    np.testing.assert_allclose(rows(lab.root / "runs" / "own-statistics"), rows(reference), rtol=2e-4, atol=2e-5)
    for name, value in arrays(reference).items():
        np.testing.assert_allclose(saved[name], value, rtol=2e-3, atol=2e-5, err_msg=name)


def test_resume_with_other_numbers_of_ranks(lab: JobLab, alone: Path) -> None:
    """Two, four, one: the run goes through all of them and ends as if it had had one all along."""
    name = "resumed"
    folder = lab.root / "runs" / name
    lab.run(lab.flags(name, epochs=EPOCHS, **{"sync-bn": True, "save-period": 3}), 2)
    assert len(rows(folder)) == EPOCHS
    longer = ["--resume", str(folder), "--epochs", str(EPOCHS + 1)]
    lab.run(longer, 4)
    assert len(rows(folder)) == EPOCHS + 1
    lab.run([*longer[:-1], str(EPOCHS + 2)], 1)
    assert len(rows(folder)) == EPOCHS + 2
    np.testing.assert_allclose(rows(folder)[: EPOCHS - 1], rows(alone)[: EPOCHS - 1], rtol=2e-4, atol=2e-5)
