"""One training step: images and labels in; loss, gradients and updates of all state; loss parts out.

It is written once, as the forward of a module, and executed in two ways: `EagerStep` calls the module, `GraphStep`
compiles it into one `oneflow.nn.Graph` for each shape it meets. What changes from step to step enters as small
tensors, so nothing is compiled again within a run but for a new shape.

The host need not wait for a step before it starts the next. How a step ends decides some scalars of the next one, so
these are sent for both ways, and the device chooses (`kernels.ops.begin_step`).

Several ranks that accumulate batches are the one exception: there the step has two parts, so that batches without an
update send no gradients. The first ends with each rank's partial sums, the second begins with their sum over the ranks.
"""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.engine.schedule import StepSettings, ema_decay
from graph_train.engine.state import LOSS_SCALE_GROWTH_INTERVAL, Counters, TrainingState
from graph_train.ranks.placement import Placement
from kernels.framework.activation_type import ActivationType
from kernels.framework.coverage import covered_ops, job_ops, uncovered_ops
from kernels.framework.global_rows import local_shard, sharded_by_batch
from kernels.framework.graph_memory import compile_graph
from kernels.ops.begin_step.function import begin_step
from kernels.ops.update.function import HyperIndex, hyper_vector, update_parameters
from kernels.runtime import Tensor, flow
from models.layers import member, plain

ADAM_BETA2 = 0.999
ADAM_EPSILON = 1e-8
NO_UPDATE = (math.nan, 0.0)
"""What `update_parameters` returns for a batch that only accumulates."""


@dataclass(frozen=True)
class StepResult:
    """The results of a step, read back to the host."""

    total: float
    """Sum of the parts times the batch size: what was differentiated."""
    box: float
    objectness: float
    classes: float
    gradient_norm: float
    """L2 norm of the accumulated gradient before clipping; meaningless where no update was due."""
    updated: bool
    skipped: bool
    """An update was due and left out, because a gradient was not finite."""

    @property
    def finite(self) -> bool:
        """Whether losses and, where an update was due, gradients were."""
        return math.isfinite(self.total) and not self.skipped


@dataclass(frozen=True)
class Compilation:
    """One graph that was compiled."""

    images: tuple[int, ...]
    """Of the second part of a step: (n,), all gradients."""
    labels: tuple[int, ...]
    seconds: float

    def __str__(self) -> str:
        """Return a text such as 16x3x320x320 T32: the shape of the images, and label slots for each."""
        slots = f" T{self.labels[1]}" if self.labels else " gradients"
        return "x".join(map(str, self.images)) + slots


class _Backward(flow.nn.Module):
    """The common part of the whole step and its first part: all of it but the update."""

    def __init__(self, state: TrainingState, criterion: Any, placement: Placement) -> None:
        super().__init__()
        self.state, self.criterion = state, criterion
        self._placement = placement

    def _backward(
        self, images: Tensor, labels: Tensor, rows: Tensor, previous: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return losses, total (1,) and parts (3 + n,); gradients of the trained parameters; settings of the update."""
        state = self.state
        # The averages of the statistics are those of the previous step: what a call writes, only the next can read.
        current = [plain(member(state.network, name)) for name in state.statistics]
        hyper, scale = begin_step(current, plain(state.averaged_statistics), rows, previous, size=len(HyperIndex))
        maps = [sharded_by_batch(level) for level in state.network.raw_maps(images)]
        parts = self.criterion(maps, labels, scale)
        gradients = _gradients(parts.total, [member(state.network, name) for name in state.trained])
        total = parts.total.detach()
        return [total if total.ndim else total.reshape(1), parts.parts], gradients, hyper


class StepModule(_Backward):
    """The step as a module. Inputs and outputs are tensors only, all shapes are fixed."""

    def forward(self, images: Tensor, labels: Tensor, rows: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Run the step.

        Args:
            images: (B, 3, H, W) uint8 RGB.
            labels: (B, T, 5) float32, class -1 for padding.
            rows: (2, 19) float32, as `kernels.ops.begin_step` takes them: settings of the update, see
                `kernels.ops.update.function.hyper_vector`; loss scale times loss factor; share of the new running
                statistics in the pending EMA update.
            previous: (2,) float32: outcome of the previous step.
        Returns:
            (6 + n,) float32: gradient norm, 1 if the weights were updated; total loss, box, objectness, classes and
            more of `LossParts.parts`. Then the first two of them again: the outcome, for the next step.
        """
        losses, gradients, hyper = self._backward(images, labels, rows, previous)
        outcome = _apply(self.state, self._placement.all_reduce_gradients(gradients), hyper)
        return flow.cat([outcome, *losses], dim=0), outcome


class BackwardModule(_Backward):
    """The step's first part, of several ranks: no gradient is sent, no weight changes."""

    def forward(self, images: Tensor, labels: Tensor, rows: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the first part; arguments as in `StepModule.forward`.

        Returns:
            (4 + n,) float32: the losses; the settings of the update; the partial gradient sums.
        """
        losses, gradients, hyper = self._backward(images, labels, rows, previous)
        return flow.cat(losses, dim=0), hyper, self._placement.partial_gradient_sum(gradients)


class UpdateModule(flow.nn.Module):
    """The step's second part."""

    def __init__(self, state: TrainingState, placement: Placement) -> None:
        super().__init__()
        self.state = state
        self._placement = placement

    def forward(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        """Sum (n,) gradients over the ranks and update.

        Return (2,) float32: gradient norm, 1 if the weights changed.
        """
        with flow.no_grad():
            return _apply(self.state, [self._placement.all_reduce_sum(partial_sums)], hyper)


def _apply(state: TrainingState, gradients: list[Tensor], hyper: Tensor) -> Tensor:
    return update_parameters(state.rule, state.update_state(), gradients, hyper)


def _gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Return the gradients; inside a graph, declare the loss first, which makes it a training graph."""
    internal = flow._oneflow_internal
    if loss.is_lazy:
        internal.nn.graph.AddTensorAsGraphLoss(loss)
    pack = internal.TensorTuple
    grads = internal.autograd.grad(pack([loss]), pack(parameters), pack(), False, False)
    return list(grads)


class _StepGraph(flow.nn.Graph):
    """The whole step or a part of it, captured."""

    def __init__(self, module: Any, *, differentiates: bool = True) -> None:
        super().__init__()
        self.step = module
        self.config._train(differentiates)

    def build(self, *inputs: Tensor) -> Any:
        return self.step(*inputs)


@dataclass(frozen=True)
class StepConfig:
    """Settings of a step that stay the same for the whole run.

    Attributes:
        weight_decays: of biases, weights and BatchNorm's weights, in the order of `StepSettings.learning_rates`.
        loss_factor: multiplies the loss, and so the gradients: YOLOv5 takes four times the loss of quad batches.
        placement: the ranks that share the step.
        accumulates: some updates add up several batches; several ranks then take the step in two parts.
    """

    weight_decays: tuple[float, float, float]
    loss_factor: float = 1.0
    placement: Placement = Placement("cpu")  # noqa: RUF009 - a frozen value
    accumulates: bool = False


@dataclass(frozen=True)
class _Started:
    """A step whose result is not on the host yet.

    Attributes:
        values: (6 + n,) as `StepModule` returns them; of a step in two parts (2,), then (4 + n,).
    """

    settings: StepSettings
    values: Sequence[Tensor | npt.NDArray[np.float32]]


class TrainStep(ABC):
    """The training step as the driver calls it, executed op by op (`EagerStep`) or as a graph (`GraphStep`)."""

    compiles: bool
    """Whether each new shape of a batch is compiled at first."""

    def __init__(self, state: TrainingState, criterion: Any, config: StepConfig) -> None:
        placement = config.placement
        self.state, self.criterion, self.placement = state, criterion, placement
        self._config = config
        self._scales_loss = state.network.activation_type is ActivationType.FLOAT16
        self._in_parts = config.accumulates and placement.distributed
        self._module = (BackwardModule if self._in_parts else StepModule)(state, criterion, placement)
        self._update_module = UpdateModule(state, placement)
        self._started: deque[_Started] = deque()
        self._previous = placement.replicate(np.array(NO_UPDATE, np.float32))

    @property
    @abstractmethod
    def compile_seconds(self) -> float:
        """Seconds spent on compiling so far."""

    @abstractmethod
    def prepare(self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: StepSettings) -> None:
        """Compile for a shape and reserve its memory, without a step; do nothing if that is not needed."""

    @abstractmethod
    def summary(self) -> str:
        """Return what was compiled and how often it was used; "" if nothing was."""

    def __call__(self, images: Tensor, labels: Tensor, settings: StepSettings) -> StepResult:
        """Start a step and finish it."""
        self.start(images, labels, settings)
        return self.finish()

    def start(self, images: Tensor, labels: Tensor, settings: StepSettings) -> None:
        """Take uint8 (B, 3, H, W) and (B, T, 5) on the device of the state, without waiting for the result.

        Raises:
            RuntimeError: two steps have been started and not finished.
        """
        rows = self._rows(settings)
        values = (self._two_parts if self._in_parts else self._whole_step)(images, labels, rows, settings)
        self._started.append(_Started(settings, values))

    def finish(self) -> StepResult:
        """Wait for the oldest step that was started and not finished, and count it."""
        started = self._started.popleft()
        values = np.concatenate([self._on_host(value) for value in started.values]).astype(np.float64)
        norm, _, total, box, objectness, classes = (float(value) for value in values[:6])
        updated = bool(values[1] > 0.5)
        skipped = started.settings.update and not updated
        self.state.network.count_batch()
        self.state.counters = self._counters_after(started.settings, updated=updated)
        return StepResult(total, box, objectness, classes, norm, updated, skipped)

    def _on_host(self, values: Tensor | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return values if isinstance(values, np.ndarray) else self.placement.to_numpy(values)

    def _whole_step(
        self, images: Tensor, labels: Tensor, rows: Tensor, _settings: StepSettings
    ) -> Sequence[Tensor | npt.NDArray[np.float32]]:
        values, self._previous = self._execute(images, labels, rows, self._previous)
        return [values]

    def _two_parts(
        self, images: Tensor, labels: Tensor, rows: Tensor, settings: StepSettings
    ) -> Sequence[Tensor | npt.NDArray[np.float32]]:
        losses, hyper, partial_sums = self._execute(images, labels, rows, self._previous)
        if not settings.update:
            self.state.keep_own_gradients(local_shard(partial_sums))
            return [np.array(NO_UPDATE, np.float32), losses]
        own = self.state.take_own_gradients(local_shard(partial_sums))
        self._previous = self._update(self.placement.as_partial_sum(own), hyper)
        return [self._previous, losses]

    def _rows(self, settings: StepSettings) -> Tensor:
        """Return the scalars of a step for both outcomes of the step before it, as `StepModule.forward` takes them."""
        if len(self._started) > 1:
            raise RuntimeError("two steps have been started; finish the older one first")
        possible = [self.state.counters] * 2
        if self._started:
            possible = [self._counters_after(self._started[0].settings, updated=updated) for updated in (True, False)]
        scalars = {counters: self._scalars(settings, counters) for counters in possible}  # mostly one
        return self.placement.replicate(np.stack([scalars[counters] for counters in possible]))

    def _counters_after(self, settings: StepSettings, *, updated: bool) -> Counters:
        return _advance(self.state.counters, settings, updated=updated, scaled=self._scales_loss)

    def _scalars(self, settings: StepSettings, counters: Counters) -> npt.NDArray[np.float32]:
        hyper = hyper_vector(
            learning_rates=settings.learning_rates,
            weight_decays=self._config.weight_decays,
            momentum=settings.momentum,
            beta2=ADAM_BETA2,
            eps=ADAM_EPSILON,
            adam_step=counters.updates + 1,
            ema_decay=ema_decay(counters.updates + 1),
            loss_scale=counters.loss_scale,
            update=settings.update,
        )
        # The update divides by the loss scale alone, so the factor stays in the gradients.
        others = np.array([counters.loss_scale * self._config.loss_factor, 1.0 - counters.pending_decay], np.float32)
        return np.concatenate([hyper, others])

    @abstractmethod
    def _execute(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> Any:
        """Run the step, or its first part."""

    @abstractmethod
    def _update(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        """Run the second part."""

    def uncovered_ops(
        self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: StepSettings
    ) -> list[str]:
        """Return the ops of the step that neither a CUDA kernel of ours nor a copy computes, without executing it."""
        self.state.network.train()
        images = self.placement.empty_batch(images_shape, flow.uint8)
        labels = self.placement.empty_batch(labels_shape, flow.float32)
        graph = _StepGraph(self._module)
        graph.build_graph(images, labels, self._rows(settings), self._previous)
        return uncovered_ops(job_ops(graph._full_job_proto), covered_ops())


class EagerStep(TrainStep):
    """The step, executed op by op."""

    compiles = False
    compile_seconds = 0.0

    def prepare(self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: StepSettings) -> None:
        """See `TrainStep`: nothing is compiled."""

    def summary(self) -> str:
        """See `TrainStep`."""
        return ""

    def _execute(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> Any:
        self.state.network.train()
        return self._module(images, labels, *scalars)

    def _update(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        return self._update_module(partial_sums, hyper)


class GraphStep(TrainStep):
    """The step as one graph, compiled at the first batch of each shape and replayed ever after."""

    compiles = True

    def __init__(
        self,
        state: TrainingState,
        criterion: Any,
        config: StepConfig,
        on_compile: Callable[[Compilation], None] = lambda _: None,
    ) -> None:
        super().__init__(state, criterion, config)
        self._graphs: dict[tuple[tuple[int, ...], tuple[int, ...]], _StepGraph] = {}
        self._update_graph: _StepGraph | None = None
        self._on_compile = on_compile
        self.compilations: list[Compilation] = []
        self.replayed = 0

    @property
    def compile_seconds(self) -> float:
        """See `TrainStep`."""
        return sum(event.seconds for event in self.compilations)

    def summary(self) -> str:
        """See `TrainStep`."""
        if not self.compilations:
            return ""
        compiled = f"{len(self.compilations)} compiled in {self.compile_seconds:.1f} s"
        return f"Graph: {compiled} ({', '.join(map(str, self.compilations))}), {self.replayed} steps replayed"

    def _execute(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> Any:
        graph = self._graphs.get((tuple(images.shape), tuple(labels.shape)))
        if graph is not None:
            self.replayed += 1
            return graph(images, labels, *scalars)
        return self._compile(images, labels, *scalars)(images, labels, *scalars)

    def _update(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        if self._update_graph is None:
            self._update_graph = _StepGraph(self._update_module, differentiates=False)
            self._compile_timed(self._update_graph, (tuple(partial_sums.shape), ()), partial_sums, hyper)
        return self._update_graph(partial_sums, hyper)

    def prepare(self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: StepSettings) -> None:
        """See `TrainStep`; a shape that was compiled already costs nothing."""
        if (tuple(images_shape), tuple(labels_shape)) in self._graphs:
            return
        images = self.placement.empty_batch(images_shape, flow.uint8)
        labels = self.placement.empty_batch(labels_shape, flow.float32)
        self._compile(images, labels, self._rows(settings), self._previous)

    def _compile(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> _StepGraph:
        self.state.network.train()
        graph = _StepGraph(self._module)
        key = (tuple(images.shape), tuple(labels.shape))
        self._compile_timed(graph, key, images, labels, *scalars)
        self._graphs[key] = graph
        return graph

    def _compile_timed(
        self, graph: _StepGraph, shapes: tuple[tuple[int, ...], tuple[int, ...]], *inputs: Tensor
    ) -> None:
        started = time.perf_counter()
        compile_graph(graph, *inputs)
        self.compilations.append(Compilation(*shapes, seconds=time.perf_counter() - started))
        self._on_compile(self.compilations[-1])


def _advance(counters: Counters, settings: StepSettings, *, updated: bool, scaled: bool) -> Counters:
    """Return the counters after a step. A skipped update leaves the EMA alone and, with a loss scale, halves it."""
    moved = replace(counters, pending_decay=1.0)
    if not settings.update:
        return moved
    if not updated:
        smaller = counters.loss_scale / 2 if scaled else counters.loss_scale
        return replace(
            moved,
            skipped=counters.skipped + 1,
            skipped_in_row=counters.skipped_in_row + 1,
            loss_scale=smaller,
            good_updates=0,
        )
    moved = replace(
        moved,
        updates=counters.updates + 1,
        pending_decay=ema_decay(counters.updates + 1),
        good_updates=counters.good_updates + 1,
        skipped_in_row=0,
    )
    if scaled and moved.good_updates >= LOSS_SCALE_GROWTH_INTERVAL:
        return replace(moved, loss_scale=moved.loss_scale * 2, good_updates=0)
    return moved
