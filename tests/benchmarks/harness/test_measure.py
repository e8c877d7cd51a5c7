import pytest

from benchmarks.harness.measure import calls_per_turn, ratios, summarise, take_turns


def test_competitors_alternate_and_warmup_is_excluded() -> None:
    calls: list[str] = []

    def runner(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    measured = take_turns({"a": lambda: runner("a"), "b": lambda: runner("b")}, repeats=2, warmup=1)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert measured == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_summary_known_values() -> None:
    summary = summarise([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (summary.median, summary.lower_quartile, summary.upper_quartile) == (3.0, 2.0, 4.0)
    assert (summary.lowest, summary.highest, summary.count) == (1.0, 5.0, 5)
    assert summary.spread == pytest.approx(2 / 3)


def test_slow_turn_cancels_out_of_ratios() -> None:
    # The second turn ran on a machine that was ten times slower.
    assert ratios([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]).spread == 0.0


def test_empty_measurement_raises() -> None:
    with pytest.raises(ValueError, match="nothing"):
        summarise([])


def test_short_work_is_repeated_within_turn() -> None:
    assert calls_per_turn(0.05) == 4
    assert calls_per_turn(10.0) == 1
    assert calls_per_turn(0.0) == 1000
