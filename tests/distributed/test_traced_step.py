"""Every op of a two-rank step has a CUDA kernel, and all transfers use NCCL; needs no GPU."""

import json
from pathlib import Path

import pytest
import yaml

from kernels.framework.coverage import uncovered_ops
from tests.distributed.jobs import JobRunner
from tests.distributed.traced_step_job import VARIANTS
from tests.models.every_block import EVERY_BLOCK

SECONDS = 1700
"""Time limit of a job in seconds; jobs compile large graphs, possibly on a busy machine."""
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(SECONDS + 100)]

# On CUDA, OneFlow 0.9 implements them by NCCL collectives, the last one by `cudaMemsetAsync` on all ranks but one.
ALL_REDUCE, ALL_GATHER, ZEROS = "P -> B", "S(0) -> B", "B -> P"
KINDS = ("FLOAT32", "BFLOAT16", "FLOAT16")
BATCH_NORMS = {"yolov5n": 57, "yolov5s": 57, "yolov5m": 79, "yolov5n6": 75}


def transfers(model: str, variant: str) -> dict[str, int]:
    """Return the expected transfers of a step: gradients all-reduced, labels all-gathered, losses partial sums."""
    # Mean and variance of each layer in the forward pass, both sums of its gradient together in the backward pass.
    sums = 3 * BATCH_NORMS[model] if variant == "sync-bn" else 0
    sums += variant == "adam-autobalance"  # partial sums of the levels' losses
    in_one_graph = {} if variant == "accumulates" else {ZEROS: 1}
    return {ALL_REDUCE: 1 + sums, ALL_GATHER: 1, **in_one_graph}


def check(runner: JobRunner, model: str, kind: str, variants: tuple[str, ...]) -> None:
    out = runner.root / f"{Path(model).stem}-{kind}.json"
    runner.run([str(out), model, kind, *variants], 2, module="tests.distributed.traced_step_job", seconds=SECONDS)
    traced = json.loads(out.read_text(encoding="utf-8"))
    assert tuple(traced["steps"]) == variants
    for variant, step in traced["steps"].items():
        assert uncovered_ops(step["ops"], traced["covered"]) == [], variant
        assert step["ops"]["graph_train_flatten"] == 1  # a step on several ranks
        assert step["transfers"] == transfers(model, variant), variant


@pytest.mark.parametrize("kind", KINDS)
def test_every_op_of_two_rank_step_has_cuda_kernel(runner: JobRunner, kind: str) -> None:
    check(runner, "yolov5n", kind, tuple(VARIANTS))


def test_every_block_on_two_ranks_has_cuda_kernels(runner: JobRunner) -> None:
    path = runner.root / "every_block.yaml"
    path.write_text(yaml.safe_dump(EVERY_BLOCK))
    check(runner, str(path), "BFLOAT16", ("plain", "accumulates"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["yolov5s", "yolov5m", "yolov5n6"])
def test_every_op_of_larger_two_rank_steps_has_cuda_kernel(runner: JobRunner, model: str, kind: str) -> None:
    check(runner, model, kind, ("plain", "sync-bn"))
