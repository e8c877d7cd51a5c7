from pathlib import Path

from tests.parity.autoanchor import SUBJECT
from tests.parity.harness import Report


def test_autoanchor_matches_reference(goldens: Path) -> None:
    files = SUBJECT.files(goldens)
    assert files
    for path in files:
        report = Report()
        SUBJECT.check(path, report, "eager")
        assert report.ok, report.failures()
