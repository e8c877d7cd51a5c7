"""Learning rates, momentum and gradient accumulation, as pure functions of (iteration, epoch) in float64.

The schedule has no state: the driver calls `Schedule.at(iteration, epoch)` for each step, so a resumed run gets the
same values as an uninterrupted one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from graph_train.settings.hyperparameters import Hyperparameters

OptimizerName = Literal["SGD", "Adam", "AdamW"]
NOMINAL_BATCH = 64
"""Images per optimizer update; smaller batches are accumulated up to this number."""
EMA_DECAY, EMA_TAU = 0.9999, 2000.0


def linear(epochs: int, last_factor: float) -> Callable[[float], float]:
    """Return a learning-rate factor that falls linearly from 1 at epoch 0 to `last_factor` at `epochs`."""
    return lambda epoch: (1 - epoch / epochs) * (1.0 - last_factor) + last_factor


def one_cycle(start: float, end: float, steps: float) -> Callable[[float], float]:
    """Return a half cosine wave from `start` at step 0 to `end` at `steps` (arXiv:1812.01187)."""
    return lambda step: ((1 - math.cos(step * math.pi / steps)) / 2) * (end - start) + start


def warmup_iterations(warmup_epochs: float, batches_per_epoch: int) -> int:
    """Return the number of warm-up iterations: those of `warmup_epochs`, rounded half to even, but at least 100."""
    return max(round(warmup_epochs * batches_per_epoch), 100)


def full_accumulate(batch_size: int, nominal_batch: int = NOMINAL_BATCH) -> int:
    """Return the number of batches per optimizer update after warm-up: rounded half to even, at least 1."""
    return max(round(nominal_batch / batch_size), 1)


def scaled_weight_decay(weight_decay: float, batch_size: int, nominal_batch: int = NOMINAL_BATCH) -> float:
    """Scale the weight decay by the actual number of images per update, as YOLOv5 does."""
    return weight_decay * batch_size * full_accumulate(batch_size, nominal_batch) / nominal_batch


def ema_decay(updates: int, decay: float = EMA_DECAY, tau: float = EMA_TAU) -> float:
    """Return the EMA decay at an optimizer update (counted from 1); it rises from 0 to `decay`."""
    return decay * (1 - math.exp(-updates / tau))


def check_image_size(image_px: int, stride: int, floor_px: int = 0) -> int:
    """Round `image_px` up to a multiple of `stride`; the result is at least `floor_px`.

    Raises:
        ValueError: the size or the stride is below 1.
    """
    if image_px < 1 or stride < 1:
        raise ValueError(f"image size {image_px} with stride {stride}: both must be at least 1 px")
    return max(math.ceil(image_px / stride) * stride, floor_px)


@dataclass(frozen=True)
class IterationSettings:
    """Hyper-parameters of one iteration.

    The parameter groups are YOLOv5's: biases (group 0), weights with decay (1), normalisation weights (2).
    """

    lr_bias: float
    lr_weight: float
    lr_norm: float
    momentum: float
    """Momentum of SGD, with warm-up, or Adam's constant beta1."""
    update: bool
    """Whether the optimizer updates the weights at the end of this iteration."""

    @property
    def learning_rates(self) -> tuple[float, float, float]:
        """Learning rates in the order of the parameter groups, which is also that of `x/lr0`, `x/lr1`, `x/lr2`."""
        return self.lr_bias, self.lr_weight, self.lr_norm


@dataclass(frozen=True)
class Schedule:
    """Learning rates, momentum and accumulation of a whole run.

    Args:
        epochs, batches_per_epoch: length of the run.
        batch_size: images per batch, over all ranks.
        warmup: the last iteration of the warm-up.

    Two peculiarities of YOLOv5 are kept. During warm-up, and in the rest of the epoch in which warm-up ends, the
    learning-rate factor is that of the current epoch; in every later epoch it is that of the previous epoch, because
    YOLOv5's scheduler starts counting at -1. And updates are counted from the last update, not from the start of an
    epoch.
    """

    epochs: int
    batches_per_epoch: int
    batch_size: int
    warmup: int
    lr0: float = Hyperparameters.lr0
    lrf: float = Hyperparameters.lrf
    momentum: float = Hyperparameters.momentum
    warmup_momentum: float = Hyperparameters.warmup_momentum
    warmup_bias_lr: float = Hyperparameters.warmup_bias_lr
    weight_decay: float = Hyperparameters.weight_decay
    optimizer: OptimizerName = "SGD"
    cosine: bool = False
    nominal_batch: int = NOMINAL_BATCH

    def __post_init__(self) -> None:
        for name in ("epochs", "batches_per_epoch", "batch_size", "warmup", "nominal_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    @classmethod
    def from_hyperparameters(
        cls,
        hyp: Hyperparameters,
        *,
        epochs: int,
        batches_per_epoch: int,
        batch_size: int,
        optimizer: OptimizerName = "SGD",
        cosine: bool = False,
    ) -> "Schedule":
        """Return the schedule that YOLOv5's `train.py` would set up from a hyper-parameter file."""
        return cls(
            epochs=epochs,
            batches_per_epoch=batches_per_epoch,
            batch_size=batch_size,
            warmup=warmup_iterations(hyp.warmup_epochs, batches_per_epoch),
            lr0=hyp.lr0,
            lrf=hyp.lrf,
            momentum=hyp.momentum,
            warmup_momentum=hyp.warmup_momentum,
            warmup_bias_lr=hyp.warmup_bias_lr,
            weight_decay=hyp.weight_decay,
            optimizer=optimizer,
            cosine=cosine,
        )

    @property
    def accumulates(self) -> bool:
        """Whether some updates of the run accumulate several batches."""
        return full_accumulate(self.batch_size, self.nominal_batch) > 1

    @property
    def weight_decays(self) -> tuple[float, float, float]:
        """Weight decay of each parameter group, scaled to the batch size; constant over the run."""
        return 0.0, scaled_weight_decay(self.weight_decay, self.batch_size, self.nominal_batch), 0.0

    def at(self, iteration: int, epoch: int) -> IterationSettings:
        """Return the settings of an iteration of the run, in `epoch`; both are counted from 0."""
        lr_bias, lr_other = self._learning_rates(iteration, epoch)
        return IterationSettings(
            lr_bias=lr_bias,
            lr_weight=lr_other,
            lr_norm=lr_other,
            momentum=self._momentum(iteration),
            update=self._updates(iteration),
        )

    def epoch_factor(self, epoch: int) -> float:
        """Return the learning-rate factor of an epoch, before YOLOv5's shift by one epoch."""
        curve = one_cycle(1, self.lrf, self.epochs) if self.cosine else linear(self.epochs, self.lrf)
        return curve(epoch)

    def accumulate(self, iteration: int) -> int:
        """Return the number of batches per update at an iteration: it rises from 1 during warm-up."""
        if iteration > self.warmup:
            return full_accumulate(self.batch_size, self.nominal_batch)
        return max(1, round(self._ramp(iteration, 1, self.nominal_batch / self.batch_size)))

    def _ramp(self, iteration: int, start: float, end: float) -> float:
        return float(np.interp(iteration, [0, self.warmup], [start, end]))

    def _learning_rates(self, iteration: int, epoch: int) -> tuple[float, float]:
        if iteration <= self.warmup:
            target = self.lr0 * self.epoch_factor(epoch)
            return self._ramp(iteration, self.warmup_bias_lr, target), self._ramp(iteration, 0.0, target)
        warmup_ends = epoch == self.warmup // self.batches_per_epoch
        lr = self.lr0 * self.epoch_factor(epoch if warmup_ends else max(epoch - 1, 0))
        return lr, lr

    def _momentum(self, iteration: int) -> float:
        if self.optimizer != "SGD" or iteration > self.warmup:
            return self.momentum
        return self._ramp(iteration, self.warmup_momentum, self.momentum)

    @cached_property
    def _warmup_updates(self) -> tuple[frozenset[int], int]:
        """The warm-up iterations that update the weights, and the last one of them (-1: none)."""
        updating, last, iteration = set(), -1, 0
        # The run may end during warm-up; a typing error in `warmup_epochs` can make it billions of iterations long.
        end = min(self.warmup + 1, self.epochs * self.batches_per_epoch)
        while iteration < end:
            earliest = last + self.accumulate(iteration)
            if iteration < earliest:  # `accumulate` never falls, so no iteration in between updates
                iteration = earliest
                continue
            updating.add(iteration)
            last, iteration = iteration, iteration + 1
        return frozenset(updating), last

    def _updates(self, iteration: int) -> bool:
        updating, last = self._warmup_updates
        if iteration <= self.warmup:
            return iteration in updating
        # After warm-up, accumulation is constant, so updates come at fixed intervals.
        return (iteration - last) % full_accumulate(self.batch_size, self.nominal_batch) == 0
