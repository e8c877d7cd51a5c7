from pathlib import Path

import pytest

from tests.parity.harness import Mode
from tests.parity.network import SUBJECT


@pytest.mark.parametrize("mode", SUBJECT.modes)
def test_network_matches_reference(goldens: Path, mode: Mode) -> None:
    SUBJECT.assert_agreement(goldens, mode)
