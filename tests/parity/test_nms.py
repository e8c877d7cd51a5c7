from pathlib import Path

from tests.parity.harness import Report
from tests.parity.nms import SUBJECT


def test_nms_matches_reference(goldens: Path) -> None:
    files = SUBJECT.files(goldens)
    assert files
    for path in files:
        for mode in SUBJECT.modes:
            report = Report()
            SUBJECT.check(path, report, mode)
            assert report.ok, (path.name, mode, report.failures())
