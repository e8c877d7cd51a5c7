"""The training step: forward, backward and the update of all state for one batch.

The step is written once, as the forward of a module, and executed in two ways: `EagerStep` calls the module, and
`GraphStep` compiles it into one `oneflow.nn.Graph` per batch shape. Values that change from step to step are inputs in
the form of small tensors, so only a new shape causes a compilation.

The host can start a step before the previous one has finished. Some scalars depend on whether the previous step
updated the weights, so they are passed for both outcomes and the device selects (`kernels.ops.begin_step`).

When several ranks accumulate gradients, the step is split in two, so that batches without an update transfer no
gradients: the first part ends with each rank's partial sums, the second starts with their sum over the ranks.
"""

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.engine.schedule import IterationSettings, ema_decay
from graph_train.engine.state import Counters, TrainingState
from graph_train.ranks.placement import Placement
from kernels.framework.activation_type import ActivationType
from kernels.framework.coverage import covered_ops, job_ops, uncovered_ops
from kernels.framework.eager_runs import EagerRuns
from kernels.framework.global_rows import local_shard, sharded_by_batch
from kernels.framework.graph_memory import built_job, compile_graph, compiled_job
from kernels.framework.module_graph import ModuleGraph, gradients_of
from kernels.ops.begin_step.function import begin_step
from kernels.ops.update.function import HyperIndex, UpdateSettings, update_parameters
from kernels.runtime import Tensor, flow
from models.layers import get_attribute, tensor_of
from models.loss import DetectionLoss

ADAM_BETA2 = 0.999
ADAM_EPSILON = 1e-8
NO_UPDATE = (math.nan, 0.0)
"""The result of `update_parameters` for a batch that only accumulates gradients."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step, on the host."""

    total: float
    """The differentiated loss: the sum of the parts times the batch size."""
    box: float
    objectness: float
    classes: float
    gradient_norm: float
    """L2 norm of the accumulated gradient before clipping; NaN if no update was due."""
    updated: bool
    skipped: bool
    """Whether an update was due but skipped because a gradient was not finite."""

    @property
    def finite(self) -> bool:
        """Whether the loss and, if an update was due, the gradients are finite."""
        return math.isfinite(self.total) and not self.skipped


@dataclass(frozen=True)
class Compilation:
    """A compiled graph."""

    images: tuple[int, ...]
    """Shape of the images; for the second part of a step, (n,), the shape of the flat gradients."""
    labels: tuple[int, ...]
    """Shape of the labels; () for the second part of a step."""
    seconds: float

    def __str__(self) -> str:
        """Return for instance "16x3x320x320 T32": the shape of the images and the label capacity per image."""
        slots = f" T{self.labels[1]}" if self.labels else " gradients"
        return "x".join(map(str, self.images)) + slots


class _Backward(flow.nn.Module):
    """Forward and backward, shared by the whole step and the first part of a split step."""

    def __init__(self, state: TrainingState, criterion: DetectionLoss, placement: Placement) -> None:
        super().__init__()
        self.state, self.criterion = state, criterion
        self._placement = placement

    def _backward(
        self, images: Tensor, labels: Tensor, rows: Tensor, previous: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the losses, total (1,) and parts (3 + n,); the gradients; the settings of the update."""
        state = self.state
        # Averages the statistics of the previous step: a graph can read what it writes only in its next call.
        current = [tensor_of(get_attribute(state.network, name)) for name in state.statistics]
        hyper, scale = begin_step(current, tensor_of(state.averaged_statistics), rows, previous, size=len(HyperIndex))
        maps = [sharded_by_batch(level) for level in state.network.raw_maps(images)]
        parts = self.criterion(maps, labels, scale)
        gradients = gradients_of(parts.total, [get_attribute(state.network, name) for name in state.trained])
        total = parts.total.detach()
        return [total if total.ndim else total.reshape(1), parts.parts], gradients, hyper


class StepModule(_Backward):
    """The whole step as a module with tensors of fixed shapes as inputs and outputs."""

    def forward(self, images: Tensor, labels: Tensor, rows: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Run the step.

        Args:
            images: (B, 3, H, W) uint8 RGB.
            labels: (B, T, 5) float32, class -1 for padding.
            rows: (2, 19) float32, one row per outcome of the previous step, see `kernels.ops.begin_step`: settings of
                the update (`kernels.ops.update.function.UpdateSettings`), loss scale times loss factor, and the weight
                of the new running statistics in the pending EMA update.
            previous: (2,) float32, the outcome of the previous step.
        Returns:
            Values (6 + n,) float32: gradient norm, 1 if the weights were updated, total loss, and `LossParts.parts`
            (box, objectness, classes, …). Outcome (2,): the first two values, to pass to the next step.
        """
        losses, gradients, hyper = self._backward(images, labels, rows, previous)
        outcome = _apply(self.state, self._placement.all_reduce_gradients(gradients), hyper)
        return flow.cat([outcome, *losses], dim=0), outcome


class BackwardModule(_Backward):
    """The first part of a split step: transfers no gradients and updates no weights."""

    def forward(self, images: Tensor, labels: Tensor, rows: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run forward and backward; arguments as in `StepModule.forward`.

        Returns:
            The losses (4 + n,) float32; the settings of the update; the partial gradient sums.
        """
        losses, gradients, hyper = self._backward(images, labels, rows, previous)
        return flow.cat(losses, dim=0), hyper, self._placement.partial_gradient_sum(gradients)


class UpdateModule(flow.nn.Module):
    """The second part of a split step: sums gradients over the ranks and updates the weights."""

    def __init__(self, state: TrainingState, placement: Placement) -> None:
        super().__init__()
        self.state = state
        self._placement = placement

    def forward(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        """Sum the gradients (n,) over the ranks and update; return gradient norm and 1 if updated, (2,) float32."""
        with flow.no_grad():
            return _apply(self.state, [self._placement.all_reduce_sum(partial_sums)], hyper)


def _apply(state: TrainingState, gradients: list[Tensor], hyper: Tensor) -> Tensor:
    return update_parameters(state.rule, state.update_state(), gradients, hyper)


@dataclass(frozen=True)
class StepConfig:
    """Settings of the step that are constant over a run.

    Attributes:
        weight_decays: weight decay per parameter group, in the order of `IterationSettings.learning_rates`.
        loss_factor: factor on the loss and so on the gradients; YOLOv5 multiplies the loss of quad batches by four.
        placement: the ranks that share the step.
        accumulates: whether some updates accumulate several batches; with several ranks, the step is then split in two.
    """

    weight_decays: tuple[float, float, float]
    loss_factor: float = 1.0
    placement: Placement = Placement("cpu")  # noqa: RUF009 - a frozen value
    accumulates: bool = False


@dataclass(frozen=True)
class _PendingStep:
    """A step that was started and whose result is not on the host yet.

    Attributes:
        values: the (6 + n,) values of `StepModule`; for a split step, the outcome (2,) and the losses (4 + n,).
    """

    settings: IterationSettings
    values: Sequence[Tensor | npt.NDArray[np.float32]]


class TrainStep(ABC):
    """Base of the training step, which is executed op by op (`EagerStep`) or as a graph (`GraphStep`)."""

    compiles: bool
    """Whether a new batch shape causes a compilation."""

    def __init__(self, state: TrainingState, criterion: DetectionLoss, config: StepConfig) -> None:
        placement = config.placement
        self.state, self.criterion, self.placement = state, criterion, placement
        self._config = config
        self._scales_loss = state.network.activation_type is ActivationType.FLOAT16
        is_split = config.accumulates and placement.distributed
        self._module = (BackwardModule if is_split else StepModule)(state, criterion, placement)
        self._run = self._split_step if is_split else self._whole_step
        self._update_module = UpdateModule(state, placement)
        self._pending: deque[_PendingStep] = deque()
        self._previous = placement.replicate(np.array(NO_UPDATE, np.float32))

    @property
    @abstractmethod
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""

    @abstractmethod
    def prepare(self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: IterationSettings) -> None:
        """Compile for a batch shape and reserve its memory, without taking a step."""

    @abstractmethod
    def summary(self) -> str:
        """Return a line on the compiled graphs and their use; "" if there are none."""

    @abstractmethod
    def jobs(self) -> list[Any]:
        """Return OneFlow's `JobProto` of each compiled graph, in order of compilation; only rank 0 has them."""

    def __call__(self, images: Tensor, labels: Tensor, settings: IterationSettings) -> StepResult:
        """Take one step and wait for its result."""
        self.start(images, labels, settings)
        return self.finish()

    def start(self, images: Tensor, labels: Tensor, settings: IterationSettings) -> None:
        """Start a step on images (B, 3, H, W) uint8 and labels (B, T, 5), without waiting for its result.

        Raises:
            RuntimeError: two steps are pending already.
        """
        values = self._run(images, labels, self._scalar_rows(settings), settings)
        self._pending.append(_PendingStep(settings, values))

    def finish(self) -> StepResult:
        """Wait for the oldest pending step, update the counters and return its result."""
        pending = self._pending.popleft()
        values = np.concatenate([self._on_host(value) for value in pending.values]).astype(np.float64)
        norm, _, total, box, objectness, classes = (float(value) for value in values[:6])
        updated = bool(values[1] > 0.5)
        skipped = pending.settings.update and not updated
        self.state.network.count_batch()
        self.state.counters = self._counters_after(pending.settings, updated=updated)
        return StepResult(total, box, objectness, classes, norm, updated, skipped)

    def _on_host(self, values: Tensor | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return values if isinstance(values, np.ndarray) else self.placement.to_numpy(values)

    def _whole_step(
        self, images: Tensor, labels: Tensor, rows: Tensor, _settings: IterationSettings
    ) -> Sequence[Tensor | npt.NDArray[np.float32]]:
        values, self._previous = self._execute(images, labels, rows, self._previous)
        return [values]

    def _split_step(
        self, images: Tensor, labels: Tensor, rows: Tensor, settings: IterationSettings
    ) -> Sequence[Tensor | npt.NDArray[np.float32]]:
        losses, hyper, partial_sums = self._execute(images, labels, rows, self._previous)
        if not settings.update:
            self.state.accumulate_local_gradients(local_shard(partial_sums))
            return [np.array(NO_UPDATE, np.float32), losses]
        own = self.state.take_local_gradients(local_shard(partial_sums))
        self._previous = self._update(self.placement.as_partial_sum(own), hyper)
        return [self._previous, losses]

    def _scalar_rows(self, settings: IterationSettings) -> Tensor:
        """Return the step's scalars for both outcomes of the previous step, see `rows` of `StepModule.forward`."""
        if len(self._pending) > 1:
            raise RuntimeError("two steps are pending; finish the older one first")
        possible = [self.state.counters] * 2
        if self._pending:
            possible = [self._counters_after(self._pending[0].settings, updated=updated) for updated in (True, False)]
        scalars = {counters: self._scalars(settings, counters) for counters in possible}  # usually both are equal
        return self.placement.replicate(np.stack([scalars[counters] for counters in possible]))

    def _counters_after(self, settings: IterationSettings, *, updated: bool) -> Counters:
        return self.state.counters.after(settings, updated=updated, scaled=self._scales_loss)

    def _scalars(self, settings: IterationSettings, counters: Counters) -> npt.NDArray[np.float32]:
        hyper = UpdateSettings(
            learning_rates=settings.learning_rates,
            weight_decays=self._config.weight_decays,
            momentum=settings.momentum,
            beta2=ADAM_BETA2,
            eps=ADAM_EPSILON,
            adam_step=counters.updates + 1,
            ema_decay=ema_decay(counters.updates + 1),
            loss_scale=counters.loss_scale,
            update=settings.update,
        ).vector()
        # The update divides by the loss scale only, so the loss factor stays in the gradients.
        others = np.array([counters.loss_scale * self._config.loss_factor, 1.0 - counters.pending_decay], np.float32)
        return np.concatenate([hyper, others])

    @abstractmethod
    def _execute(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> Any:
        """Run the whole step or its first part."""

    @abstractmethod
    def _update(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        """Run the second part of a split step."""

    def uncovered_ops(
        self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: IterationSettings
    ) -> list[str]:
        """Return the step's ops, other than copies, that the plugin has no CUDA kernel for; nothing is executed."""
        self.state.network.train()
        images = self.placement.empty_batch(images_shape, flow.uint8)
        labels = self.placement.empty_batch(labels_shape, flow.float32)
        graph = ModuleGraph(self._module, differentiates=True)
        job = built_job(graph, images, labels, self._scalar_rows(settings), self._previous)
        return uncovered_ops(job_ops(job), covered_ops())


class EagerStep(TrainStep):
    """A step that is executed op by op."""

    compiles = False
    compile_seconds = 0.0

    def prepare(self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: IterationSettings) -> None:
        """Do nothing, as nothing is compiled."""

    def summary(self) -> str:
        """See `TrainStep`."""
        return ""

    def jobs(self) -> list[Any]:
        """See `TrainStep`."""
        return []

    def _execute(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> Any:
        self.state.network.train()
        return self._module(images, labels, *scalars)

    def _update(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        return self._update_module(partial_sums, hyper)


class GraphStep(TrainStep):
    """A step that is compiled into a graph at the first batch of each shape and then replayed.

    On a CPU, smaller batches, such as the last one of an epoch, are executed op by op until their shape has become
    frequent (`EagerRuns`).
    """

    compiles = True

    def __init__(
        self,
        state: TrainingState,
        criterion: DetectionLoss,
        config: StepConfig,
        on_compile: Callable[[Compilation], None] = lambda _: None,
    ) -> None:
        super().__init__(state, criterion, config)
        self._graphs: dict[tuple[tuple[int, ...], tuple[int, ...]], ModuleGraph] = {}
        self._update_graph: ModuleGraph | None = None
        self._on_compile = on_compile
        self._eager_runs = EagerRuns()
        self.compilations: list[Compilation] = []
        self.replayed = self.eager = 0

    @property
    def compile_seconds(self) -> float:
        """See `TrainStep`."""
        return sum(event.seconds for event in self.compilations)

    def summary(self) -> str:
        """See `TrainStep`."""
        if not self.compilations:
            return ""
        compiled = f"{len(self.compilations)} compiled in {self.compile_seconds:.1f} s"
        eager = f", {self.eager} smaller batches op by op" if self.eager else ""
        return f"Graph: {compiled} ({', '.join(map(str, self.compilations))}), {self.replayed} steps replayed{eager}"

    def jobs(self) -> list[Any]:
        """See `TrainStep`."""
        graphs = [*self._graphs.values(), *([self._update_graph] if self._update_graph else [])]
        return [compiled_job(graph) for graph in graphs]

    def _execute(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> Any:
        key = (tuple(images.shape), tuple(labels.shape))
        graph = self._graphs.get(key)
        if graph is not None:
            self.replayed += 1
            return graph(images, labels, *scalars)
        if self._is_partial_batch(images) and self._eager_runs.should_run_eagerly(key):
            self.eager += 1
            self.state.network.train()
            return self._module(images, labels, *scalars)
        return self._compile(images, labels, *scalars)(images, labels, *scalars)

    def _is_partial_batch(self, images: Tensor) -> bool:
        """Return whether a larger batch has been compiled already; always False on a GPU or with several ranks."""
        return self.placement.single_cpu and any(compiled[0] > images.shape[0] for compiled, _ in self._graphs)

    def _update(self, partial_sums: Tensor, hyper: Tensor) -> Tensor:
        if self._update_graph is None:
            self._update_graph = ModuleGraph(self._update_module)
            self._compile_timed(self._update_graph, (tuple(partial_sums.shape), ()), partial_sums, hyper)
        return self._update_graph(partial_sums, hyper)

    def prepare(self, images_shape: Sequence[int], labels_shape: Sequence[int], settings: IterationSettings) -> None:
        """See `TrainStep`; does nothing for a shape that is compiled already."""
        if (tuple(images_shape), tuple(labels_shape)) in self._graphs:
            return
        images = self.placement.empty_batch(images_shape, flow.uint8)
        labels = self.placement.empty_batch(labels_shape, flow.float32)
        self._compile(images, labels, self._scalar_rows(settings), self._previous)

    def _compile(self, images: Tensor, labels: Tensor, *scalars: Tensor) -> ModuleGraph:
        self.state.network.train()
        graph = ModuleGraph(self._module, differentiates=True)
        key = (tuple(images.shape), tuple(labels.shape))
        self._compile_timed(graph, key, images, labels, *scalars)
        self._graphs[key] = graph
        return graph

    def _compile_timed(
        self, graph: ModuleGraph, shapes: tuple[tuple[int, ...], tuple[int, ...]], *inputs: Tensor
    ) -> None:
        started = time.perf_counter()
        compile_graph(graph, *inputs)
        self.compilations.append(Compilation(*shapes, seconds=time.perf_counter() - started))
        self._on_compile(self.compilations[-1])
