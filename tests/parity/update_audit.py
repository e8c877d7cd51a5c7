"""Every update of every tensor compared with the optimizer's formula, from the state before and after it.

A recorded final state shows a wrong tensor only if the error exceeds the rounding accumulated over the run: after the
first updates, an average differs from its weight by less than one rounding. Within a single update, a correct value
differs from its formula only by the rounding of that update.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graph_train.engine.schedule import IterationSettings, ema_decay
from graph_train.engine.state import TrainingState
from kernels.runtime import flow
from models.layers import get_attribute

LATE_UPDATES = 2000
"""Updates before the additional one, which makes the decay of the average 0.63; that of the first updates is 0.0005."""
LIMIT = 6.0
"""Largest error in units of float32 rounding of the terms of a formula; measured 1.9 with SGD, 3.1 with AdamW."""

ADAM_BETA2, ADAM_EPSILON = 0.999, 1e-8
"""The reference's, PyTorch's defaults."""

ROUNDING = np.finfo(np.float32).eps
EXPONENT_BITS = np.int32(0x7F800000)
SMALLEST = np.float32(2.0**-100)
"""Smaller numbers count as this, whose rounding is still a normal number."""

_Arrays = Mapping[str, np.ndarray]
_Values = npt.NDArray[np.float64]


class UpdateAudit:
    """The largest error of each tensor over all updates of a run, in units of rounding.

    Args:
        state: the state before the first update.
        weight_decays: per parameter group.
    """

    def __init__(self, state: TrainingState, weight_decays: tuple[float, float, float]) -> None:
        self.errors: dict[str, float] = {}
        self._state, self._weight_decays = state, weight_decays
        self._shared = _shared_arrays(state)
        self._old = self._copies()
        # The state lags one update behind in these, except after `flush`.
        start = state.arrays()
        self._statistics = {name: _Average(start[f"ema/{name}"].astype(np.float64)) for name in state.statistics}

    def after_step(self, settings: IterationSettings, *, updated: bool) -> None:
        """Check the step that has just been taken."""
        new = self._copies()
        for name, group in zip(self._state.trained, self._state.groups, strict=True):
            kinds = ["model", "ema", "first_moment"] + ["second_moment"] * (self._state.rule != "sgd")
            before, after = ({kind: arrays[f"{kind}/{name}"] for kind in kinds} for arrays in (self._old, new))
            if updated:
                self._check_weight(name, before, after, settings, group)
                self._check_average(name, before, after)
            elif not all(np.array_equal(before[kind], after[kind]) for kind in kinds):
                self.errors[f"{name} without an update"] = np.inf
        if updated:
            decay = ema_decay(self._state.counters.updates)
            for name, average in self._statistics.items():
                average.update(new[f"model/{name}"], decay)
        self._old = new

    def after_flush(self) -> None:
        """Check the averages of the running statistics, and that the average network has the averaged parameters."""
        arrays, self._old = self._state.arrays(), self._copies()
        for name in self._state.trained:
            if not np.array_equal(arrays[f"ema/{name}"], self._old[f"ema/{name}"]):
                self.errors[f"ema/{name}"] = np.inf
        for name, average in self._statistics.items():
            self._note(f"ema/{name}", arrays[f"ema/{name}"], average.expected, average.rounding)

    def _copies(self) -> _Arrays:
        flow._oneflow_internal.eager.Sync()
        return {name: values.copy() for name, values in self._shared.items()}

    def _check_average(self, name: str, before: _Arrays, after: _Arrays) -> None:
        decay, old = ema_decay(self._state.counters.updates), before["ema"].astype(np.float64)
        expected = decay * old + (1 - decay) * after["model"].astype(np.float64)
        self._note(f"ema/{name}", after["ema"], expected, _rounding(before["ema"], after["model"]))

    def _check_weight(
        self, name: str, before: _Arrays, after: _Arrays, settings: IterationSettings, group: int
    ) -> None:
        rate, decay, beta = settings.learning_rates[group], self._weight_decays[group], settings.momentum
        weight, old = before["model"].astype(np.float64), before["first_moment"].astype(np.float64)
        mean = after["first_moment"].astype(np.float64)
        moments = _rounding(before["first_moment"], after["first_moment"])
        gained = mean - beta * old
        if self._state.rule == "sgd":
            step, unit = gained + beta * mean, moments
        else:
            count = self._state.counters.updates
            gradient = gained / (1 - beta)
            square = ADAM_BETA2 * before["second_moment"] + (1 - ADAM_BETA2) * gradient**2
            unit = _rounding(square) + 2 * (1 - ADAM_BETA2) / (1 - beta) * np.abs(gradient) * moments
            self._note(f"second_moment/{name}", after["second_moment"], square, unit)
            root = np.sqrt(after["second_moment"].astype(np.float64) / (1 - ADAM_BETA2**count))
            step = mean / (root + ADAM_EPSILON) / (1 - beta**count)
            unit = _rounding(step)
        kept = 1 - rate * decay if self._state.rule == "adamw" else 1.0
        self._note(
            f"model/{name}", after["model"], weight * kept - rate * step, _rounding(before["model"]) + rate * unit
        )

    def _note(self, name: str, actual: np.ndarray, expected: _Values, unit: npt.NDArray[np.floating]) -> None:
        with np.errstate(invalid="ignore"):
            error = float(np.max(np.abs(actual - expected) / unit, initial=0.0))
        self.errors[name] = max(self.errors.get(name, 0.0), np.inf if np.isnan(error) else error)


def _shared_arrays(state: TrainingState) -> _Arrays:
    """Return the CPU memory of all audited tensors by name, valid after `Sync`.

    Copying from it after each step is much faster than reading each tensor anew.
    """
    shared = {
        f"model/{name}": get_attribute(state.network, name).numpy() for name in (*state.trained, *state.statistics)
    }
    flats = {"ema": state.averaged_parameters, "first_moment": state.first_moment}
    if state.rule != "sgd":
        flats["second_moment"] = state.second_moment
    for kind, tensor in flats.items():
        flat, start = tensor.numpy(), 0
        for name in state.trained:
            weight = shared[f"model/{name}"]
            shared[f"{kind}/{name}"] = flat[start : start + weight.size].reshape(weight.shape)
            start += weight.size
    return shared


class _Average:
    """A moving average in double precision, and the rounding of one in single precision."""

    def __init__(self, start: _Values) -> None:
        self.expected: _Values = start
        self.rounding: npt.NDArray[np.floating] = _rounding(start)

    def update(self, value: np.ndarray, decay: float) -> None:
        """Add a value."""
        self.rounding = decay * self.rounding + _rounding(self.expected, value)
        self.expected = decay * self.expected + (1 - decay) * value


def _rounding(*terms: np.ndarray) -> npt.NDArray[np.float32]:
    """Return the distance of float32 numbers at the size of the largest term."""
    size = np.abs(terms[0]).astype(np.float32, copy=False)
    for term in terms[1:]:
        np.maximum(size, np.abs(term).astype(np.float32, copy=False), out=size)
    # The power of two of each number, from its bits: eight times as fast as `np.spacing`, which is most of an audit.
    powers = (np.maximum(size, SMALLEST).view(np.int32) & EXPONENT_BITS).view(np.float32)
    powers *= ROUNDING
    return powers
