"""The model of step time against ranks: values worked out by hand, the measured points, the page that shows it."""

import pytest

from benchmarks.cli import main
from benchmarks.scaling_fit import MeasuredPoint, fit, read_compute, read_points, read_rows, table
from benchmarks.scaling_model import (
    Compute,
    Link,
    fit_compute,
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


def test_points_beside_the_model_by_hand() -> None:
    compute = {("n", 320): Compute(0.01, 0.02)}
    points = [
        # Alone with half of the cores: 1.5 times (0.01 + 8 * 0.02).
        MeasuredPoint("n", 320, 8, 1, seconds=0.255, gradient_bytes=100.0, sent_bytes=0),
        # Four images each, twice as long: 2 (0.01 + 0.08) s; by a ring of two 2 * 0.5 s and 100 bytes at 100 a second.
        MeasuredPoint("n", 320, 8, 2, seconds=2.0, gradient_bytes=100.0, sent_bytes=201.0),
        MeasuredPoint("unknown", 320, 8, 2, seconds=2.0, gradient_bytes=100.0, sent_bytes=200.0),
    ]
    found = fit(compute, points, SLOW)
    assert found.one_rank == pytest.approx(1.5)
    assert found.seconds(points[0]) == pytest.approx(0.255)
    assert found.seconds(points[1]) == pytest.approx(0.18 + 2.0)
    rows = table(found, points).rows
    assert [row[-1] for row in rows] == ["+0%", "+9%"]
    assert rows[1][3:5] == ("0.00", "0.00")


def test_what_a_fit_needs_is_said() -> None:
    with pytest.raises(ValueError, match="no step of one rank is of a network"):
        fit({}, [MeasuredPoint("n", 320, 8, 1, 0.2, 100.0, 0)])
    with pytest.raises(ValueError, match="a result of graph-bench step; needs one of graph-bench scaling"):
        read_rows(RESULTS / "step.json", "scaling")


def test_measured_points_confirm_the_model() -> None:
    """Bytes to one in a hundred. Times of several ranks, to which nothing was fitted, to a quarter: the machine was
    busy, and the same step took 226 ms in one result of that day and 265 ms in another."""
    points = read_points(RESULTS / "scaling.json")
    found = fit(read_compute(RESULTS / "graph-vs-eager.json"), points)
    for point in points:
        assert found.seconds(point) == pytest.approx(point.seconds, rel=0.25)
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
