"""`graph-bench start`: the measured interval and the table."""

import argparse
from typing import Any

import pytest

from benchmarks.harness.machine import PROJECT_FOLDER
from benchmarks.resilience.start import OTHER_CHECKOUT, PREDICTION, THIS_CHECKOUT, TRAINING, _Start, tables

FLAGS = argparse.Namespace(threads=1)


def test_start_ends_at_first_step_if_any() -> None:
    work = "import time; a = time.process_time()\nwhile time.process_time() < a + 0.2: pass\n"
    until_step = _Start(
        ["-c", f"{work}print('first step', time.time(), flush=True)\n{work}{work}"], FLAGS, PROJECT_FOLDER
    )
    until_end = _Start(["-c", work * 3], FLAGS, PROJECT_FOLDER)
    assert 0.2 <= until_step() < until_end()
    for start in (until_step, until_end):
        assert 0.6 <= start.processor_seconds[0] < 3


def test_parts_of_a_start() -> None:
    work = "import time; time.sleep(0.2)\n"
    lines = "".join(f"{work}print({part!r}, repr(time.time()), flush=True)\n" for part in ("imports", "first step"))
    start = _Start(["-c", f"print('Epoch 1')\n{lines}"], FLAGS, PROJECT_FOLDER)
    seconds = start()
    assert list(start.parts[0]) == ["imports", "first step"]
    assert all(0.2 <= part < 5 for part in start.parts[0].values())
    assert abs(sum(start.parts[0].values()) - seconds) < 1e-3


def test_failed_start_is_reported() -> None:
    with pytest.raises(ValueError, match=r"exit code 3: no such thing"):
        _Start(["-c", "print('no such thing'); raise SystemExit(3)"], FLAGS, PROJECT_FOLDER)()


def test_ratios_are_computed_within_turns() -> None:
    def row(what: str, side: str, seconds: list[float]) -> dict[str, Any]:
        return {"what": what, "side": side, "seconds": seconds, "processor_seconds": [2 * value for value in seconds]}

    ratio = {"median": 2.0, "lower_quartile": 1.5, "upper_quartile": 2.5}
    body: dict[str, Any] = {
        "rows": [
            row(TRAINING, THIS_CHECKOUT, [1.0, 3.0, 2.0]),
            row(TRAINING, OTHER_CHECKOUT, [2.0, 4.0, 6.0]),
            row(PREDICTION, THIS_CHECKOUT, [1]),
        ],
        "speedups": {TRAINING: {"seconds": ratio, "processor_seconds": ratio}},
        "other_commit": "abc",
        "environment": {"PYTHONDONTWRITEBYTECODE": "1"},
    }
    (table,) = tables(body)
    assert table.rows[0] == (TRAINING, THIS_CHECKOUT, "2", "1.5–2.5", "4", "2.00 (1.50–2.50)", "2.00 (1.50–2.50)")
    assert table.rows[1][5:] == table.rows[2][5:] == ("–", "–")
    assert any("abc" in note for note in table.notes)
    assert any("PYTHONDONTWRITEBYTECODE" in note for note in table.notes)
