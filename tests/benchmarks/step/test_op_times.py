"""Times of the ops in a compiled step: complete, and in total at most the time of the step."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.points import Point, write_point
from benchmarks.harness.workers import Worker
from benchmarks.step.op_times import AROUND, BETWEEN, convolutions_of, kinds_of, measure_point, outside_ops, tables_of

POINT = Point("yolov5n", 2, 64)


@pytest.fixture(scope="module")
def timed() -> dict[str, Any]:
    return measure_point(POINT, threads=2, repeats=2)


def test_every_graph_op_is_timed(timed: dict[str, Any]) -> None:
    with Worker("ops", "benchmarks.step.ops_worker", threads=2) as worker:
        counts = worker.call("compiled_ops", model=POINT.model, device="cpu", kernels="require")["ops"]
    expected = {op: number for op, number in counts.items() if not op.endswith("_conf")}
    assert Counter(op["op"] for op in timed["ops"]) == expected
    assert len({op["name"] for op in timed["ops"]}) == len(timed["ops"])
    assert all(op["ms"] > 0 for op in timed["ops"])


def test_op_times_sum_to_at_most_the_step(timed: dict[str, Any]) -> None:
    computing = sum(op["ms"] for op in timed["ops"])
    assert 0.3 * timed["step_ms"] < computing < timed["span_ms"] < timed["step_ms"]
    outside = outside_ops(timed)
    assert set(outside) == {BETWEEN, AROUND}
    assert computing + sum(outside.values()) == pytest.approx(timed["step_ms"])
    assert sum(row["ms"] for row in kinds_of(timed)) == pytest.approx(computing)
    assert timed["others_ms"] < outside[BETWEEN] + outside[AROUND]


def test_groups_op_times_by_step_part(timed: dict[str, Any]) -> None:
    calls = {(row["part"], row["op"]): row["calls"] for row in kinds_of(timed)}
    assert calls["forward", "graph_train_convolution"] == calls["backward", "graph_train_convolution_filter_grad"] == 60
    assert calls["backward", "graph_train_convolution_data_grad"] == 59  # the images need no gradient
    assert {op for part, op in calls if part == "loss"} == {"graph_train_detection_loss"}
    assert {op for part, op in calls if part == "update"} == {"graph_train_begin_step", "graph_train_update_sgd"}
    assert all(part == "backward" for part, op in calls if op.endswith("_grad"))
    assert calls["forward", "add_n"] == 7  # the shortcuts of the bottlenecks


def test_counts_convolution_flops(timed: dict[str, Any], tmp_path: Path) -> None:
    described = write_point(tmp_path, POINT)
    by_op = {row["op"]: row["gflop"] for row in convolutions_of(timed)}
    assert by_op["graph_train_convolution"] == pytest.approx(described["step_gflop"] / 3, rel=0.03)
    assert by_op["graph_train_convolution_filter_grad"] == pytest.approx(by_op["graph_train_convolution"])
    assert by_op["graph_train_convolution_data_grad"] < by_op["graph_train_convolution"]


def test_writes_op_tables(timed: dict[str, Any]) -> None:
    times, convolutions = tables_of(timed, matmul_gflops=100.0)
    shares = [float(row[times.columns.index("share")].rstrip("%")) for row in times.rows]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.1 * len(shares))
    assert times.rows[-1][:2] == ("all", "step")
    speeds = [row[convolutions.columns.index("share of matmul")] for row in convolutions.rows]
    assert all(speed.endswith("%") for speed in speeds)
