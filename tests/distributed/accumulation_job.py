"""One rank of a job that trains the tiny network with `TrainStep` only and writes its results to files.

`python -m tests.distributed.accumulation_job OUT KIND START LAST`. KIND: graph, eager, `stock-graph` without our
kernels, `ahead-graph`, which starts each step before reading the previous result, or `cuda-graph` with the ops used on
CUDA, which also records the owners of the executed kernels. START: the folder of another job to continue from, or `-`.
LAST: the number of batches of the run.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graph_train.ranks import team
from graph_train.ranks.launcher import RankInfo

if TYPE_CHECKING:  # loads OneFlow, which must wait until the ranks have joined
    from graph_train.engine.state import TrainingState
    from graph_train.engine.step import StepResult, TrainStep
    from graph_train.ranks.exchange import Exchange

CUT = 18
"""Number of batches after which the state is saved, in the middle of an update of four batches."""
BATCH = 4


def main(out: Path, kind: str, start: str, last: int) -> None:
    info = team.join().info  # before anything imports OneFlow
    from kernels.framework.op_trace import executed_ops, reset_executed_ops

    out.mkdir(exist_ok=True)
    step, exchange = _step(kind, info)
    first = _load(step.state, Path(start)) if start != "-" else 0
    results: list[StepResult] = []
    if kind == "cuda-graph":
        reset_executed_ops()
    ahead = kind == "ahead-graph"
    for number in range(first, last):
        _start(step, number)
        unread = ahead and number + 1 not in (CUT, last)
        while number + 1 - first - len(results) > unread:
            results.append(step.finish())
        if number + 1 == CUT:
            _save(step.state, out / "cut", main=info.is_main)
    _save(step.state, out / "end", main=info.is_main)
    skipped = _update_with_nonfinite_rank(step, info, last)
    from graph_train.training.agreement import require_same_digest

    step.state.flush()
    require_same_digest(step.state.digest(), exchange)
    if kind == "cuda-graph":
        pairs = sorted({(op.kind, op.owner) for op in executed_ops()})
        (out / f"ops{info.rank}.json").write_text(json.dumps(pairs))
    if info.is_main:
        (out / "results.json").write_text(json.dumps([asdict(result) for result in [*results, skipped]]))
    team.current().report_done()


def _step(kind: str, info: RankInfo) -> "tuple[TrainStep, Exchange]":
    from graph_train.engine.state import TrainingState
    from graph_train.engine.step import EagerStep, GraphStep, StepConfig
    from graph_train.ranks.exchange import Exchange
    from graph_train.ranks.placement import Placement
    from kernels.framework.op_trace import trace_ops
    from kernels.plugin import PluginMode, load_plugin
    from models.loss import DetectionLoss
    from models.loss_config import LossConfig
    from tests.graph_train.tiny import tiny_network, tiny_schedule

    modes: dict[str, PluginMode] = {"stock-graph": "off", "cuda-graph": "emulated-cuda"}
    load_plugin(modes.get(kind, "require"))
    if kind == "cuda-graph":
        trace_ops()
    placement = Placement("cpu", info.rank, info.world)
    network = tiny_network()
    # On CUDA statistics are per rank, to cover their averaging over ranks, too.
    network.synchronise_statistics(not info.single_rank and kind != "cuda-graph")
    state = TrainingState(
        placement.replicate_module(network), placement.replicate_module(tiny_network()), rule="sgd", placement=placement
    )
    criterion = placement.replicate_module(DetectionLoss(network.head_geometry, LossConfig()))
    config = StepConfig(tiny_schedule().weight_decays, placement=placement, accumulates=True)
    made = EagerStep if kind == "eager" else GraphStep
    step = made(state, criterion, config)
    return step, Exchange(info.rank, info.world)


def _start(step: "TrainStep", number: int, **changed: Any) -> None:
    from pipelines.shard import Shard
    from tests.graph_train.tiny import random_batch, tiny_schedule

    place = step.placement
    rows = Shard(place.rank, place.ranks).rows(BATCH)
    images, labels = (place.shard_batch(value[rows], BATCH) for value in random_batch(number, side=64, labels=5))
    step.start(images, labels, replace(tiny_schedule().at(number, number // 6), **changed))


def _update_with_nonfinite_rank(step: "TrainStep", info: RankInfo, number: int) -> "StepResult":
    """Run an update for which only the last rank has non-finite gradients; the weights must not change."""
    from kernels.runtime import flow

    state = step.state
    # Running statistics include the valid batch; everything else must be unchanged.
    kept = [*(f"model/{name}" for name in state.trained), *(f"first_moment/{name}" for name in state.trained)]
    before = state.arrays()
    if info.rank == info.world - 1 and not info.single_rank:
        values = sum(before[f"first_moment/{name}"].size for name in state.trained)
        state.accumulate_local_gradients(flow.tensor(np.full(values, np.nan, np.float32)))
    _start(step, number, update=True)
    result = step.finish()
    if not info.single_rank:
        after = state.arrays()
        assert result.skipped
        assert all(np.array_equal(before[name], after[name]) for name in kept)
        assert not any(after[name].any() for name in after if name.startswith("gradient_sum/"))
    return result


def _save(state: "TrainingState", folder: Path, *, main: bool) -> None:
    state.flush()
    if main:
        folder.mkdir(exist_ok=True)
        np.savez(folder / "arrays.npz", **state.arrays())
        (folder / "counters.json").write_text(json.dumps(asdict(state.counters)))


def _load(state: "TrainingState", folder: Path) -> int:
    from graph_train.engine.state import Counters

    counters = Counters(**json.loads((folder / "counters.json").read_text()))
    with np.load(folder / "arrays.npz") as arrays:
        state.load_arrays(dict(arrays), counters)
    return CUT


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
