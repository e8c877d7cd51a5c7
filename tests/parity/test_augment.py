from pathlib import Path

from tests.parity.augment import SUBJECT
from tests.parity.harness import Report


def test_augmentation_matches_reference(goldens: Path) -> None:
    files = SUBJECT.files(goldens)
    assert files
    for path in files:
        for mode in SUBJECT.modes:
            report = Report()
            SUBJECT.check(path, report, mode)
            assert report.ok, report.failures()
