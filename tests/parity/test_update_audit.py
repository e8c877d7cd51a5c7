"""Faults of a single tensor in graph mode, each of which the audit of updates must detect in that tensor alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from graph_train.engine.schedule import IterationSettings
from graph_train.engine.state import TrainingState
from graph_train.engine.step import GraphStep
from kernels.ops.update.function import UpdateRule, UpdateState
from kernels.runtime import Tensor, flow
from models.layers import get_attribute
from models.network import DetectionModel
from tests.graph_train.tiny import random_batch, tiny_schedule, tiny_step
from tests.parity.update_audit import LATE_UPDATES, LIMIT, UpdateAudit

OPTIMIZERS: dict[UpdateRule, str] = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
STEPS = 8
"""The last ones accumulate several batches."""
WEIGHT, NORM_WEIGHT, BIAS = "model.0.conv.weight", "model.1.bn.weight", "model.1.bn.bias"
STATISTICS = ("model.0.bn.running_mean", "model.1.bn.running_var")

Fault = Callable[[TrainingState, str], None]
"""Called after each step with the state and the name of the tensor."""


def errors(rule: UpdateRule, fault: Fault = lambda *_: None, name: str = "") -> dict[str, float]:
    """Return the errors of a short training above the limit."""
    step, schedule = tiny_step(GraphStep, rule=rule), tiny_schedule(optimizer=OPTIMIZERS[rule])
    state = step.state
    audit = UpdateAudit(state, step._config.weight_decays)

    def taken(number: int, settings: IterationSettings) -> None:
        images, labels = random_batch(number, side=64, labels=5)
        result = step(flow.tensor(images), flow.tensor(labels), settings)
        with flow.no_grad():
            fault(state, name)
        audit.after_step(settings, updated=result.updated)

    for number in range(STEPS):
        taken(number, schedule.at(number, 0))
    state.counters = replace(state.counters, updates=LATE_UPDATES)
    taken(STEPS, replace(schedule.at(STEPS, 0), update=True))
    state.flush()
    audit.after_flush()
    assert len(audit.errors) >= 2 * len(state.trained) + len(state.statistics)
    return {tensor: error for tensor, error in audit.errors.items() if not error <= LIMIT}


def moments_of(state: TrainingState, name: str, *, second: bool = False) -> Tensor:
    """Return the part of the flat moments that belongs to a parameter, as a view."""
    return _part_of(state, state.second_moment if second else state.first_moment, name)


def _average_of(state: TrainingState, name: str) -> Tensor:
    """Return the moving average of a parameter, as a view."""
    return _part_of(state, state.averaged_parameters, name)


def _part_of(state: TrainingState, flat: Tensor, name: str) -> Tensor:
    return state.update_state().split(flat)[state.trained.index(name)]


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_updates_agree_with_formula(rule: UpdateRule) -> None:
    assert errors(rule) == {}


def average_is_a_copy(state: TrainingState, name: str) -> None:
    _average_of(state, name).copy_(get_attribute(state.network, name))


def average_is_a_ten_thousandth_off(state: TrainingState, name: str) -> None:
    _average_of(state, name).mul_(1.0001)


def weight_decays(state: TrainingState, name: str) -> None:
    get_attribute(state.network, name).mul_(0.9999)


def first_moment_is_zero(state: TrainingState, name: str) -> None:
    moments_of(state, name).mul_(0.0)


def first_moment_is_a_hundredth_off(state: TrainingState, name: str) -> None:
    moments_of(state, name).mul_(1.01)


def second_moment_is_zero(state: TrainingState, name: str) -> None:
    moments_of(state, name, second=True).mul_(0.0)


def second_moment_is_a_hundredth_off(state: TrainingState, name: str) -> None:
    moments_of(state, name, second=True).mul_(1.01)


@pytest.mark.parametrize(
    ("rule", "fault", "found", "name"),
    [
        ("sgd", average_is_a_copy, "ema", WEIGHT),
        ("sgd", average_is_a_copy, "ema", NORM_WEIGHT),
        ("adamw", average_is_a_copy, "ema", BIAS),
        ("sgd", average_is_a_ten_thousandth_off, "ema", NORM_WEIGHT),
        ("sgd", weight_decays, "model", NORM_WEIGHT),
        ("adamw", weight_decays, "model", WEIGHT),
        ("sgd", first_moment_is_zero, "model", NORM_WEIGHT),
        ("sgd", first_moment_is_a_hundredth_off, "model", WEIGHT),
        ("adam", first_moment_is_a_hundredth_off, "model", BIAS),
        ("adamw", second_moment_is_zero, "second_moment", BIAS),
        ("adam", second_moment_is_a_hundredth_off, "second_moment", WEIGHT),
    ],
)
def test_fault_of_one_parameter_is_detected(rule: UpdateRule, fault: Fault, found: str, name: str) -> None:
    wrong = errors(rule, fault, name)
    assert f"{found}/{name}" in wrong
    assert all(tensor.removesuffix(" without an update").endswith(name) for tensor in wrong)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("factor", [0.0, 1.0001])
def test_fault_of_one_average_of_statistics_is_detected(
    monkeypatch: pytest.MonkeyPatch, factor: float, name: str
) -> None:
    original = TrainingState.arrays

    def changed(state: TrainingState) -> dict[str, np.ndarray]:
        arrays = original(state)
        return {**arrays, f"ema/{name}": arrays[f"ema/{name}"] * np.float32(factor)}

    monkeypatch.setattr(TrainingState, "arrays", changed)
    assert list(errors("sgd")) == [f"ema/{name}"]


def test_parameter_not_updated_by_graph_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph updates a copy of the parameter."""
    original, example, number = TrainingState.update_state, tiny_step(GraphStep).state, 5
    copy = example.update_state().parameters[number].detach().clone()

    def changed(state: TrainingState) -> UpdateState:
        update = original(state)
        return replace(update, parameters=[*update.parameters[:number], copy, *update.parameters[number + 1 :]])

    monkeypatch.setattr(TrainingState, "update_state", changed)
    assert f"model/{example.trained[number]}" in errors("sgd")


def test_average_not_updated_by_graph_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph updates a copy of the average."""
    original, example = TrainingState.update_state, tiny_step(GraphStep).state
    copy = example.averaged_parameters.clone()
    monkeypatch.setattr(TrainingState, "update_state", lambda state: replace(original(state), average=copy))
    assert {f"ema/{name}" for name in example.trained} <= set(errors("sgd"))


def test_average_not_copied_to_network_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The average network keeps the averaged parameters of the start."""
    original = TrainingState._scatter

    def statistics_only(state: TrainingState, flat: Tensor, network: DetectionModel, names: Sequence[str]) -> None:
        if flat is not state.averaged_parameters:
            original(state, flat, network, names)

    monkeypatch.setattr(TrainingState, "_scatter", statistics_only)
    assert {f"ema/{name}" for name in tiny_step(GraphStep).state.trained} <= set(errors("sgd"))
