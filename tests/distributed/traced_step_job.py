"""One rank of a job that compiles training steps with the ops used on CUDA and records these ops.

`python -m tests.distributed.traced_step_job OUT MODEL TYPE VARIANT...`, in an environment as set by torchrun.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_train.ranks import team

if TYPE_CHECKING:
    from graph_train.engine.step import TrainStep

IMAGE_PX, LABELS = 64, 5


@dataclass(frozen=True)
class Variant:
    """Options that affect the ops of a step."""

    rule: str = "sgd"
    synchronised: bool = False
    accumulates: bool = False
    autobalance: bool = False


VARIANTS = {
    "plain": Variant(),
    "sync-bn": Variant(synchronised=True),
    "accumulates": Variant(accumulates=True),
    "adam-autobalance": Variant(rule="adam", autobalance=True),
}


def main(out: Path, model: str, kind: str, variants: list[str]) -> None:
    info = team.join().info  # before anything imports OneFlow
    from kernels.framework.coverage import covered_ops, job_ops
    from kernels.plugin import load_plugin

    load_plugin("emulated-cuda")
    steps = {}
    for name in variants:
        step = _executed_step(model, kind, VARIANTS[name], info)
        if info.is_main:  # no other rank has the jobs
            jobs = step.jobs()
            ops = sum((Counter(job_ops(job)) for job in jobs), Counter[str]())
            moved = sum((_transfers(job) for job in jobs), Counter[str]())
            steps[name] = {"ops": dict(ops), "transfers": dict(moved)}
    if info.is_main:
        out.write_text(json.dumps({"covered": sorted(covered_ops()), "steps": steps}), encoding="utf-8")
    team.current().report_done()


def _executed_step(model: str, kind: str, variant: Variant, info: Any) -> "TrainStep":
    """Execute a step with one image per rank: one graph, or two with gradient accumulation."""
    from graph_train.engine.state import TrainingState
    from graph_train.engine.step import GraphStep, StepConfig
    from graph_train.ranks.placement import Placement
    from kernels.framework.activation_type import ActivationType
    from kernels.runtime import flow
    from models.loss import DetectionLoss
    from models.loss_config import LossConfig
    from models.network import DetectionModel
    from models.spec import load_model_spec
    from tests.graph_train.tiny import tiny_schedule

    placement, spec = Placement("cpu", info.rank, info.world), load_model_spec(model)
    network, average = (DetectionModel(spec, seed=seed).compute_in(ActivationType[kind]) for seed in (0, None))
    network.synchronise_statistics(variant.synchronised)
    rule: Any = variant.rule
    state = TrainingState(
        placement.replicate_module(network), placement.replicate_module(average), rule=rule, placement=placement
    )
    criterion = placement.replicate_module(
        DetectionLoss(network.head_geometry, LossConfig(autobalance=variant.autobalance))
    )
    config = StepConfig(tiny_schedule().weight_decays, placement=placement, accumulates=variant.accumulates)
    step = GraphStep(state, criterion, config)
    images = placement.empty_batch((info.world, 3, IMAGE_PX, IMAGE_PX), flow.uint8)
    labels = placement.empty_batch((info.world, LABELS, 5), flow.float32)
    assert step(images, labels, tiny_schedule().at(0, 0)).updated
    return step


def _transfers(job: Any) -> Counter[str]:
    """Count how often the layout of a tensor over ranks changes on its way to an op, such as "P -> B".

    B: broadcast, S(0): split along dimension 0, P: partial sum.
    """
    spread = {
        (op, argument): ", ".join(_sbp_name(one) for one in signature.sbp_parallel)
        for op, signatures in job.job_parallel_view_conf.op_name2nd_sbp_signature_conf.items()
        for argument, signature in signatures.bn_in_op2nd_sbp.items()
    }
    counts: Counter[str] = Counter()
    for op in job.net.op:
        for argument, names in op.user_conf.input.items():
            for number, name in enumerate(names.s):
                made, wanted = spread.get(tuple(name.split("/"))), spread.get((op.name, f"{argument}_{number}"))
                if made is not None and made != wanted:
                    counts[f"{made} -> {wanted}"] += 1
    return counts


def _sbp_name(one: Any) -> str:
    kind = one.WhichOneof("parallel_type")
    if kind == "split_parallel":
        return f"S({one.split_parallel.axis})"
    return {"broadcast_parallel": "B", "partial_sum_parallel": "P"}[kind]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
