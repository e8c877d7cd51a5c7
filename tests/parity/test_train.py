from pathlib import Path

import numpy as np
import pytest

from tests.parity.harness import MODES, Mode, Report
from tests.parity.train import SUBJECT, run_case

QUICK = ("train_sgd_acc1.npz", "train_adamw.npz")


def _assert_equal_to_reference(path: Path, mode: Mode) -> None:
    report = Report()
    SUBJECT.check(path, report, mode)
    assert report.ok, (path.name, report.failures())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", QUICK)
def test_steps_equal_reference(goldens: Path, name: str, mode: Mode) -> None:
    _assert_equal_to_reference(goldens / name, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_recorded_run_equals_reference(goldens: Path, mode: Mode) -> None:
    files = SUBJECT.files(goldens)
    assert len(files) > len(QUICK)
    for path in files:
        if path.name not in QUICK:
            _assert_equal_to_reference(path, mode)


def test_graph_and_eager_end_with_the_same_bits(goldens: Path) -> None:
    eager, graph = (run_case(goldens / "train_coslr.npz", mode) for mode in MODES)
    assert [result.total for result in eager.results] == [result.total for result in graph.results]
    assert [name for name in eager.arrays if not np.array_equal(eager.arrays[name], graph.arrays[name])] == []
