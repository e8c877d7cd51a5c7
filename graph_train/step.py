"""One training step: images and labels in; loss, gradients and updates of all state; loss parts out.

It is written once, as the forward of a module, and executed in two ways: `EagerStep` calls the module, `GraphStep`
compiles it into one `oneflow.nn.Graph` for each shape it meets. What changes from step to step enters as small
tensors, so nothing is compiled again within a run but for a new shape.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from graph_train.placement import Placement
from graph_train.schedule import StepSettings, ema_decay
from graph_train.state import LOSS_SCALE_GROWTH_INTERVAL, Counters, TrainingState, member
from kernels.global_rows import kept_by_images
from kernels.graph_memory import compile_graph
from kernels.runtime import Tensor, flow
from kernels.update import hyper_vector, update_parameters

MAX_GRADIENT_NORM = 10.0
PIXEL_SCALE = 255.0
ADAM_BETA2 = 0.999
ADAM_EPSILON = 1e-8


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
    labels: tuple[int, ...]
    seconds: float


class StepModule(flow.nn.Module):
    """The step as a module. Inputs and outputs are tensors only, all shapes are fixed."""

    def __init__(self, state: TrainingState, criterion: Any, placement: Placement) -> None:
        super().__init__()
        self.state, self.criterion = state, criterion
        self._placement = placement

    def forward(self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Does the step.

        Args:
            images: (B, 3, H, W) uint8 RGB.
            labels: (B, T, 5) float32, class -1 for padding.
            hyper: settings of the update, see `kernels.update.hyper_vector`.
            extra: (2,) float32: loss scale times loss factor; share of the new running statistics in the pending EMA
                update.
        Returns:
            (6,) float32: total loss, box, objectness, classes, gradient norm, 1 if the weights were updated. Then all
            running statistics before the step, flat: they come back if the update is left out.
        """
        state = self.state
        before = self._average_statistics(extra)
        maps = [kept_by_images(level) for level in state.network(images.to(flow.float32) / PIXEL_SCALE)]
        parts = self.criterion(maps, labels)
        states = state.parameter_states()
        gradients = self._placement.flat_sum(_gradients(parts.total * extra[0], [item.parameter for item in states]))
        outcome = update_parameters(state.rule, states, gradients, hyper, max_norm=MAX_GRADIENT_NORM)
        losses = flow.stack([parts.total, parts.box, parts.objectness, parts.classes], dim=0)
        return flow.cat([losses.detach(), outcome], dim=0), before

    def _average_statistics(self, extra: Tensor) -> Tensor:
        """EMA of BatchNorm's running statistics as the previous step left them; returns those, flat."""
        state = self.state
        current = flow.cat([member(state.network, name).reshape(-1) for name in state.statistics], dim=0)
        # Not by a product with 0 where nothing is pending: an infinity that is there for now would stay for good.
        due = flow.where(extra[1:2] > 0, current, state.averaged_statistics)
        _subtract(state.averaged_statistics, (state.averaged_statistics - due) * extra[1:2])
        return current


def _subtract(target: Tensor, decrement: Tensor) -> None:
    """target -= decrement, also on a buffer inside a graph, where ordinary in-place ops do not write back."""
    op = _subtract_op()
    flow._C.dispatch_sgd_update(op, (target, decrement), learning_rate=1.0, scale=1.0, l1=0.0, l2=0.0, weight_decay=0.0)


def _subtract_op() -> Any:
    return flow.stateful_op("sgd_update").Input("model").Input("model_diff").Build()


def _gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Gradients by the tape; inside a graph the loss is declared first, which makes the graph a training graph."""
    internal = flow._oneflow_internal
    if loss.is_lazy:
        internal.nn.graph.AddTensorAsGraphLoss(loss)
    pack = flow.nn.modules.utils.TensorTuple if hasattr(flow.nn.modules.utils, "TensorTuple") else internal.TensorTuple
    grads = internal.autograd.grad(pack([loss]), pack(parameters), pack(), False, False)
    return list(grads)


class _StepGraph(flow.nn.Graph):
    """The whole step, captured."""

    def __init__(self, module: StepModule, *, amp: bool) -> None:
        super().__init__()
        self.step = module
        self.config._train(True)
        self.config.enable_amp(amp)

    def build(self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(images, labels, hyper, extra)


class TrainStep(Protocol):
    """One way to execute the step."""

    def __call__(self, images: Tensor, labels: Tensor, settings: StepSettings) -> StepResult:
        """Takes uint8 (B, 3, H, W) and (B, T, 5) on the device of the state; waits for the result."""
        ...


class _Step:
    """What both ways share: packing the settings, reading the result, counting."""

    def __init__(
        self,
        state: TrainingState,
        criterion: Any,
        *,
        weight_decays: tuple[float, float, float],
        amp: bool = False,
        loss_factor: float = 1.0,
        placement: Placement = Placement("cpu"),  # noqa: B008 - a frozen value
    ) -> None:
        """`loss_factor` multiplies the loss, and so the gradients: YOLOv5 takes four times the loss of quad batches."""
        self.state, self.criterion = state, criterion
        self._weight_decays = weight_decays
        self.amp = amp
        self._loss_factor = loss_factor
        self._module = StepModule(state, criterion, placement)
        self.placement = placement

    def __call__(self, images: Tensor, labels: Tensor, settings: StepSettings) -> StepResult:
        """See `TrainStep`."""
        counters = self.state.counters
        decay = ema_decay(counters.updates + 1)
        output, statistics = self._execute(images, labels, *self._scalars(settings, counters, decay))
        # The one read-back of a step: the driver needs the losses, and whether a non-finite gradient was skipped.
        values = self.placement.host(output).astype(np.float64)
        total, box, objectness, classes, norm = (float(value) for value in values[:5])
        updated = bool(values[5] > 0.5)
        result = StepResult(total, box, objectness, classes, norm, updated, skipped=settings.update and not updated)
        if not counters.accumulated:
            self.state.remember_statistics(statistics)
        if result.skipped:
            self.state.restore_statistics()
        self.state.network.count_batch()
        self.state.counters = _advance(counters, settings, result, decay, scaled=self.amp)
        return result

    def _scalars(self, settings: StepSettings, counters: Counters, decay: float) -> tuple[Tensor, Tensor]:
        hyper = hyper_vector(
            learning_rates=settings.learning_rates,
            weight_decays=self._weight_decays,
            momentum=settings.momentum,
            beta2=ADAM_BETA2,
            eps=ADAM_EPSILON,
            adam_step=counters.updates + 1,
            ema_decay=decay,
            loss_scale=counters.loss_scale,
            update=settings.update,
        )
        # The update divides by the loss scale alone, so the factor stays in the gradients.
        extra = np.array([counters.loss_scale * self._loss_factor, 1.0 - counters.pending_decay], np.float32)
        return self.placement.whole(np.asarray(hyper, np.float32)), self.placement.whole(extra)

    def _execute(self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError("use EagerStep or GraphStep")


class EagerStep(_Step):
    """Executes the step op by op."""

    def _execute(self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        self.state.network.train()
        if self.amp:
            with flow.autocast("cuda"):
                return self._module(images, labels, hyper, extra)
        return self._module(images, labels, hyper, extra)


class GraphStep(_Step):
    """Executes the step as one graph, compiled at the first batch of each shape and replayed ever after."""

    def __init__(
        self,
        state: TrainingState,
        criterion: Any,
        *,
        weight_decays: tuple[float, float, float],
        amp: bool = False,
        loss_factor: float = 1.0,
        placement: Placement = Placement("cpu"),  # noqa: B008 - a frozen value
        on_compile: Callable[[Compilation], None] = lambda _: None,
    ) -> None:
        super().__init__(
            state, criterion, weight_decays=weight_decays, amp=amp, loss_factor=loss_factor, placement=placement
        )
        self._graphs: dict[tuple[tuple[int, ...], tuple[int, ...]], _StepGraph] = {}
        self._on_compile = on_compile
        self.compilations: list[Compilation] = []
        self.replayed = 0

    def summary(self) -> str:
        """What was compiled and how often it was used."""
        seconds = sum(event.seconds for event in self.compilations)
        shapes = ", ".join("x".join(map(str, event.images)) + f" T{event.labels[1]}" for event in self.compilations)
        return f"Graph: {len(self.compilations)} compiled in {seconds:.1f} s ({shapes}), {self.replayed} steps replayed"

    def _execute(self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        graph = self._graphs.get((tuple(images.shape), tuple(labels.shape)))
        if graph is not None:
            self.replayed += 1
            return graph(images, labels, hyper, extra)
        return self._compile(images, labels, hyper, extra)(images, labels, hyper, extra)

    def prepare(self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: StepSettings) -> None:
        """Compiles for a shape and reserves its memory, without a step; a shape that is there already costs nothing."""
        if (tuple(images_shape), tuple(labels_shape)) in self._graphs:
            return
        images = self.placement.empty_batch(images_shape, flow.uint8)
        labels = self.placement.empty_batch(labels_shape, flow.float32)
        self._compile(images, labels, *self._scalars(settings, self.state.counters, ema_decay(1)))

    def _compile(self, images: Tensor, labels: Tensor, hyper: Tensor, extra: Tensor) -> _StepGraph:
        self.state.network.train()
        graph = _StepGraph(self._module, amp=self.amp)
        started = time.perf_counter()
        compile_graph(graph, images, labels, hyper, extra)
        key = (tuple(images.shape), tuple(labels.shape))
        self._graphs[key] = graph
        self.compilations.append(Compilation(*key, seconds=time.perf_counter() - started))
        self._on_compile(self.compilations[-1])
        return graph


def compile_seconds(step: TrainStep) -> float:
    """Seconds that a step has spent on compiling so far; 0 for one that does not compile."""
    return sum(event.seconds for event in step.compilations) if isinstance(step, GraphStep) else 0.0


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
