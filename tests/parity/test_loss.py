from pathlib import Path

import pytest

from tests.parity.harness import MODES, Mode, Report
from tests.parity.loss import SUBJECT


@pytest.mark.parametrize("mode", MODES)
def test_loss_equals_reference(goldens: Path, mode: Mode) -> None:
    files = SUBJECT.files(goldens)
    assert files
    for path in files:
        report = Report()
        SUBJECT.check(path, report, mode)
        assert report.ok, (path.name, report.failures())
