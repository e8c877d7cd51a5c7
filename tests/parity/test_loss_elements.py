from pathlib import Path

import pytest

from tests.parity.harness import MODES, Mode, Report
from tests.parity.loss_elements import SUBJECT


@pytest.mark.parametrize("mode", MODES)
def test_element_losses_match_reference(goldens: Path, mode: Mode) -> None:
    (path,) = SUBJECT.files(goldens)
    report = Report()
    SUBJECT.check(path, report, mode)
    assert report.ok, report.failures()
