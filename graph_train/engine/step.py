"""One training step: images and labels in; loss, gradients and updates of all state; loss parts out.

It is written once, as the forward of a module, and executed in two ways: `EagerStep` calls the module, `GraphStep`
compiles it into one `oneflow.nn.Graph` for each shape it meets. What changes from step to step enters as small
tensors, so nothing is compiled again within a run but for a new shape.

Several ranks that accumulate batches are the one exception: there the step has two parts, so that batches without an
update send no gradients. The first ends with each rank's partial sums, the second begins with their sum over the ranks.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.engine.schedule import StepSettings, ema_decay
from graph_train.engine.state import LOSS_SCALE_GROWTH_INTERVAL, Counters, TrainingState
from graph_train.ranks.placement import Placement
from kernels.framework.activation_type import ActivationType
from kernels.framework.global_rows import local_shard, sharded_by_batch
from kernels.framework.graph_memory import compile_graph
from kernels.ops.statistics.function import average_statistics
from kernels.ops.update.function import hyper_vector, update_parameters
from kernels.runtime import Tensor, flow
from models.layers import member, plain

ADAM_BETA2 = 0.999
ADAM_EPSILON = 1e-8
NO_UPDATE = (math.nan, 0.0)
"""What `update_parameters` returns for a batch that only accumulates."""

SHARE = 1
"""Where the share of the new running statistics stands in the `extra` vector of a step; the loss scale comes first."""

Values = npt.NDArray[np.float64]
"""What a step reports: gradient norm, 1 if the weights were updated, total, box, objectness and class loss."""


@dataclass(frozen=True)
class StepResult:
    """What a step reports, read back to the host."""

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
        """Such as 16x3x320x320 T32: the shape of the images, and label slots for each."""
        slots = f" T{self.labels[1]}" if self.labels else " gradients"
        return "x".join(map(str, self.images)) + slots


class _Backward(flow.nn.Module):
    """What the whole step and its first part share: all of it but the update."""

    def __init__(self, state: TrainingState, criterion: Any, placement: Placement) -> None:
        super().__init__()
        self.state, self.criterion = state, criterion
        self._placement = placement

    def _backward(self, images: Tensor, labels: Tensor, extra: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Losses, total (1,) and parts (3 + n,); gradients of the trained parameters; running statistics before."""
        state = self.state
        before = self._average_statistics(extra)
        maps = [sharded_by_batch(level) for level in state.network.raw_maps(images)]
        parts = self.criterion(maps, labels, extra)
        gradients = _gradients(parts.total, [member(state.network, name) for name in state.trained])
        total = parts.total.detach()
        return [total if total.ndim else total.reshape(1), parts.parts], gradients, before

    def _average_statistics(self, extra: Tensor) -> Tensor:
        """EMA of BatchNorm's running statistics as the previous step left them; returns those, flat."""
        state = self.state
        current = [plain(member(state.network, name)) for name in state.statistics]
        return average_statistics(current, plain(state.averaged_statistics), extra, SHARE)


class StepModule(_Backward):
    """The step as a module. Inputs and outputs are tensors only, all shapes are fixed."""

    def forward(self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Does the step.

        Args:
            images: (B, 3, H, W) uint8 RGB.
            labels: (B, T, 5) float32, class -1 for padding.
            hyper: settings of the update, see `kernels.ops.update.function.hyper_vector`.
            extra: (2,) float32: loss scale times loss factor; share of the new running statistics in the pending EMA
                update.
        Returns:
            (6 + n,) float32: gradient norm, 1 if the weights were updated; total loss, box, objectness, classes and
            more of `LossParts.parts`. Then all running statistics before the step, flat: they come back if the update
            is left out.
        """
        losses, gradients, before = self._backward(images, labels, extra)
        outcome = _apply(self.state, self._placement.all_reduce_gradients(gradients), hyper)
        return flow.cat([outcome, *losses], dim=0), before


class BackwardModule(_Backward):
    """The step's first part, of several ranks: no gradient is sent, no weight changes."""

    def forward(self, images: Tensor, labels: Tensor, extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Does it; arguments as in `StepModule.forward`.

        Returns:
            (4 + n,) float32: the losses; the running statistics before the step; the partial gradient sums.
        """
        losses, gradients, before = self._backward(images, labels, extra)
        return flow.cat(losses, dim=0), before, self._placement.partial_gradient_sum(gradients)


class UpdateModule(flow.nn.Module):
    """The step's second part."""

    def __init__(self, state: TrainingState, placement: Placement) -> None:
        super().__init__()
        self.state = state
        self._placement = placement

    def forward(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        """Sums (n,) gradients over the ranks and updates; (2,) float32: gradient norm, 1 if the weights changed."""
        with flow.no_grad():
            return _apply(self.state, [self._placement.all_reduce_sum(partial_sums)], hyper)


def _apply(state: TrainingState, gradients: list[Tensor], hyper: Tensor) -> Tensor:
    return update_parameters(state.rule, state.update_state(), gradients, hyper)


def _gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Gradients by the tape; inside a graph the loss is declared first, which makes the graph a training graph."""
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
        """Take uint8 (B, 3, H, W) and (B, T, 5) on the device of the state, and wait for the result."""
        counters = self.state.counters
        decay = ema_decay(counters.updates + 1)
        hyper, extra = self._scalars(settings, counters, decay)
        if self._in_parts:
            values, statistics = self._two_parts(images, labels, hyper, extra, update=settings.update)
        else:
            values, statistics = self._whole_step(images, labels, hyper, extra)
        norm, _, total, box, objectness, classes = (float(value) for value in values[:6])
        updated = bool(values[1] > 0.5)
        result = StepResult(total, box, objectness, classes, norm, updated, skipped=settings.update and not updated)
        if not counters.accumulated:
            self.state.remember_statistics(statistics)
        if result.skipped:
            self.state.restore_statistics()
        self.state.network.count_batch()
        self.state.counters = _advance(counters, settings, result, decay, scaled=self._scales_loss)
        return result

    def _whole_step(self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor) -> tuple[Values, Tensor]:
        output, statistics = self._execute(images, labels, hyper, extra)
        # The one read-back of a step: the driver needs the losses, and whether a non-finite gradient was skipped.
        return self.placement.to_numpy(output).astype(np.float64), statistics

    def _two_parts(
        self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor, *, update: bool
    ) -> tuple[Values, Tensor]:
        losses, statistics, partial_sums = self._execute(images, labels, extra)
        if update:
            own = self.state.take_own_gradients(local_shard(partial_sums))
            outcome = self.placement.to_numpy(self._update(self.placement.as_partial_sum(own), hyper))
        else:
            self.state.keep_own_gradients(local_shard(partial_sums))
            outcome = np.array(NO_UPDATE, np.float32)
        return np.concatenate([outcome, self.placement.to_numpy(losses)]).astype(np.float64), statistics

    def _scalars(self, settings: StepSettings, counters: Counters, decay: float) -> tuple[Tensor, Tensor]:
        hyper = hyper_vector(
            learning_rates=settings.learning_rates,
            weight_decays=self._config.weight_decays,
            momentum=settings.momentum,
            beta2=ADAM_BETA2,
            eps=ADAM_EPSILON,
            adam_step=counters.updates + 1,
            ema_decay=decay,
            loss_scale=counters.loss_scale,
            update=settings.update,
        )
        # The update divides by the loss scale alone, so the factor stays in the gradients.
        extra = np.array([counters.loss_scale * self._config.loss_factor, 1.0 - counters.pending_decay], np.float32)
        return self.placement.replicate(np.asarray(hyper, np.float32)), self.placement.replicate(extra)

    @abstractmethod
    def _execute(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> Any:
        """Run the step, or its first part."""

    @abstractmethod
    def _update(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        """Run the second part."""


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
        hyper, extra = self._scalars(settings, self.state.counters, ema_decay(1))
        self._compile(images, labels, *((extra,) if self._in_parts else (hyper, extra)))

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


def _advance(counters: Counters, settings: StepSettings, result: StepResult, decay: float, *, scaled: bool) -> Counters:
    """Counters after a step. A skipped update leaves the EMA alone and, with a loss scale, halves it."""
    moved = replace(counters, pending_decay=1.0, accumulated=0 if settings.update else counters.accumulated + 1)
    if not settings.update:
        return moved
    if not result.updated:
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
        pending_decay=decay,
        good_updates=counters.good_updates + 1,
        skipped_in_row=0,
    )
    if scaled and moved.good_updates >= LOSS_SCALE_GROWTH_INTERVAL:
        return replace(moved, loss_scale=moved.loss_scale * 2, good_updates=0)
    return moved
