"""Replay of a recorded training run with our training step."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.engine.schedule import IterationSettings, Schedule
from graph_train.engine.state import TrainingState
from graph_train.engine.step import EagerStep, GraphStep, StepConfig, StepResult, TrainStep
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss
from models.network import DetectionModel
from models.padded_labels import label_capacity, pad_labels
from models.spec import load_model_spec
from models.targets import HeadGeometry
from tests.parity.harness import Mode, VectorError, VectorFile
from tests.parity.loss import loss_config
from tests.parity.update_audit import LATE_UPDATES, LIMIT, UpdateAudit

Arrays = Mapping[str, np.ndarray]
PIXEL_SCALE = 255.0


@dataclass(frozen=True)
class Case:
    """A recorded run: `train_X.npz`, and the initial state of all runs, `train_common.npz`, next to it."""

    path: Path

    @cached_property
    def vectors(self) -> VectorFile:
        """The arrays of the file."""
        return VectorFile(self.path)

    @cached_property
    def common(self) -> VectorFile:
        """The arrays of the companion.

        Raises:
            VectorError: there is none.
        """
        path = self.path.with_name("train_common.npz")
        if not path.exists():
            raise VectorError("train_common.npz, which has the initial state of all runs, is missing beside it")
        return VectorFile(path)

    def json(self, name: str) -> dict[str, Any]:
        """Return one of the file's JSON texts."""
        parsed: dict[str, Any] = json.loads(str(self.vectors[f"{name}_json"]))
        return parsed

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Optimizer, batch size, epochs and other settings."""
        return self.json("case")

    @cached_property
    def initial(self) -> Arrays:
        """The initial state by name."""
        return {
            name[5:]: value.astype(np.float32) if value.dtype == np.float16 else value
            for name in self.common
            if name.startswith("init/")
            for value in (self.common[name],)
        }

    @property
    def iterations(self) -> int:
        """Number of recorded batches."""
        return len(self.vectors["step_ni"])

    def images(self, iteration: int) -> npt.NDArray[np.uint8]:
        """Return (B, 3, H, W) of one batch."""
        batch: npt.NDArray[np.uint8] = self.common["images_u8"][iteration]
        return batch

    def labels(self, iteration: int) -> npt.NDArray[np.float32]:
        """Return the labels (B, T, 5) of one batch; T is the same for all batches."""
        targets = self.common["targets"]
        batch = self.settings["batch_size"]
        images = targets[:, 0] * batch + targets[:, 1]
        used = images[targets[:, 0] < self.iterations].astype(np.int64)
        rows = targets[targets[:, 0] == iteration][:, 1:]
        return pad_labels(rows, batch, label_capacity(int(np.bincount(used).max(initial=0))))

    def schedule(self) -> Schedule:
        """Return learning rates, momentum and accumulation of the run."""
        raw, settings = self.json("hyp_raw"), self.settings
        return Schedule(
            epochs=settings["epochs"],
            batches_per_epoch=settings["nb"],
            batch_size=settings["batch_size"],
            warmup=settings["nw"],
            lr0=raw["lr0"],
            lrf=raw["lrf"],
            momentum=raw["momentum"],
            warmup_momentum=raw["warmup_momentum"],
            warmup_bias_lr=raw["warmup_bias_lr"],
            weight_decay=raw["weight_decay"],
            optimizer=settings["opt_name"],
            cosine=settings["cos_lr"],
            nominal_batch=settings["nbs"],
        )

    def network(self, weights: Arrays) -> DetectionModel:
        """Return a network with the given state."""
        architecture = self.settings.get("cfg", "yolov5n")
        network = DetectionModel(load_model_spec(architecture, num_classes=int(self.settings["nc"])))
        with flow.no_grad():
            for name, tensor in network.state_dict().items():
                tensor.copy_(flow.tensor(weights[name]))
        return network

    def criterion(self, network: DetectionModel) -> DetectionLoss:
        """Return the run's loss."""
        strides = tuple(float(stride) for stride in network.stride)
        head = HeadGeometry(network.anchors_cells, strides, network.num_classes)
        return DetectionLoss(head, loss_config(self.json("hyp_scaled")))


@dataclass(frozen=True)
class LabelMove:
    """A replacement for a label's box in one batch."""

    iteration: int
    image: int
    slot: int
    box: tuple[float, float, float, float]
    """Centre x, y, width, height, normalised."""


@dataclass(frozen=True)
class Replay:
    """The results of our run of a case."""

    results: tuple[StepResult, ...]
    settings: tuple[IterationSettings, ...]
    accumulate: tuple[int, ...]
    arrays: Arrays
    updates: int
    groups: Mapping[str, int]
    """Group of each trained parameter: biases, weights with decay, weights of normalisation layers."""
    update_errors: Mapping[str, float]
    """See `UpdateAudit`; empty if the run was not audited."""

    @property
    def follows_formulas(self) -> bool:
        """Whether every update agrees with the optimizer's formula."""
        return all(error <= LIMIT for error in self.update_errors.values())

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """(iterations,)."""
        return np.array([result.total for result in self.results])

    @property
    def items(self) -> npt.NDArray[np.float64]:
        """(iterations, 3): box, objectness, classes."""
        return np.array([[result.box, result.objectness, result.classes] for result in self.results])

    @property
    def norms(self) -> npt.NDArray[np.float64]:
        """(iterations,) gradient norms; NaN where no update was due."""
        return np.array([result.gradient_norm for result in self.results])

    @property
    def stepped(self) -> npt.NDArray[np.bool_]:
        """(iterations,) whether an update was due."""
        return np.array([settings.update for settings in self.settings])


Observer = Callable[[int, TrainingState, npt.NDArray[np.float32]], None]
"""Called before each batch with its number, the state, and the labels."""


def replay(
    case: Case,
    mode: Mode,
    *,
    iterations: int | None = None,
    moves: Sequence[LabelMove] = (),
    observe: Observer = lambda *_: None,
    audited: bool = True,
) -> Replay:
    """Run the first `iterations` batches of a case (all of them by default) in one mode.

    If the run is audited, the last batch is taken once more after all of them, as if after `LATE_UPDATES`.
    """
    state = TrainingState(
        case.network(case.initial), case.network(case.initial), rule=case.settings["opt_name"].lower()
    )
    schedule = case.schedule()
    kind = GraphStep if mode == "graph" else EagerStep
    step = kind(state, case.criterion(state.network), StepConfig(schedule.weight_decays))
    numbers = range(case.iterations if iterations is None else iterations)
    results, all_settings = [], []
    audit = UpdateAudit(state, schedule.weight_decays) if audited else None
    for iteration in numbers:
        if iteration % case.settings["nb"] == 0:
            state.drop_pending_gradients()
        labels = case.labels(iteration)
        for move in moves:
            if move.iteration == iteration:
                labels[move.image, move.slot, 1:5] = move.box
        observe(iteration, state, labels)
        settings = schedule.at(iteration, iteration // case.settings["nb"])
        batch = flow.tensor(case.images(iteration)), flow.tensor(labels)
        results.append(step(*batch, settings))
        all_settings.append(settings)
        if audit:
            audit.after_step(settings, updated=results[-1].updated)
    state.flush()
    if audit:
        audit.after_flush()
    arrays, updates = state.arrays(), state.counters.updates
    if audit and iterations is None:
        _audit_late_update(audit, step, batch, settings)
    accumulate = tuple(schedule.accumulate(iteration) for iteration in numbers)
    groups = dict(zip(state.trained, state.groups, strict=True))
    return Replay(
        tuple(results), tuple(all_settings), accumulate, arrays, updates, groups, audit.errors if audit else {}
    )


def _audit_late_update(
    audit: UpdateAudit, step: TrainStep, batch: tuple[Tensor, Tensor], settings: IterationSettings
) -> None:
    """Take and audit one more update, as if after `LATE_UPDATES`."""
    step.state.counters = replace(step.state.counters, updates=LATE_UPDATES)
    late = replace(settings, update=True)
    result = step(*batch, late)
    audit.after_step(late, updated=result.updated)
    step.state.flush()
    audit.after_flush()
