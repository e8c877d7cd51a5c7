"""CUDA launches of a step, and CUDA kernels for all of its ops; needs no GPU."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.cli import main
from benchmarks.harness.results import read_result
from benchmarks.harness.workers import Worker
from benchmarks.step.ops import NO_CODE, NO_KERNEL, ONEFLOW, PLUGIN, computed_by
from benchmarks.step.ops_worker import launches_by_part
from kernels.framework.coverage import uncovered_ops


def test_op_owner() -> None:
    covered = frozenset({"concat", "graph_train_convolution"})
    assert computed_by("concat", covered) == computed_by("graph_train_convolution", covered) == PLUGIN
    assert computed_by("where", covered) == ONEFLOW
    assert computed_by("reshape", covered) == computed_by("variable_conf", covered) == NO_CODE
    assert computed_by("graph_train_bbox_iou", covered) == NO_KERNEL
    ops = ("where", "concat", "graph_train_bbox_iou", "identity", "tick_conf")
    assert uncovered_ops(ops, covered) == ["graph_train_bbox_iou", "where"]


def test_counts_launches_by_step_part() -> None:
    started = {
        "detection_loss": 1,
        "update_parameters": 1,
        "begin_step": 1,
        "cudnn_forward": 60,
        "batch_norm_bf16": 57,
        "batch_norm_grad_bf16": 57,
        "cudnn_data_gradient": 59,
        "add_n_bf16": 31,
        "split_16": 13,
        "concat_16": 13,
        "pack_weights_bf16": 1,
        "unpack_weights_bf16": 1,
    }
    assert launches_by_part(started) == {"loss": 1, "update": 2, "forward": 131, "backward": 161}


ATTENTION: dict[str, Any] = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 2, "C3TR", [16]]],
    "head": [[[-1], 1, "Detect", ["nc", "anchors"]]],
}


def _compiled(model: str, kind: str) -> dict[str, Any]:
    with Worker("ops", "benchmarks.step.ops_worker", threads=2) as worker:
        return dict(worker.call("compiled_ops", model=model, device="cpu", kernels="emulated-cuda", kind=kind))


def _check(step: dict[str, Any], convolutions: int) -> None:
    assert uncovered_ops(step["ops"], step["covered"]) == []
    started = step["started"]
    assert started["cudnn_forward"] == started["cudnn_filter_gradient"] == convolutions
    parts = launches_by_part(started)
    assert parts["loss"] <= 3
    assert parts["update"] <= 3
    # Casts would mean that a layer does not keep the activation type.
    assert [name for name in started if name.startswith("cast")] == []


@pytest.mark.parametrize("kind", ["FLOAT32", "BFLOAT16", "FLOAT16"])
def test_every_op_of_step_has_cuda_kernel(kind: str) -> None:
    step = _compiled("yolov5n", kind)
    _check(step, convolutions=60)
    assert sum(step["started"].values()) <= 450


def test_weights_of_attention_are_packed_with_the_others(tmp_path: Path) -> None:
    path = tmp_path / "attention.yaml"
    path.write_text(yaml.safe_dump(ATTENTION))
    step = _compiled(str(path), "BFLOAT16")
    # Conv 1, C3 3, position embedding 1, two transformer layers 7 each (the three projections in one), head 1
    _check(step, convolutions=1 + 3 + 1 + 2 * 7 + 1)
    assert step["started"]["pack_weights_bf16"] == step["started"]["unpack_weights_bf16"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("model", "convolutions"), [("yolov5s", 60), ("yolov5m", 82), ("yolov5n6", 79)])
@pytest.mark.parametrize("kind", ["FLOAT32", "BFLOAT16", "FLOAT16"])
def test_every_op_of_larger_steps_has_cuda_kernel(model: str, convolutions: int, kind: str) -> None:
    _check(_compiled(model, kind), convolutions)


@pytest.mark.slow
def test_benchmark_reports_cuda_launches(tmp_path: Path) -> None:
    file, picture = tmp_path / "o.json", tmp_path / "o.png"
    assert main(["ops", "--json", str(file), "--plot", str(picture)]) == 0
    cuda = read_result(file)["cuda"]
    assert cuda["uncovered"] == []
    for step in (cuda, cuda["bfloat16"]):
        assert step["launches_per_step"] <= 450
        assert step["launches"]["loss"] <= 3
        assert step["launches"]["update"] <= 3
    assert "pack_weights_bf16" in cuda["bfloat16"]["started"]
    assert picture.exists()
