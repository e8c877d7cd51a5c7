"""Worker that trains with OneFlow, eager or as a graph, with our kernels or without; see `competitors`."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.channel import serve
from benchmarks.harness.points import Point, l2_norm, write_point
from graph_train.engine.precision import compute_device
from graph_train.engine.schedule import IterationSettings
from graph_train.engine.state import LOSS_SCALE_START, Counters, TrainingState
from graph_train.engine.step import EagerStep, GraphStep, StepConfig, StepResult, TrainStep
from graph_train.host.devices import select_device
from graph_train.ranks.placement import Placement
from kernels.framework.activation_type import ActivationType
from kernels.framework.global_rows import local_shard
from kernels.framework.graph_memory import share_graph_memory
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss
from models.loss_config import LossConfig
from models.network import DetectionModel
from models.spec import load_model_spec
from pipelines.shard import Shard


class _Session:
    """The objects that `prepare` made."""

    step: TrainStep
    settings: IterationSettings
    batches: list[tuple[Tensor, Tensor]]
    losses: list[float]


def describe(folder: str, model: str, batch_size: int, imgsz: int, num_classes: int | None = None) -> dict[str, Any]:
    """See `write_point`."""
    return write_point(Path(folder), Point(model, batch_size, imgsz), num_classes)


def prepare(
    folder: str, device: str, threads: int, *, plugin: bool, graph: bool, amp: bool, share_memory: bool = True
) -> dict[str, Any]:
    """Build the step from the files of `write_point` and execute it once, which compiles a graph."""
    if plugin:
        load_plugin("require")
        share_graph_memory(enabled=share_memory)
    return prepare_at(Placement(select_device(device)), Path(folder), plugin=plugin, graph=graph, amp=amp)


def prepare_at(placement: Placement, folder: Path, *, plugin: bool, graph: bool, amp: bool) -> dict[str, Any]:
    """Prepare a step on the ranks of a placement, each with its part of every batch."""
    load_plugin("require" if plugin else "off", placement.device)
    kind = compute_device(placement.device, plugin=plugin).activation_type(amp)
    described = prepare_kind(placement, folder, kind, graph=graph)
    slower = amp and kind is ActivationType.FLOAT32
    notes = ["bfloat16 is no faster on this processor: --amp computes in float32 here"] if slower else []
    return {**described, "notes": notes}


def prepare_kind(placement: Placement, folder: Path, kind: ActivationType, *, graph: bool) -> dict[str, Any]:
    """Prepare a step like `prepare_at`, with loaded kernels and activations of type `kind`."""
    point = json.loads((folder / "point.json").read_text(encoding="utf-8"))
    _Session.step = _build(point, placement, graph=graph, kind=kind)
    _Session.settings = _settings(point["update"])
    with np.load(folder / "batches.npz", allow_pickle=False) as arrays:
        pairs = list(zip(arrays["images"], arrays["labels"], strict=True))
    _Session.batches = [(_spread(images, placement), _spread(labels, placement)) for images, labels in pairs]
    _Session.losses = []
    started = time.perf_counter()
    result = _next_step()
    seconds = time.perf_counter() - started
    return {
        "first_step_s": seconds,
        "compile_s": _Session.step.compile_seconds if graph else None,
        "parameters": sum(parameter.numel() for parameter in _Session.step.state.network.parameters()),
        "loss": result.total,
        "loss_parts": [result.box, result.objectness, result.classes],
    }


def _spread(rows: np.ndarray, placement: Placement) -> Tensor:
    """Return this rank's rows of a whole batch as a tensor of the placement."""
    total = len(rows)
    return placement.shard_batch(flow.tensor(rows[Shard(placement.rank, placement.ranks).rows(total)]), total)


def _build(point: dict[str, Any], placement: Placement, *, graph: bool, kind: ActivationType) -> TrainStep:
    spec = load_model_spec(point["point"]["model"])
    network, average = (DetectionModel(spec, seed=seed).compute_in(kind) for seed in (0, None))
    state = TrainingState(
        placement.replicate_module(network), placement.replicate_module(average), rule="sgd", placement=placement
    )
    if kind is ActivationType.FLOAT16:
        state.counters = Counters(loss_scale=LOSS_SCALE_START)
    criterion = placement.replicate_module(DetectionLoss(network.head_geometry, LossConfig(**point["loss"])))
    config = StepConfig(tuple(point["update"]["weight_decays"]), placement=placement)
    return (GraphStep if graph else EagerStep)(state, criterion, config)


def _settings(update: dict[str, Any]) -> IterationSettings:
    bias, weight, norm = update["learning_rates"]
    return IterationSettings(lr_bias=bias, lr_weight=weight, lr_norm=norm, momentum=update["momentum"], update=True)


def _next_step() -> StepResult:
    images, labels = _Session.batches[len(_Session.losses) % len(_Session.batches)]
    result = _Session.step(images, labels, _Session.settings)
    _Session.losses.append(result.total)
    return result


def steps(count: int) -> float:
    """Run `count` steps and return the seconds; each reads its loss back, so the device is idle at the end."""
    started = time.perf_counter()
    for _ in range(count):
        _next_step()
    seconds = time.perf_counter() - started
    if not np.isfinite(_Session.losses[-1]):
        raise FloatingPointError(f"the loss became {_Session.losses[-1]}")
    return seconds


def sum_gradients() -> None:
    """Run only the all-reduce of a step, with zeros as gradients; with one rank there is nothing to do."""
    placement, state = _Session.step.placement, _Session.step.state
    if not placement.distributed:
        return
    gradients = flow.zeros(state.update_state().elements, device=placement.device)
    local_shard(placement.all_reduce_sum(placement.as_partial_sum(gradients))).numpy()  # synchronises


def trained() -> dict[str, Any]:
    """Return all losses so far, and the L2 norms of the weights and of their EMA."""
    state = _Session.step.state
    state.flush()
    norms = {
        name: l2_norm([p.numpy() for p in network.parameters()])
        for name, network in (("weights", state.network), ("average", state.average))
    }
    return {"losses": _Session.losses, **norms}


def step_job() -> Any:
    """Return OneFlow's `JobProto` of the graph compiled by `prepare`."""
    (job,) = _Session.step.jobs()
    return job


if __name__ == "__main__":
    serve({"describe": describe, "prepare": prepare, "steps": steps, "trained": trained})
