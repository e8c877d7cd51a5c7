"""Hand-checked comparisons of the parity harness, and how it reads vector files."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity.harness import Report, VectorError, VectorFile, recorded

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
def test_close_accepts_values_within_tolerance(
    actual: list[float], expected: list[float], rtol: float, atol: float, agree: bool
) -> None:
    assert close(actual, expected, rtol=rtol, atol=atol) == agree


def test_exact_rejects_any_difference() -> None:
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
def test_relative_l2_limits_length_of_difference(actual: list[float], agree: bool) -> None:
    report = Report()
    report.relative_l2("x", actual, [3.0, 4.0], limit=0.0101)
    assert report.ok == agree


def test_a_part_without_comparisons_fails() -> None:
    report = Report()
    with report.part("lengths"):
        report.exact("x", 1, 1)
    assert report.ok
    with report.part("widths"):
        pass
    assert [row.name for row in report.failures()] == ["widths: nothing to compare in the file"]


def test_unexpected_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=1, b=2, b_float64=2.0, c_seed=3)
    report = Report()
    vectors = report.open(tmp_path / "x.npz")
    assert "a" in vectors and int(vectors["a"]) == 1
    assert report.not_compared(("*_float64", "*_seed")) == ["b"]


def test_missing_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(VectorError, match=r"^array b is missing$"):
        VectorFile(tmp_path / "x.npz")["b"]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "npy"])
def test_damaged_files(small_vectors: Path, tmp_path: Path, damage: str) -> None:
    path, content = tmp_path / "nms.npz", bytearray((small_vectors / "nms.npz").read_bytes())
    if damage == "flipped":
        content[5000:5010] = bytes(10)
    kinds: dict[str, bytes | bytearray] = {
        "empty": b"",
        "text": b"no archive",
        "cut": content[: len(content) // 2],
        "flipped": content,
    }
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(kinds[damage])
    with pytest.raises(VectorError, match=r"not a readable|not an \.npz|cannot be read"):
        dict(VectorFile(path))


def test_nonfinite_float32_vector_is_replaced_by_float64() -> None:
    """0 / 0 for two equal boxes is the reference's rounding; where double precision is not finite either, NaN stays."""
    single, double = np.array([np.nan, 0.5, np.nan], np.float32), np.array([1.0, 0.7, np.nan])
    np.testing.assert_array_equal(recorded({"x": single, "x_float64": double}, "x"), np.array([1.0, 0.5, np.nan]))
    np.testing.assert_array_equal(recorded({"x": single}, "x"), single)
