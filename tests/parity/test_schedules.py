from pathlib import Path

from tests.parity.harness import Report
from tests.parity.schedules import SUBJECT


def test_schedules_match_reference(goldens: Path) -> None:
    files = SUBJECT.files(goldens)
    assert files
    for path in files:
        report = Report()
        SUBJECT.check(path, report, "eager")
        assert report.ok, report.failures()
