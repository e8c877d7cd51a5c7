from pathlib import Path

import numpy as np
import pytest

from tests.parity.bbox_iou import SUBJECT, expected
from tests.parity.harness import Mode, Report


@pytest.mark.parametrize("mode", SUBJECT.modes)
def test_iou_matches_reference(goldens: Path, mode: Mode) -> None:
    files = SUBJECT.files(goldens)
    assert files
    for path in files:
        report = Report()
        SUBJECT.check(path, report, mode)
        assert report.ok, report.failures()


def test_float32_that_is_not_finite_gives_way_to_float64() -> None:
    """0 / 0 for two equal boxes is the reference's rounding; where double precision is not finite either, NaN stays."""
    single, double = np.array([np.nan, 0.5, np.nan], np.float32), np.array([1.0, 0.7, np.nan])
    np.testing.assert_array_equal(expected({"x": single, "x_float64": double}, "x"), np.array([1.0, 0.5, np.nan]))
    np.testing.assert_array_equal(expected({"x": single}, "x"), single)
