"""Gradient accumulation on several ranks: one all-reduce per update, and the same results as on one rank."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.jobs import JobRunner
from tests.graph_train.training.test_executed_ops import NO_CODE

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]
TRANSFERS = {"eager_ccl_broadcast", "eager_ccl_all_gather", "eager_ccl_all_reduce"}
"""Ops that transfer data between ranks; on CUDA they use NCCL."""
LAST = 26
"""Number of batches: twelve of warm-up, then four per update; see `tests.graph_train.tiny.tiny_schedule`."""


def run(runner: JobRunner, name: str, ranks: int, *, kind: str = "graph", start: Path | None = None) -> Path:
    folder = runner.root / name
    words = [str(folder), kind, str(start) if start else "-", str(LAST)]
    runner.run(words, ranks, module="tests.distributed.accumulation_job")
    return folder


@pytest.fixture(scope="module")
def one_rank(runner: JobRunner) -> Path:
    return run(runner, "alone", 1)


@pytest.fixture(scope="module")
def two_ranks(runner: JobRunner) -> Path:
    return run(runner, "two", 2)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "arrays.npz") as file:
        return dict(file)


def results(folder: Path) -> list[dict[str, float]]:
    """Return the results of all batches except the bad one at the end."""
    return list(json.loads((folder / "results.json").read_text()))[:-1]


def assert_close(ours: Path, theirs: Path) -> None:
    """Assert equality up to the rounding of float32 sums in another order, over many steps."""
    left, right = arrays(ours), arrays(theirs)
    assert left.keys() == right.keys()
    for name, value in right.items():
        scale = max(float(np.abs(value).max()), 1e-3)
        np.testing.assert_allclose(left[name], value, rtol=2e-3, atol=2e-4 * scale, err_msg=name)


def assert_same_steps(ours: Path, theirs: Path) -> None:
    left, right = results(ours), results(theirs)[-len(results(ours)) :]
    assert [step["updated"] for step in left] == [step["updated"] for step in right]
    for name in ("total", "box", "objectness", "classes", "gradient_norm"):
        np.testing.assert_allclose([step[name] for step in left], [step[name] for step in right], rtol=1e-3)


def test_accumulated_updates_match_single_rank(one_rank: Path, two_ranks: Path) -> None:
    assert 0 < sum(step["updated"] for step in results(one_rank)) < LAST - 8
    assert_same_steps(two_ranks, one_rank)
    assert_close(two_ranks / "end", one_rank / "end")


@pytest.mark.parametrize("kind", ["eager", "stock-graph"])
def test_execution_variants_agree(runner: JobRunner, two_ranks: Path, kind: str) -> None:
    """Without our kernels the update is composed of OneFlow ops, as on a GPU without the plugin."""
    other = run(runner, kind, 2, kind=kind)
    assert_same_steps(other, two_ranks)
    assert_close(other / "end", two_ranks / "end")


def test_pipelined_steps_match_bitwise(runner: JobRunner, two_ranks: Path) -> None:
    ahead = run(runner, "ahead", 2, kind="ahead-graph")
    assert (ahead / "results.json").read_text() == (two_ranks / "results.json").read_text()
    for state in ("cut", "end"):
        ours, theirs = arrays(ahead / state), arrays(two_ranks / state)
        assert [name for name, value in theirs.items() if not np.array_equal(ours[name], value)] == []


def test_mid_accumulation_state_is_independent_of_ranks(one_rank: Path, two_ranks: Path) -> None:
    pending = [value for name, value in arrays(two_ranks / "cut").items() if name.startswith("gradient_sum/")]
    assert any(value.any() for value in pending)
    assert_close(two_ranks / "cut", one_rank / "cut")


def test_resume_with_same_ranks_matches_bitwise(runner: JobRunner, two_ranks: Path) -> None:
    resumed = run(runner, "resumed-by-two", 2, start=two_ranks / "cut")
    ours, theirs = arrays(resumed / "end"), arrays(two_ranks / "end")
    assert [name for name, value in theirs.items() if not np.array_equal(ours[name], value)] == []


@pytest.mark.parametrize("ranks", [1, 3])
def test_resume_with_other_number_of_ranks(runner: JobRunner, two_ranks: Path, ranks: int) -> None:
    resumed = run(runner, f"resumed-by-{ranks}", ranks, start=two_ranks / "cut")
    assert_same_steps(resumed, two_ranks)
    assert_close(resumed / "end", two_ranks / "end")


def test_no_oneflow_kernel_runs_on_cuda(runner: JobRunner) -> None:
    """Accumulation, all-reduces and saves run only plugin kernels, copies and transfers."""
    folder = run(runner, "cuda", 2, kind="cuda-graph")
    for rank in range(2):
        executed = {tuple(pair) for pair in json.loads((folder / f"ops{rank}.json").read_text())}
        assert ("graph_train_update_sgd", "plugin") in executed
        foreign = {op for op, owner in executed if owner == "OneFlow"}
        assert foreign <= NO_CODE | TRANSFERS
