"""The vectors in this repository: all subjects in all modes."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity.__main__ import subjects
from tests.parity.edge_ties import unexplained
from tests.parity.harness import Mode, Report, Subject
from tests.parity.select_vectors import CHOSEN, RECORDED_APART, VECTORS, select

CASES = [
    pytest.param(subject, path, mode, id=f"{path.stem}-{mode}")
    for subject in subjects().values()
    for path in subject.files(VECTORS)
    for mode in subject.modes
]


@pytest.mark.parametrize(("subject", "path", "mode"), CASES)
def test_small_vectors(subject: Subject, path: Path, mode: Mode) -> None:
    report = Report()
    subject.check(path, report, mode)
    assert report.ok, report.failures()
    assert not unexplained(path.stem, report)


def test_every_vector_file_is_compared() -> None:
    compared = {path.stem for subject in subjects().values() for path in subject.files(VECTORS)} | {"train_common"}
    assert compared == {path.stem for path in VECTORS.glob("*.npz")}
    apart = compared - set(CHOSEN) - set(RECORDED_APART)
    assert {name for name in apart if "weights_seed" not in np.load(VECTORS / f"{name}.npz")} == set()


def test_small_vectors_match_full_set(goldens: Path, tmp_path: Path) -> None:
    select(goldens, tmp_path)
    for name in CHOSEN:
        kept, again = np.load(VECTORS / f"{name}.npz"), np.load(tmp_path / f"{name}.npz")
        assert kept.files == again.files, name
        for key in kept.files:
            np.testing.assert_array_equal(kept[key], again[key], err_msg=f"{name}: {key}")
