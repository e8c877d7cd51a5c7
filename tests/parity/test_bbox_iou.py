from pathlib import Path

import pytest

from tests.parity.bbox_iou import SUBJECT
from tests.parity.harness import Mode, Report


@pytest.mark.parametrize("mode", SUBJECT.modes)
def test_iou_matches_reference(goldens: Path, mode: Mode) -> None:
    files = SUBJECT.files(goldens)
    assert files
    for path in files:
        report = Report()
        SUBJECT.check(path, report, mode)
        assert report.ok, report.failures()
