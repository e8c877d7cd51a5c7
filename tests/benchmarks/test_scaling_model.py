"""The model of step time against ranks: values worked out by hand, the measured points, the page that shows it."""

import pytest

from benchmarks.cli import main
from benchmarks.scaling_fit import MeasuredPoint, fit, read_points, read_rows, table
from benchmarks.scaling_model import (
    Compute,
    Link,
    fit_compute,
    fit_link,
    gather_seconds,
    hierarchical_seconds,
    ring_bytes,
    ring_seconds,
    step_seconds,
    tree_seconds,
)
from benchmarks.scaling_prediction import Assumptions, predict
from benchmarks.scaling_report import RESULTS
from tests.docs.commands import ROOT

SLOW = Link(bytes_per_second=100.0, latency_s=0.5)


def test_ring_by_hand() -> None:
    # Four ranks, 80 bytes: six steps of 20 bytes each.
    assert ring_bytes(4, 80) == 120
    assert ring_seconds(4, 80, SLOW) == pytest.approx(6 * 0.5 + 120 / 100)
    assert ring_seconds(1, 80, SLOW) == 0


def test_bytes_of_a_ring_approach_twice_the_size() -> None:
    assert [ring_bytes(ranks, 1.0) for ranks in (2, 1024)] == [1.0, pytest.approx(2, rel=1e-3)]


def test_levels_by_hand() -> None:
    # Two hosts of four: a ring of four inside (six steps, 120 bytes), then of two with a fourth of 80 bytes.
    inside, between = Link(1000.0, 0.1), Link(10.0, 1.0)
    expected = (6 * 0.1 + 120 / 1000) + (2 * 1.0 + 20 / 10)
    assert hierarchical_seconds(2, 4, 80, inside, between) == pytest.approx(expected)
    assert hierarchical_seconds(1, 4, 80, inside, between) == ring_seconds(4, 80, inside)
    assert hierarchical_seconds(4, 1, 80, inside, between) == ring_seconds(4, 80, between)


def test_small_messages_by_hand() -> None:
    assert tree_seconds(8, 0.5) == 3.0  # three levels up, three down
    assert tree_seconds(5, 0.5) == 3.0
    assert tree_seconds(1, 0.5) == 0
    assert gather_seconds(8, 0.5) == 3.5


def test_a_step_is_its_parts_one_after_the_other() -> None:
    assert Compute(1.0, 0.5).seconds(4) == 3.0
    assert step_seconds(3.0, 2.0) == 5.0
    assert step_seconds(3.0, 2.0, 7.0) == 7.0  # waits for data
    assert step_seconds(3.0, 2.0, hidden=1.5) == 3.5
    assert step_seconds(3.0, 2.0, hidden=9.0) == 3.0


def test_a_fit_finds_what_made_the_times() -> None:
    line = fit_compute([2, 4, 8], [Compute(0.1, 0.02).seconds(images) for images in (2, 4, 8)])
    assert (line.fixed_s, line.per_image_s) == (pytest.approx(0.1), pytest.approx(0.02))


def test_neither_term_is_negative() -> None:
    # Twice the images in less than twice the time less a bit: the line would start below 0.
    assert fit_compute([1, 2], [1.0, 2.2]).fixed_s == 0
    assert fit_compute([1, 2], [1.0, 0.9]).per_image_s == 0


def test_a_link_is_found_from_its_rings() -> None:
    sizes, ranks = [100.0, 400.0, 400.0], [2, 2, 4]
    link = fit_link(ranks, sizes, [ring_seconds(n, size, SLOW) for n, size in zip(ranks, sizes, strict=True)])
    assert (link.bytes_per_second, link.latency_s) == (pytest.approx(100.0), pytest.approx(0.5))


def _point(model: str, batch: int, ranks: int, *, seconds: float, size: float, apart: float) -> MeasuredPoint:
    total = ring_bytes(ranks, size) * ranks
    return MeasuredPoint(model, 320, batch, ranks, seconds, size, total, apart, ring_seconds(ranks, size, SLOW))


def _points() -> list[MeasuredPoint]:
    # Alone 0.01 + 0.02 per image and 0.05 per image; beside another one 1.5 times that.
    return [
        _point("n", 8, 1, seconds=0.17, size=100.0, apart=0.17),
        _point("n", 4, 1, seconds=0.09, size=100.0, apart=0.09),
        _point("n", 8, 2, seconds=2.0, size=100.0, apart=0.135),
        _point("s", 2, 1, seconds=0.1, size=400.0, apart=0.1),
        _point("s", 4, 1, seconds=0.2, size=400.0, apart=0.2),
        _point("s", 4, 2, seconds=5.0, size=400.0, apart=0.15),
    ]


def test_points_beside_the_model_by_hand() -> None:
    points = _points()
    found = fit(points)
    assert found.crowding == pytest.approx(1.5)
    assert found.seconds(points[0]) == pytest.approx(0.17)
    # A ring of two: 2 messages of 0.5 s, and the vector's bytes at 100 a second.
    assert found.seconds(points[2]) == pytest.approx(0.135 + 1.0 + 1.0)
    assert found.seconds(points[5]) == pytest.approx(0.15 + 1.0 + 4.0)
    assert [row[-1] for row in table(found, points).rows] == ["+0%", "+0%", "+7%", "+0%", "+0%", "+3%"]


def test_what_a_fit_needs_is_said() -> None:
    points = _points()
    with pytest.raises(ValueError, match="no steps of one rank in two batch sizes of n at 320 px"):
        fit(points[1:])
    with pytest.raises(ValueError, match="no sums of two sizes"):
        fit(points[:3])
    with pytest.raises(ValueError, match="a result of graph-bench step; needs one of graph-bench scaling"):
        read_rows(RESULTS / "step.json", "scaling")


def test_measured_points_confirm_the_model() -> None:
    """Bytes to one in a hundred; times of several ranks, to which nothing was fitted, to an eighth."""
    points = read_points(RESULTS / "scaling.json")
    found = fit(points)
    for point in points:
        assert found.seconds(point) == pytest.approx(point.seconds, rel=0.125)
        if point.ranks > 1:
            expected = point.ranks * ring_bytes(point.ranks, point.gradient_bytes)
            assert point.sent_bytes == pytest.approx(expected, rel=0.01)


def test_prediction_by_hand() -> None:
    round_numbers = Assumptions(
        gpus_per_host=2, fixed_ms=10, per_image_ms=5, gradient_mb=80, inside_gb_s=8, inside_us=1000, between_gb_s=2,
        between_us=2000, small_sums=1, agreement_us=1000, data_cores=4, data_ms=8,
    )  # fmt: skip
    step = predict(round_numbers, gpus=4, images_per_gpu=2)
    assert (step.hosts, step.compute) == (2, pytest.approx(0.02))
    # Around both hosts: six messages of 2 ms; 120 MB over two adapters of 2 GB/s.
    assert step.ring == pytest.approx(0.012 + 0.03)
    # Inside: two messages of 1 ms, 80 MB at 8 GB/s. Between: two of 2 ms, 40 MB at 2 GB/s.
    assert step.levels == pytest.approx((0.002 + 0.01) + (0.004 + 0.02))
    assert step.small == pytest.approx(4 * 0.002 + 3 * 0.001)
    assert step.data == pytest.approx(4 * 0.008 / 4)
    assert step.step == pytest.approx(0.02 + 0.042 + 0.011)
    # Two thirds of 20 ms hide as much of the sum in levels.
    assert step.step_overlapped == pytest.approx(0.02 + 0.036 - 0.02 * 2 / 3 + 0.011)


@pytest.mark.parametrize("text", ["speed=3", "fixed_ms", "fixed_ms=fast", "fixed_ms=0"])
def test_an_assumption_that_makes_no_sense_is_one_line(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main(["scaling-model", "--assume", text]) == 2
    assert f"--assume {text}" in capsys.readouterr().err


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling-model", "--markdown"]) == 0
    printed = capsys.readouterr().out.strip()
    page = (ROOT / "docs" / "distributed.md").read_text()
    assert printed in page
