from pathlib import Path

import pytest

from tests.parity.harness import MODES, Mode, Report
from tests.parity.loss import SUBJECT

CASES = """
    autobalance border combined duplicates duplicates_sorted focal gr label_smoothing many_targets nc1 nc80 nl2 nl5
    no_targets normal one_target p6 pos_weight
""".split()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_loss_matches_reference(goldens: Path, case: str, mode: Mode) -> None:
    report = Report()
    SUBJECT.check(goldens / f"loss_{case}.npz", report, mode)
    assert report.ok, report.failures()


def test_every_file_is_covered(goldens: Path) -> None:
    assert [path.stem for path in SUBJECT.files(goldens)] == [f"loss_{case}" for case in CASES]
