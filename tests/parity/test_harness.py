"""Hand-checked comparisons of the parity harness."""

import numpy as np
import pytest

from tests.parity.harness import Report

NAN, INF = float("nan"), float("inf")


def close(actual: object, expected: object, **tolerance: float) -> bool:
    report = Report()
    report.close("x", np.asarray(actual), np.asarray(expected), **tolerance)
    return report.ok


def test_empty_report_is_not_ok() -> None:
    assert not Report().ok


@pytest.mark.parametrize(
    ("actual", "expected", "rtol", "atol", "agree"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, 0.0, True),
        ([1.0, 2.5], [1.0, 2.0], 0.25, 0.0, True),  # exactly on the edge
        ([1.0, 2.5], [1.0, 2.0], 0.2, 0.0, False),
        ([0.5], [0.0], 0.9, 0.0, False),  # no relative tolerance accepts 0.5 for 0
        ([0.5], [0.0], 0.0, 0.5, True),
        ([1.0], [1.0, 1.0], 1.0, 1.0, False),  # NumPy would spread it
        ([NAN], [NAN], 0.0, 0.0, True),
        ([NAN], [1.0], 1.0, 1.0, False),
        ([1.0], [NAN], 1.0, 1.0, False),
        ([INF, -INF], [INF, -INF], 0.0, 0.0, True),
        ([INF], [-INF], 1.0, 1.0, False),
        ([5.0], [INF], 1.0, 1.0, False),
        ([INF], [5.0], 1.0, 1.0, False),
        ([], [], 0.0, 0.0, True),
    ],
)
def test_close(actual: list[float], expected: list[float], rtol: float, atol: float, agree: bool) -> None:
    assert close(actual, expected, rtol=rtol, atol=atol) == agree


def test_exact() -> None:
    report = Report()
    for actual, expected in (([1, 2], [1, 2]), (["a"], ["a"]), ([True], [1])):
        report.exact("same", actual, expected)
    assert report.ok
    for actual, expected in (([1, 2], [1, 3]), (["a"], ["b"]), (["a"], ["a", "a"])):
        report.exact("other", actual, expected)
    assert len(report.failures()) == 3


@pytest.mark.parametrize(
    ("actual", "agree"), [([3.0, 4.0], True), ([3.0, 4.05], True), ([3.0, 4.06], False), ([NAN, 4.0], False)]
)
def test_relative_length(actual: list[float], agree: bool) -> None:
    report = Report()
    report.relative_l2("x", actual, [3.0, 4.0], limit=0.0101)
    assert report.ok == agree
