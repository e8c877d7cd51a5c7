"""One optimizer step of all parameters: accumulate, unscale, clip, SGD or Adam, moving average; overflow skips it.

Everything that changes from step to step is in one small vector, so a captured graph is never recompiled for it.
Formulas: torch.optim.SGD (Nesterov, no dampening), torch.optim.Adam (decay added to the gradient), torch.optim.AdamW
(decoupled decay), torch.nn.utils.clip_grad_norm_, and the moving average of YOLOv5's ModelEMA.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from kernels import dispatch, plugin
from kernels.runtime import Tensor, flow

MAX_GRADIENT_NORM = 10.0
"""L2 norm of all gradients together that is left as it is, as in YOLOv5."""

UpdateRule = Literal["sgd", "adam", "adamw"]


class HyperIndex(IntEnum):
    """Where each value stands in the vector that `hyper_vector` builds; groups: 0 biases, 1 weights, 2 BN weights."""

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


def hyper_vector(
    *,
    learning_rates: tuple[float, float, float],
    weight_decays: tuple[float, float, float],
    momentum: float,
    ema_decay: float,
    update: bool,
    loss_scale: float = 1.0,
    beta2: float = 0.999,
    eps: float = 1e-8,
    adam_step: int = 1,
) -> npt.NDArray[np.float32]:
    """The values of one step, computed in float64 and rounded once: 1 - beta and the like keep all their digits.

    Args:
        learning_rates, weight_decays: per group: 0 biases, 1 weights with decay, 2 BN weights.
        momentum: of SGD; beta1 of Adam and AdamW.
        ema_decay: decay of the moving average at this update (YOLOv5 ramps it with the count of updates).
        update: False only accumulates the gradient.
        loss_scale: what the loss was multiplied with before the backward pass.
        beta2, eps: of Adam and AdamW.
        adam_step: number of this update, from 1; updates that were skipped (not finite) do not count.
    Returns:
        (17,) float32, indexed by `HyperIndex`.
    Raises:
        ValueError: adam_step below 1 or a loss scale that is not above 0.
    """
    if adam_step < 1:
        raise ValueError(f"adam_step={adam_step}: count the updates from 1")
    if not loss_scale > 0:
        raise ValueError(f"loss_scale={loss_scale}: must be above 0")
    values = np.zeros(len(HyperIndex), np.float64)
    values[HyperIndex.LEARNING_RATE_0 : HyperIndex.WEIGHT_DECAY_0] = learning_rates
    values[HyperIndex.WEIGHT_DECAY_0 : HyperIndex.BETA1] = weight_decays
    values[HyperIndex.BETA1] = momentum
    values[HyperIndex.ONE_MINUS_BETA1] = 1 - momentum
    values[HyperIndex.BETA2] = beta2
    values[HyperIndex.ONE_MINUS_BETA2] = 1 - beta2
    values[HyperIndex.BIAS_CORRECTION1] = 1 - momentum**adam_step
    values[HyperIndex.BIAS_CORRECTION2_ROOT] = (1 - beta2**adam_step) ** 0.5
    values[HyperIndex.EPS] = eps
    values[HyperIndex.EMA_DECAY] = ema_decay
    values[HyperIndex.ONE_MINUS_EMA_DECAY] = 1 - ema_decay
    values[HyperIndex.INVERSE_LOSS_SCALE] = 1 / loss_scale
    values[HyperIndex.UPDATE] = float(update)
    return values.astype(np.float32)


@dataclass(frozen=True)
class ParameterState:
    """One parameter and what belongs to it: float32 tensors of equal shape, all updated in place."""

    parameter: Tensor
    gradient_sum: Tensor
    """Accumulated gradient, still scaled by the loss scale; zero after an update."""
    first_moment: Tensor
    """Momentum buffer of SGD; mean of the gradient for Adam and AdamW."""
    second_moment: Tensor | None
    """Mean of the squared gradient for Adam and AdamW; None for SGD."""
    ema: Tensor
    """Moving average of the parameter."""
    group: int
    """Which learning rate and weight decay of the hyper vector apply: 0, 1 or 2."""

    def __post_init__(self) -> None:
        shape = tuple(self.parameter.shape)
        for name in ("parameter", "gradient_sum", "first_moment", "second_moment", "ema"):
            tensor = getattr(self, name)
            if tensor is None and name == "second_moment":
                continue
            if tuple(tensor.shape) != shape or tensor.dtype != flow.float32 or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} {tensor.dtype}: must be like its parameter, {shape}, "
                    "float32 and contiguous, because it is updated in place"
                )
        if self.group not in (0, 1, 2):
            raise ValueError(f"group {self.group}: known groups are 0, 1 and 2")


def update_parameters(
    rule: UpdateRule,
    states: Sequence[ParameterState],
    gradients: Sequence[Tensor],
    hyper: Tensor,
    *,
    max_norm: float = MAX_GRADIENT_NORM,
) -> Tensor:
    """Adds the gradients to their sums and, where hyper says so, updates all parameters, moments and averages in place.

    Runs eagerly and inside `nn.Graph.build`; inside a graph the new values become visible after the call. If the norm
    of the unscaled gradient is not finite, the gradient sums are reset and nothing else changes.

    Args:
        rule: optimizer; "sgd" has Nesterov momentum.
        states: one entry per parameter, the same ones in every call.
        gradients: of the scaled loss, shapes of the parameters, float32.
        hyper: (17,) float32 on the device of the parameters, from `hyper_vector`.
        max_norm: the gradient of all parameters together is scaled down to this L2 norm.
    Returns:
        (2,) float32: the norm before clipping (NaN when hyper says not to update), and 1 if the weights were updated,
        else 0.
    Raises:
        ValueError: no parameters, counts or shapes that differ, an unknown rule, a missing second moment.
    """
    _check_arguments(rule, states, gradients)
    with flow.no_grad():
        if plugin.is_loaded() and not hyper.is_cuda:
            return _update_parameters_fused(rule, states, gradients, hyper, max_norm)
        return update_parameters_reference(rule, states, gradients, hyper, max_norm=max_norm)


def _update_parameters_fused(
    rule: UpdateRule, states: Sequence[ParameterState], gradients: Sequence[Tensor], hyper: Tensor, max_norm: float
) -> Tensor:
    tensors = {
        "parameter": [state.parameter for state in states],
        "gradient_sum": [state.gradient_sum for state in states],
        "first_moment": [state.first_moment for state in states],
        "ema": [state.ema for state in states],
        "second_moment": [state.second_moment for state in states if state.second_moment is not None],
        "gradient": list(gradients),
        "hyper": [hyper],
    }
    used = {name: row for name, row in tensors.items() if row}
    op = dispatch.build_op(_FUSED_OPS[rule], tuple((name, len(row)) for name, row in used.items()))
    return dispatch.call(
        op,
        [tensor for row in used.values() for tensor in row],
        integers=(get_args(UpdateRule).index(rule), 0),
        floats=(max_norm, *(state.group for state in states)),
    )


_FUSED_OPS: Mapping[UpdateRule, str] = {
    "sgd": "graph_train_update_sgd",
    "adam": "graph_train_update_adam",
    "adamw": "graph_train_update_adam",
}


@dataclass(frozen=True)
class _Scalars:
    """The hyper vector taken apart: each value a tensor (1,).

    Write `tensor * scalar`, in this order: OneFlow's CPU kernel is hundreds of times slower the other way round.
    """

    vector: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return self.vector[int(index) : int(index) + 1]

    def learning_rate(self, group: int) -> Tensor:
        return self[HyperIndex.LEARNING_RATE_0 + group]

    def weight_decay(self, group: int) -> Tensor:
        return self[HyperIndex.WEIGHT_DECAY_0 + group]


@dataclass(frozen=True)
class _NewValues:
    parameter: Tensor
    first_moment: Tensor
    second_moment: Tensor | None


def update_parameters_reference(
    rule: UpdateRule,
    states: Sequence[ParameterState],
    gradients: Sequence[Tensor],
    hyper: Tensor,
    *,
    max_norm: float = MAX_GRADIENT_NORM,
) -> Tensor:
    """`update_parameters` composed of OneFlow ops, to be called without gradient recording."""
    scalars = _Scalars(hyper)
    sums = [state.gradient_sum + gradient for state, gradient in zip(states, gradients, strict=True)]
    unscaled = [total * scalars[HyperIndex.INVERSE_LOSS_SCALE] for total in sums]
    norm = _global_norm(unscaled)
    # Tensor by tensor: OneFlow divides a Python number by a tensor through the reciprocal, one rounding more.
    clip = (flow.ones_like(norm) * max_norm / (norm + 1e-6)).clamp(max=1.0)
    asked = scalars[HyperIndex.UPDATE] > 0
    finite = flow.isfinite(norm)
    updates = flow.logical_and(asked, finite)

    for state, total, gradient in zip(states, sums, unscaled, strict=True):
        new = _RULES[rule](state, gradient * clip, scalars)
        average = state.ema * scalars[HyperIndex.EMA_DECAY] + new.parameter * scalars[HyperIndex.ONE_MINUS_EMA_DECAY]
        # `where` and not a product with 0 or 1: a NaN that is not selected must vanish.
        _assign(state.gradient_sum, flow.where(asked, flow.zeros_like(total), total))
        _assign(state.parameter, flow.where(updates, new.parameter, state.parameter))
        _assign(state.first_moment, flow.where(updates, new.first_moment, state.first_moment))
        if new.second_moment is not None:
            _assign(state.second_moment, flow.where(updates, new.second_moment, state.second_moment))
        _assign(state.ema, flow.where(updates, average, state.ema))

    shown_norm = flow.where(asked, norm, norm * float("nan"))
    return flow.cat([shown_norm, updates.to(flow.float32)])


def _global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm (1,) of all tensors together, computed in float64: millions of squares are added."""
    squares = flow.stack([flow.square(gradient.to(flow.float64)).sum() for gradient in gradients])
    return flow.sqrt(squares.sum()).to(flow.float32).reshape(1)


def _sgd(state: ParameterState, gradient: Tensor, scalars: _Scalars) -> _NewValues:
    direction = gradient + state.parameter * scalars.weight_decay(state.group)
    momentum = scalars[HyperIndex.BETA1]
    velocity = state.first_moment * momentum + direction
    step = direction + velocity * momentum
    return _NewValues(state.parameter - step * scalars.learning_rate(state.group), velocity, None)


def _adam(state: ParameterState, gradient: Tensor, scalars: _Scalars) -> _NewValues:
    direction = gradient + state.parameter * scalars.weight_decay(state.group)
    return _adam_step(state, state.parameter, direction, scalars)


def _adamw(state: ParameterState, gradient: Tensor, scalars: _Scalars) -> _NewValues:
    kept = 1 - scalars.learning_rate(state.group) * scalars.weight_decay(state.group)
    return _adam_step(state, state.parameter * kept, gradient, scalars)


def _adam_step(state: ParameterState, parameter: Tensor, gradient: Tensor, scalars: _Scalars) -> _NewValues:
    mean = state.first_moment * scalars[HyperIndex.BETA1] + gradient * scalars[HyperIndex.ONE_MINUS_BETA1]
    square = state.second_moment * scalars[HyperIndex.BETA2] + gradient * gradient * scalars[HyperIndex.ONE_MINUS_BETA2]
    step_size = scalars.learning_rate(state.group) / scalars[HyperIndex.BIAS_CORRECTION1]
    denominator = flow.sqrt(square) / scalars[HyperIndex.BIAS_CORRECTION2_ROOT] + scalars[HyperIndex.EPS]
    return _NewValues(parameter - mean / denominator * step_size, mean, square)


_RULES: Mapping[UpdateRule, Callable[[ParameterState, Tensor, _Scalars], _NewValues]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


@cache
def _assign_op() -> Tensor:
    return flow.stateful_op("assign").Input("ref").Input("value").Build()


def _assign(target: Tensor, value: Tensor) -> None:
    """Copies value into target; unlike an in-place method this also writes parameters and buffers inside a graph."""
    # No dispatcher for this op is public. The one of sgd_update takes any op of two inputs; its attributes are unused.
    flow._C.dispatch_sgd_update(
        _assign_op(), (target, value), learning_rate=1.0, scale=1.0, l1=0.0, l2=0.0, weight_decay=0.0
    )


def _check_arguments(rule: str, states: Sequence[ParameterState], gradients: Sequence[Tensor]) -> None:
    if rule not in _RULES:
        raise ValueError(f"rule={rule!r}: choose one of {', '.join(_RULES)}")
    if not states or len(states) != len(gradients):
        raise ValueError(f"{len(states)} parameters and {len(gradients)} gradients: need one of each, and at least one")
    for index, (state, gradient) in enumerate(zip(states, gradients, strict=True)):
        if (state.second_moment is None) != (rule == "sgd"):
            raise ValueError(f"parameter {index}: rule {rule} {'has no' if rule == 'sgd' else 'needs a'} second moment")
        shape = tuple(state.parameter.shape)
        if tuple(gradient.shape) != shape:
            raise ValueError(f"parameter {index}: shape {shape} but gradient of shape {tuple(gradient.shape)}")
