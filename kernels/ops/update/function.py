"""Fused optimizer step of all parameters: accumulation, unscaling, clipping, SGD or Adam, EMA; skipped on overflow.

All values that change between steps are in one small vector, so graphs need not be recompiled.
Formulas: torch.optim.SGD (Nesterov, no dampening), torch.optim.Adam (decay added to the gradient), torch.optim.AdamW
(decoupled decay), torch.nn.utils.clip_grad_norm_, and the moving average of YOLOv5's ModelEMA.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from operator import itemgetter
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from kernels import plugin
from kernels.framework import dispatch
from kernels.framework.in_place import assign
from kernels.ops.flatten.function import flattened
from kernels.runtime import Tensor, flow

MAX_GRADIENT_NORM = 10.0
"""Default limit of the L2 norm of all gradients together, as in YOLOv5."""

UpdateRule = Literal["sgd", "adam", "adamw"]


class HyperIndex(IntEnum):
    """Positions in the vector that `UpdateSettings.vector` builds; groups: 0 biases, 1 weights, 2 BN weights."""

    LEARNING_RATE_0 = 0
    LEARNING_RATE_1 = 1
    LEARNING_RATE_2 = 2
    WEIGHT_DECAY_0 = 3
    WEIGHT_DECAY_1 = 4
    WEIGHT_DECAY_2 = 5
    BETA1 = 6  # momentum of SGD
    ONE_MINUS_BETA1 = 7
    BETA2 = 8
    ONE_MINUS_BETA2 = 9
    BIAS_CORRECTION1 = 10
    BIAS_CORRECTION2_ROOT = 11
    EPS = 12
    EMA_DECAY = 13
    ONE_MINUS_EMA_DECAY = 14
    INVERSE_LOSS_SCALE = 15
    UPDATE = 16


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of one call of `update_parameters`.

    Attributes:
        learning_rates, weight_decays: per group: 0 biases, 1 weights with decay, 2 BN weights.
        momentum: momentum of SGD, beta1 of Adam and AdamW.
        ema_decay: decay of the EMA at this update (YOLOv5 ramps it up with the number of updates).
        update: whether to update; False only accumulates the gradient.
        loss_scale: factor of the loss before the backward pass.
        beta2, eps: parameters of Adam and AdamW.
        adam_step: number of this update, from 1, without skipped ones.
    Raises:
        ValueError: adam_step below 1 or a loss scale that is not above 0.
    """

    learning_rates: tuple[float, float, float]
    weight_decays: tuple[float, float, float]
    momentum: float
    ema_decay: float
    update: bool
    loss_scale: float = 1.0
    beta2: float = 0.999
    eps: float = 1e-8
    adam_step: int = 1

    def __post_init__(self) -> None:
        if self.adam_step < 1:
            raise ValueError(f"adam_step={self.adam_step}: count the updates from 1")
        if not self.loss_scale > 0:
            raise ValueError(f"loss_scale={self.loss_scale}: must be above 0")

    def vector(self) -> npt.NDArray[np.float32]:
        """Return the scalars of the update, (17,) float32, indexed by `HyperIndex`.

        They are computed in float64 and rounded once, so that 1 - beta keeps its precision.
        """
        values = np.zeros(len(HyperIndex), np.float64)
        values[HyperIndex.LEARNING_RATE_0 : HyperIndex.WEIGHT_DECAY_0] = self.learning_rates
        values[HyperIndex.WEIGHT_DECAY_0 : HyperIndex.BETA1] = self.weight_decays
        values[HyperIndex.BETA1] = self.momentum
        values[HyperIndex.ONE_MINUS_BETA1] = 1 - self.momentum
        values[HyperIndex.BETA2] = self.beta2
        values[HyperIndex.ONE_MINUS_BETA2] = 1 - self.beta2
        values[HyperIndex.BIAS_CORRECTION1] = 1 - self.momentum**self.adam_step
        values[HyperIndex.BIAS_CORRECTION2_ROOT] = (1 - self.beta2**self.adam_step) ** 0.5
        values[HyperIndex.EPS] = self.eps
        values[HyperIndex.EMA_DECAY] = self.ema_decay
        values[HyperIndex.ONE_MINUS_EMA_DECAY] = 1 - self.ema_decay
        values[HyperIndex.INVERSE_LOSS_SCALE] = 1 / self.loss_scale
        values[HyperIndex.UPDATE] = float(self.update)
        return values.astype(np.float32)


@dataclass(frozen=True)
class UpdateState:
    """All parameters with their optimizer state: float32, contiguous, updated in place.

    All tensors except the parameters are flat, (n,), with the elements of all parameters in order, since every tensor
    of a graph costs time and memory.
    """

    parameters: Sequence[Tensor]
    groups: Sequence[int]
    """Group of each parameter (0, 1 or 2), which selects its learning rate and weight decay in the hyper vector."""
    average: Tensor
    """(n,): moving average of the parameters."""
    gradient_sum: Tensor
    """(n,): accumulated gradient, still scaled by the loss scale; zero after an update."""
    first_moment: Tensor
    """(n,): momentum buffer of SGD; mean of the gradient for Adam and AdamW."""
    second_moment: Tensor | None = None
    """(n,): mean of the squared gradient for Adam and AdamW; None for SGD."""

    def __post_init__(self) -> None:
        if not self.parameters or len(self.parameters) != len(self.groups):
            raise ValueError(
                f"{len(self.parameters)} parameters and {len(self.groups)} groups: needs a group for each parameter, "
                "and at least one"
            )
        for index, (parameter, group) in enumerate(zip(self.parameters, self.groups, strict=True)):
            _check_tensor(f"parameter {index}", parameter, tuple(parameter.shape))
            if group not in (0, 1, 2):
                raise ValueError(f"parameter {index}: group {group}: known groups are 0, 1 and 2")
        for name in ("average", "gradient_sum", "first_moment", "second_moment"):
            tensor = getattr(self, name)
            if tensor is not None:
                _check_tensor(name, tensor, (self.elements,))

    @property
    def elements(self) -> int:
        """Number of elements of all parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Split a flat tensor into views in the shapes of the parameters."""
        parts, start = [], 0
        for parameter in self.parameters:
            parts.append(flat[start : start + parameter.numel()].reshape(parameter.shape))
            start += parameter.numel()
        return parts


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != flow.float32 or not tensor.is_contiguous():
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} {tensor.dtype}: must be of shape {shape}, float32 and contiguous, "
            "because it is updated in place"
        )


def update_parameters(
    rule: UpdateRule,
    state: UpdateState,
    gradients: Sequence[Tensor],
    hyper: Tensor,
    *,
    max_norm: float = MAX_GRADIENT_NORM,
) -> Tensor:
    """Accumulate the gradients and, if due, update all parameters, moments and averages in place.

    Works eagerly and inside `nn.Graph.build`, where new values become visible after the call. If the norm
    of the unscaled gradient is not finite, the gradient sums are reset and nothing else changes.

    Args:
        rule: optimizer; "sgd" has Nesterov momentum.
        state: the same tensors in every call.
        gradients: of the scaled loss, float32: one in the shape of each parameter, or all in a single (n,).
        hyper: (17,) float32 from `UpdateSettings.vector`, on the device of the parameters.
        max_norm: limit of the L2 norm of the whole gradient, which is scaled down to it.
    Returns:
        (2,) float32: the norm before clipping (NaN if no update is due), and 1 if the weights were updated, else 0.
    Raises:
        ValueError: mismatched counts or shapes, an unknown rule, a missing second moment.
    """
    _check_arguments(rule, state, gradients)
    with flow.no_grad():
        if plugin.is_loaded():
            return _update_parameters_fused(rule, state, gradients, hyper, max_norm)
        return update_parameters_reference(rule, state, gradients, hyper, max_norm=max_norm)


def _update_parameters_fused(
    rule: UpdateRule, state: UpdateState, gradients: Sequence[Tensor], hyper: Tensor, max_norm: float
) -> Tensor:
    tensors = {
        "parameter": state.parameters,
        "ema": [state.average],
        "gradient_sum": [state.gradient_sum],
        "first_moment": [state.first_moment],
        "second_moment": [] if state.second_moment is None else [state.second_moment],
        "gradient": gradients,
        "hyper": [hyper],
    }
    used = {name: row for name, row in tensors.items() if row}
    op = dispatch.build_op(_FUSED_OPS[rule], tuple((name, len(row)) for name, row in used.items()))
    return dispatch.call(
        op,
        [tensor for row in used.values() for tensor in row],
        integers=(get_args(UpdateRule).index(rule),),
        floats=(max_norm, *state.groups),
    )


_FUSED_OPS: Mapping[UpdateRule, str] = {
    "sgd": "graph_train_update_sgd",
    "adam": "graph_train_update_adam",
    "adamw": "graph_train_update_adam",
}


@dataclass(frozen=True)
class _Scalars:
    """The elements of the hyper vector as tensors (1,).

    Write `tensor * scalar` in this order: the reverse is hundreds of times slower on the CPU.
    """

    vector: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return self.vector[int(index) : int(index) + 1]

    def per_element(self, first: HyperIndex, state: UpdateState) -> Tensor:
        """Return the value of each element's group, (n,); `first` is the index for group 0."""
        counted = zip(state.groups, (parameter.numel() for parameter in state.parameters), strict=True)
        runs = [(group, sum(count for _, count in run)) for group, run in groupby(counted, key=itemgetter(0))]
        return flow.cat([self[first + group].expand(count) for group, count in runs], dim=0)


@dataclass(frozen=True)
class _RuleInputs:
    """The inputs of an update rule, each (n,)."""

    parameter: Tensor
    first_moment: Tensor
    second_moment: Tensor | None
    learning_rate: Tensor
    weight_decay: Tensor


@dataclass(frozen=True)
class _NewValues:
    parameter: Tensor
    first_moment: Tensor
    second_moment: Tensor | None


def update_parameters_reference(
    rule: UpdateRule,
    state: UpdateState,
    gradients: Sequence[Tensor],
    hyper: Tensor,
    *,
    max_norm: float = MAX_GRADIENT_NORM,
) -> Tensor:
    """Compute `update_parameters` with OneFlow ops; call it in `no_grad` mode."""
    scalars = _Scalars(hyper)
    total = state.gradient_sum + flattened(gradients)
    unscaled = total * scalars[HyperIndex.INVERSE_LOSS_SCALE]
    norm = _norm(unscaled)
    # Tensor by tensor: OneFlow divides a Python number by a tensor through the reciprocal, one rounding more.
    clip = (flow.ones_like(norm) * max_norm / (norm + 1e-6)).clamp(max=1.0)
    asked = scalars[HyperIndex.UPDATE] > 0
    updates = flow.logical_and(asked, flow.isfinite(norm))

    old = _RuleInputs(
        flattened(state.parameters),
        state.first_moment,
        state.second_moment,
        scalars.per_element(HyperIndex.LEARNING_RATE_0, state),
        scalars.per_element(HyperIndex.WEIGHT_DECAY_0, state),
    )
    new = _RULES[rule](old, unscaled * clip, scalars)
    moved = state.average * scalars[HyperIndex.EMA_DECAY] + new.parameter * scalars[HyperIndex.ONE_MINUS_EMA_DECAY]
    # `where` instead of a product with 0 or 1, because a NaN that is not selected must not propagate.
    for target, value in zip(
        state.parameters, state.split(flow.where(updates, new.parameter, old.parameter)), strict=True
    ):
        assign(target, value)
    assign(state.average, flow.where(updates, moved, state.average))
    assign(state.gradient_sum, flow.where(asked, flow.zeros_like(total), total))
    assign(state.first_moment, flow.where(updates, new.first_moment, state.first_moment))
    if new.second_moment is not None:
        assign(state.second_moment, flow.where(updates, new.second_moment, state.second_moment))

    shown_norm = flow.where(asked, norm, norm * float("nan"))
    return flow.cat([shown_norm, updates.to(flow.float32)])


def _norm(gradient: Tensor) -> Tensor:
    """Return the L2 norm, (1,), accumulated in float64."""
    return flow.sqrt(flow.square(gradient.to(flow.float64)).sum()).to(flow.float32).reshape(1)


def _sgd(old: _RuleInputs, gradient: Tensor, scalars: _Scalars) -> _NewValues:
    direction = gradient + old.parameter * old.weight_decay
    momentum = scalars[HyperIndex.BETA1]
    velocity = old.first_moment * momentum + direction
    step = direction + velocity * momentum
    return _NewValues(old.parameter - step * old.learning_rate, velocity, None)


def _adam(old: _RuleInputs, gradient: Tensor, scalars: _Scalars) -> _NewValues:
    return _adam_step(old, old.parameter, gradient + old.parameter * old.weight_decay, scalars)


def _adamw(old: _RuleInputs, gradient: Tensor, scalars: _Scalars) -> _NewValues:
    kept = 1 - old.learning_rate * old.weight_decay
    return _adam_step(old, old.parameter * kept, gradient, scalars)


def _adam_step(old: _RuleInputs, parameter: Tensor, gradient: Tensor, scalars: _Scalars) -> _NewValues:
    mean = old.first_moment * scalars[HyperIndex.BETA1] + gradient * scalars[HyperIndex.ONE_MINUS_BETA1]
    square = old.second_moment * scalars[HyperIndex.BETA2] + gradient * gradient * scalars[HyperIndex.ONE_MINUS_BETA2]
    step_size = old.learning_rate / scalars[HyperIndex.BIAS_CORRECTION1]
    denominator = flow.sqrt(square) / scalars[HyperIndex.BIAS_CORRECTION2_ROOT] + scalars[HyperIndex.EPS]
    return _NewValues(parameter - mean / denominator * step_size, mean, square)


_RULES: Mapping[UpdateRule, Callable[[_RuleInputs, Tensor, _Scalars], _NewValues]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


def _check_arguments(rule: str, state: UpdateState, gradients: Sequence[Tensor]) -> None:
    if rule not in _RULES:
        raise ValueError(f"rule={rule!r}: choose one of {', '.join(_RULES)}")
    if (state.second_moment is None) != (rule == "sgd"):
        raise ValueError(f"rule {rule} {'has no' if rule == 'sgd' else 'needs a'} second moment")
    if len(gradients) == 1 and tuple(gradients[0].shape) == (state.elements,):
        return
    if len(gradients) != len(state.parameters):
        raise ValueError(f"{len(state.parameters)} parameters, but {len(gradients)} gradients")
    for index, (parameter, gradient) in enumerate(zip(state.parameters, gradients, strict=True)):
        if tuple(gradient.shape) != tuple(parameter.shape):
            raise ValueError(
                f"parameter {index}: shape {tuple(parameter.shape)} but gradient of shape {tuple(gradient.shape)}"
            )
