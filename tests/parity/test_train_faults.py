"""Faults injected into a recorded run, each of which the comparison must detect."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graph_train.engine.state as engine_state
import graph_train.engine.step as engine_step
import models.batch_norm
from graph_train.engine.state import TrainingState
from graph_train.engine.step import GraphStep
from kernels.ops.update.function import HyperIndex, UpdateSettings
from kernels.runtime import flow
from models.layers import get_attribute
from models.network import DetectionModel
from tests.parity import train_replay
from tests.parity.harness import Mode, Report
from tests.parity.train import SUBJECT, compare
from tests.parity.train_replay import Arrays, Case, Replay, replay

LAST = 20
"""Last iteration of the run."""
PARAMETERS = ("conv.weight", "bn.weight", "bn.bias")
STATISTICS = ("bn.running_mean", "bn.running_var")
Fault = Callable[[pytest.MonkeyPatch], None]


def failures(folder: Path, mode: Mode = "graph") -> list[str]:
    """Return what differs, without the audit of updates, which detects most faults by itself."""
    case, report = Case(folder / "train_coslr.npz"), Report()
    compare(case, replay(case, mode, audited=False), report)
    return [row.name for row in report.failures()]


def _hyper(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], None]) -> None:
    original = UpdateSettings.vector

    def changed(settings: UpdateSettings) -> np.ndarray:
        values = original(settings)
        change(values)
        return values

    monkeypatch.setattr(UpdateSettings, "vector", changed)


def frozen_ema(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray) -> None:
        values[HyperIndex.EMA_DECAY], values[HyperIndex.ONE_MINUS_EMA_DECAY] = 1.0, 0.0

    _hyper(monkeypatch, change)


def ema_copies_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray) -> None:
        values[HyperIndex.EMA_DECAY], values[HyperIndex.ONE_MINUS_EMA_DECAY] = 0.0, 1.0

    _hyper(monkeypatch, change)


def frozen_ema_and_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (engine_state, engine_step):
        monkeypatch.setattr(module, "ema_decay", lambda _: 1.0)


def wrong_update_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray) -> None:
        values[: HyperIndex.WEIGHT_DECAY_0] *= -1

    _hyper(monkeypatch, change)


def momentum_of_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray) -> None:
        values[HyperIndex.BETA1] = 0.8

    _hyper(monkeypatch, change)


def no_weight_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray) -> None:
        values[HyperIndex.WEIGHT_DECAY_1] = 0.0

    _hyper(monkeypatch, change)


def learning_rate_of_biases_a_tenth_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray) -> None:
        values[HyperIndex.LEARNING_RATE_0] *= np.float32(1.1)

    _hyper(monkeypatch, change)


def weights_of_norms_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray) -> None:
        values[HyperIndex.LEARNING_RATE_2] = 0.0

    _hyper(monkeypatch, change)


def one_statistic_not_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Case.network

    def changed(case: Case, weights: Arrays) -> DetectionModel:
        network = original(case, weights)
        network.model[4].cv1.bn.momentum = 0.0
        return network

    monkeypatch.setattr(Case, "network", changed)


def wrong_batch_norm_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.batch_norm, "MOMENTUM", 0.031)


def _arrays(monkeypatch: pytest.MonkeyPatch, change: Callable[[TrainingState, dict[str, np.ndarray]], None]) -> None:
    original = TrainingState.arrays

    def changed(state: TrainingState) -> dict[str, np.ndarray]:
        arrays = original(state)
        change(state, arrays)
        return arrays

    monkeypatch.setattr(TrainingState, "arrays", changed)


def stale_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a copy of the weights that is written to the state one step late."""
    seen: list[dict[str, np.ndarray]] = []
    original = engine_step.TrainStep.__call__

    def observed(step: engine_step.TrainStep, *inputs: Any) -> Any:
        seen.append({name: value.numpy().copy() for name, value in step.state.network.named_parameters()})
        return original(step, *inputs)

    monkeypatch.setattr(engine_step.TrainStep, "__call__", observed)

    def change(_: TrainingState, arrays: dict[str, np.ndarray]) -> None:
        arrays.update({f"model/{name}": value for name, value in (seen[-1] if seen else {}).items()})

    _arrays(monkeypatch, change)


def one_negated_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_: TrainingState, arrays: dict[str, np.ndarray]) -> None:
        arrays["model/model.9.cv2.conv.weight"] *= -1

    _arrays(monkeypatch, change)


STATE_FAULTS: dict[Fault, str] = {
    frozen_ema: "ema: median moved of group 1",
    ema_copies_weights: "final - ema, parameters",
    frozen_ema_and_statistics: "ema/model.0.bn.running_var",
    wrong_update_sign: "final: median moved of group 1",
    momentum_of_the_first_step: "loss",
    no_weight_decay: "final: median moved of group 1",
    learning_rate_of_biases_a_tenth_too_large: "final: median moved of group 0",
    weights_of_norms_not_trained: "final: median moved of group 2",
    one_statistic_not_updated: "final/model.4.cv1.bn.running_var: moved",
    wrong_batch_norm_momentum: "final/model.0.bn.running_var",
    stale_weights: "final: median moved of group 1",
    one_negated_tensor: "final/model.9.cv2.conv.weight",
}
# The comparison does not depend on the mode; these show that it gets the state in either.
IN_BOTH_MODES = (frozen_ema, wrong_update_sign, one_statistic_not_updated, one_negated_tensor)


@pytest.mark.parametrize(
    ("fault", "mode"),
    [
        *product(STATE_FAULTS, ("graph",)),
        *(pytest.param(fault, "eager", marks=pytest.mark.slow) for fault in IN_BOTH_MODES),
    ],
)
def test_faults_are_detected(
    small_vectors: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    mode: Mode,
) -> None:
    fault(monkeypatch)
    assert STATE_FAULTS[fault] in failures(small_vectors, mode)


def _at_iteration(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, np.ndarray], None]) -> None:
    """Change the settings of a run's updates, given the number of the iteration."""
    original, counts = engine_step.TrainStep.__call__, dict[int, int]()
    running = [0]

    def counted(step: engine_step.TrainStep, *inputs: Any) -> Any:
        running[0] = counts.get(id(step), 0)
        counts[id(step)] = running[0] + 1
        return original(step, *inputs)

    monkeypatch.setattr(engine_step.TrainStep, "__call__", counted)
    _hyper(monkeypatch, lambda values: change(running[0], values))


def no_update_in_the_last_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(iteration: int, values: np.ndarray) -> None:
        if iteration == LAST:
            values[: HyperIndex.WEIGHT_DECAY_0] = 0.0

    _at_iteration(monkeypatch, change)


def no_ema_in_the_last_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(iteration: int, values: np.ndarray) -> None:
        if iteration == LAST:
            values[HyperIndex.EMA_DECAY], values[HyperIndex.ONE_MINUS_EMA_DECAY] = 1.0, 0.0

    _at_iteration(monkeypatch, change)


def learning_rate_of_weights_off_by_two_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: np.ndarray) -> None:
        values[HyperIndex.LEARNING_RATE_1] *= np.float32(1.02)

    _hyper(monkeypatch, change)


def schedule_one_iteration_late(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, np.ndarray] = {}
    late = [*range(HyperIndex.WEIGHT_DECAY_0), HyperIndex.BETA1, HyperIndex.ONE_MINUS_BETA1]

    def change(iteration: int, values: np.ndarray) -> None:
        seen[iteration] = values[late].copy()
        values[late] = seen[max(iteration - 1, 0)]

    _at_iteration(monkeypatch, change)


def mean_of_accumulated_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide by two wherever two batches are accumulated: after the warm-up of the run."""

    def change(iteration: int, values: np.ndarray) -> None:
        if iteration > 2:
            values[HyperIndex.INVERSE_LOSS_SCALE] /= 2

    _at_iteration(monkeypatch, change)


def only_the_last_accumulated_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    original = engine_step.TrainStep.__call__

    def emptied(step: engine_step.TrainStep, *inputs: Any) -> Any:
        step.state.drop_pending_gradients()
        return original(step, *inputs)

    monkeypatch.setattr(engine_step.TrainStep, "__call__", emptied)


def gradient_not_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_step, "update_parameters", partial(engine_step.update_parameters, max_norm=1e9))


def statistics_averaged_half_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    original = engine_step.TrainStep._scalars

    def changed(step: engine_step.TrainStep, *inputs: Any) -> np.ndarray:
        values = original(step, *inputs)
        values[-1] /= 2
        return values

    monkeypatch.setattr(engine_step.TrainStep, "_scalars", changed)


def a_quarter_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_replay, "StepConfig", partial(engine_step.StepConfig, loss_factor=0.25))


def _after_each_step(monkeypatch: pytest.MonkeyPatch, change: Callable[[TrainingState], None]) -> None:
    original = engine_step.TrainStep.__call__

    def changed(step: engine_step.TrainStep, *inputs: Any) -> Any:
        result = original(step, *inputs)
        with flow.no_grad():
            change(step.state)
        return result

    monkeypatch.setattr(engine_step.TrainStep, "__call__", changed)


def one_average_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace one average by its parameter, which differs by half a rounding after the recorded updates."""
    name = "model.13.cv3.bn.weight"

    def change(state: TrainingState) -> None:
        average = state.update_state().split(state.averaged_parameters)[state.trained.index(name)]
        average.copy_(get_attribute(state.network, name))

    _after_each_step(monkeypatch, change)


def one_momentum_buffer_is_a_tenth_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: TrainingState) -> None:
        update = state.update_state()
        update.split(update.first_moment)[state.trained.index("model.4.cv1.bn.bias")].mul_(0.9)

    _after_each_step(monkeypatch, change)


def normalises_by_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    original = DetectionModel.train

    def in_inference_mode(network: DetectionModel, mode: bool = True) -> DetectionModel:
        original(network, mode)
        for module in network.modules():
            if isinstance(module, models.batch_norm.BatchNorm2d):
                module.training = False
        return network

    monkeypatch.setattr(DetectionModel, "train", in_inference_mode)


def running_statistics_never_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.batch_norm, "MOMENTUM", 0.0)


def labels_of_the_first_batch_are_compiled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    original, first = GraphStep._execute, dict[int, Any]()

    def execute(step: GraphStep, images: Any, labels: Any, *scalars: Any) -> Any:
        return original(step, images, first.setdefault(id(step), labels), *scalars)

    monkeypatch.setattr(GraphStep, "_execute", execute)


def average_takes_weights_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before: dict[int, Any] = {}

    def change(state: TrainingState) -> None:
        weights = flow.cat([get_attribute(state.network, name).reshape(-1) for name in state.trained], dim=0)
        state.averaged_parameters.copy_(before.get(id(state), weights))
        before[id(state)] = weights.clone()

    _after_each_step(monkeypatch, change)


def momentum_is_reset_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingState.drop_pending_gradients

    def drop(state: TrainingState) -> None:
        original(state)
        with flow.no_grad():
            state.first_moment.mul_(0.0)

    monkeypatch.setattr(TrainingState, "drop_pending_gradients", drop)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (normalises_by_running_statistics, "loss, iteration 0"),
        (labels_of_the_first_batch_are_compiled_in, "loss, first iterations"),
        (average_takes_weights_of_the_step_before, "ema/model.0.conv.weight"),
        pytest.param(running_statistics_never_move, "final/model.0.bn.running_mean", marks=pytest.mark.slow),
        pytest.param(momentum_is_reset_each_epoch, "loss, first iterations", marks=pytest.mark.slow),
        (no_update_in_the_last_iteration, "final: median moved of group 1"),
        (no_ema_in_the_last_iteration, "final - ema, parameters"),
        (learning_rate_of_weights_off_by_two_percent, "final: median moved of group 1"),
        (schedule_one_iteration_late, "loss"),
        (mean_of_accumulated_gradients, "gradient norm"),
        (only_the_last_accumulated_batch, "gradient norm"),
        (gradient_not_clipped, "loss"),
        (statistics_averaged_half_as_fast, "final - ema, statistics"),
        (a_quarter_of_the_loss, "gradient norm"),
    ],
)
def test_faults_of_the_graph_are_detected(
    small_vectors: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, found: str
) -> None:
    fault(monkeypatch)
    assert found in failures(small_vectors)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (one_average_is_a_copy, "updates of ema/model.13.cv3.bn.weight, in roundings"),
        (one_momentum_buffer_is_a_tenth_too_small, "updates of model/model.4.cv1.bn.bias, in roundings"),
        (wrong_update_sign, "updates of model/model.0.conv.weight, in roundings"),
        # Their updates follow the formulas, so near ties are searched for.
        pytest.param(no_weight_decay, "final: median moved of group 1", marks=pytest.mark.slow),
        pytest.param(gradient_not_clipped, "loss", marks=pytest.mark.slow),
    ],
)
def test_faults_are_not_forgiven(
    small_vectors: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, found: str
) -> None:
    fault(monkeypatch)
    report = Report()
    SUBJECT.check(small_vectors / "train_coslr.npz", report, "graph")
    assert report.forgiven == []
    assert found in [row.name for row in report.failures()]


@pytest.fixture(scope="module")
def finished(small_vectors: Path) -> tuple[Case, Replay]:
    """Return a run without faults."""
    case = Case(small_vectors / "train_coslr.npz")
    return case, replay(case, "graph")


@pytest.mark.parametrize("layer", [0, 9, 23])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *product(("not updated", "not averaged"), (*PARAMETERS, *STATISTICS)),
        # That of a parameter is within a rounding of it after 12 updates.
        *product(("average is a copy",), STATISTICS),
    ],
)
def test_one_wrong_tensor_is_detected(finished: tuple[Case, Replay], fault: str, kind: str, layer: int) -> None:
    """A single wrong tensor of any kind, of a network's 400, is detected."""
    case, run = finished
    name = f"model.{layer}.{'' if layer == 0 else 'cv1.'}{kind}"
    wrong = {
        "not updated": {f"model/{name}": case.initial[name]},
        "not averaged": {f"ema/{name}": case.initial[name]},
        "average is a copy": {f"ema/{name}": run.arrays[f"model/{name}"]},
    }[fault]
    report = Report()
    compare(case, replace(run, arrays={**run.arrays, **wrong}), report)
    assert not report.ok


def test_batch_count_in_average_is_detected(finished: tuple[Case, Replay]) -> None:
    case, run = finished
    name = "model.9.cv1.bn.num_batches_tracked"
    report = Report()
    compare(case, replace(run, arrays={**run.arrays, f"ema/{name}": run.arrays[f"model/{name}"]}), report)
    assert [row.name for row in report.failures()] == [f"ema/{name}"]
