from pathlib import Path

import pytest

from tests.parity.autoanchor import SUBJECT
from tests.parity.harness import Mode


@pytest.mark.parametrize("mode", SUBJECT.modes)
def test_autoanchor_matches_reference(goldens: Path, mode: Mode) -> None:
    SUBJECT.assert_agreement(goldens, mode)
