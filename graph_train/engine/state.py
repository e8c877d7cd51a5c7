"""The state that a training step updates: weights, their moving average, optimizer moments, counters.

All arrays are parameters or buffers of modules, so that the eager step and any number of compiled graphs share them,
and a checkpoint is a flat mapping from names to arrays.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graph_train.engine.schedule import IterationSettings, ema_decay
from graph_train.ranks.placement import Placement
from kernels.framework.global_rows import local_shard
from kernels.ops.begin_step.function import begin_step
from kernels.ops.flatten.function import flattened
from kernels.ops.update.function import UpdateRule, UpdateState
from kernels.runtime import Tensor, flow
from models.batch_norm import BatchNorm2d
from models.layers import get_attribute
from models.network import DetectionModel

BIASES, DECAYED_WEIGHTS, NORM_WEIGHTS = 0, 1, 2
"""Parameter groups in YOLOv5's order: biases, weights with decay, weights of normalisation layers."""

LOSS_SCALE_START, LOSS_SCALE_GROWTH_INTERVAL = 65536.0, 2000
"""Dynamic loss scale as in PyTorch's GradScaler: halved after an overflow, doubled after 2000 good updates."""


@dataclass(frozen=True)
class Counters:
    """The scalar part of the state, on the host."""

    updates: int = 0
    """Optimizer updates applied so far; the EMA decay and Adam's bias correction depend on it."""
    skipped: int = 0
    """Updates skipped because a gradient was not finite."""
    pending_decay: float = 1.0
    """EMA decay not yet applied to the running statistics; 1 if nothing is pending."""
    loss_scale: float = 1.0
    good_updates: int = 0
    """Updates since the loss scale last changed."""
    skipped_in_row: int = 0
    """Consecutive updates skipped since the last one that was applied."""

    def after(self, settings: IterationSettings, *, updated: bool, scaled: bool) -> "Counters":
        """Return the counters after a step. A skipped update leaves the EMA unchanged and halves a dynamic loss scale.

        Args:
            settings: those of the step.
            updated: whether the step updated the weights.
            scaled: whether the loss scale is dynamic.
        """
        if not settings.update:
            return replace(self, pending_decay=1.0)
        if not updated:
            return replace(
                self,
                pending_decay=1.0,
                skipped=self.skipped + 1,
                skipped_in_row=self.skipped_in_row + 1,
                loss_scale=self.loss_scale / 2 if scaled else self.loss_scale,
                good_updates=0,
            )
        after = replace(
            self,
            updates=self.updates + 1,
            pending_decay=ema_decay(self.updates + 1),
            good_updates=self.good_updates + 1,
            skipped_in_row=0,
        )
        if scaled and after.good_updates >= LOSS_SCALE_GROWTH_INTERVAL:
            return replace(after, loss_scale=after.loss_scale * 2, good_updates=0)
        return after


def parameter_groups(network: DetectionModel) -> dict[str, int]:
    """Return the group of each parameter as in YOLOv5: by the name `bias`, then by the type of its module."""
    groups: dict[str, int] = {}
    norms = (flow.nn.BatchNorm2d, flow.nn.BatchNorm1d, flow.nn.LayerNorm, flow.nn.GroupNorm)
    for prefix, module in network.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            path = f"{prefix}.{name}" if prefix else name
            if name == "bias":
                groups[path] = BIASES
            elif name == "weight" and isinstance(module, norms):
                groups[path] = NORM_WEIGHTS
            else:
                groups[path] = DECAYED_WEIGHTS
    return groups


def frozen_layers(freeze: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the layers to freeze: one number n means the first n layers, several numbers are layer indices.

    Raises:
        ValueError: the network has fewer layers, or none would be left to train.
    """
    frozen = tuple(freeze) if len(freeze) > 1 else tuple(range(freeze[0] if freeze else 0))
    given = f"--freeze {' '.join(map(str, freeze))}"
    if frozen and max(frozen) >= num_layers:
        raise ValueError(f"{given}: the network has only layers 0 to {num_layers - 1}")
    if frozen and len(set(frozen)) == num_layers:
        raise ValueError(f"{given}: freezes all {num_layers} layers; freeze fewer")
    return frozen


class TrainingState(flow.nn.Module):
    """The network, its moving average, the optimizer's arrays and the counters.

    Args:
        network: the network to train; its parameters are updated in place.
        average: a second instance of the same network, which `flush` gives the moving average; used for validation.
        rule: "sgd", "adam" or "adamw".
        freeze: indices N of the layers `model.N` that are not trained.
        placement: placement of both networks' tensors.
    """

    def __init__(
        self,
        network: DetectionModel,
        average: DetectionModel,
        *,
        rule: UpdateRule,
        freeze: Sequence[int] = (),
        placement: Placement = Placement("cpu"),  # noqa: B008 - a frozen value
    ) -> None:
        super().__init__()
        self._placement = placement
        self._local_gradients: Tensor | None = None
        self.network, self.average = network, average
        self.rule = rule
        self.counters = Counters()
        prefixes = tuple(f"model.{layer}." for layer in freeze)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not name.startswith(prefixes) if prefixes else True)
        groups = parameter_groups(network)
        trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError(f"--freeze {list(freeze)}: no parameters left to train; freeze fewer layers")
        # Sorted by group, so that each group is contiguous in the flat tensors.
        self.trained = tuple(sorted(trained, key=groups.__getitem__))
        self.groups = tuple(groups[name] for name in self.trained)
        self._flat = ("gradient_sum", "first_moment", *(() if rule == "sgd" else ("second_moment",)))
        flat = flattened([get_attribute(network, name).detach() for name in self.trained])
        for name in self._flat:
            self.register_buffer(name, self._placement.replicate(np.zeros(tuple(flat.shape), np.float32)))
        self.statistics = tuple(
            name for name, buffer in network.named_buffers() if name.endswith(("running_mean", "running_var"))
        )
        self._copy_weights_to_average()
        self.register_buffer("averaged_parameters", flat.clone())
        self.register_buffer(
            "averaged_statistics", flow.cat([get_attribute(average, name) for name in self.statistics], dim=0)
        )

    def _copy_weights_to_average(self) -> None:
        """Initialise the moving average with the network's weights, without gradients."""
        with flow.no_grad():
            for name, parameter in self.average.named_parameters():
                parameter.requires_grad_(False)
                parameter.copy_(get_attribute(self.network, name))
            for name, buffer in self.average.named_buffers():
                buffer.copy_(get_attribute(self.network, name))

    def update_state(self) -> UpdateState:
        """Return the tensors that an update reads and writes."""
        return UpdateState(
            parameters=[get_attribute(self.network, name) for name in self.trained],
            groups=self.groups,
            average=self.averaged_parameters,
            gradient_sum=self.gradient_sum,
            first_moment=self.first_moment,
            second_moment=None if self.rule == "sgd" else self.second_moment,
        )

    def accumulate_local_gradients(self, gradients: Tensor) -> None:
        """Add this rank's gradients, (n,) in the order of `trained`, to those of earlier batches of the same update.

        Ranks accumulate locally and are summed once per update. Until then `gradient_sum` does not include these
        gradients; `flush` adds them.
        """
        with flow.no_grad():
            # Copied, because a graph reuses the memory of its outputs.
            self._local_gradients = (
                gradients.clone() if self._local_gradients is None else self._local_gradients.add_(gradients)
            )

    def take_local_gradients(self, gradients: Tensor) -> Tensor:
        """Return this rank's accumulated gradients, including those of this batch, and reset them."""
        accumulated, self._local_gradients = self._local_gradients, None
        with flow.no_grad():
            return gradients if accumulated is None else accumulated.add_(gradients)

    def drop_pending_gradients(self) -> None:
        """Discard gradients that no update has used yet, as YOLOv5 does at the start of each epoch."""
        self._local_gradients = None
        # Copied from the host: OneFlow's fill kernel does not support GPUs newer than 8.9.
        with flow.no_grad():
            local_shard(self.gradient_sum).copy_(flow.tensor(np.zeros(tuple(self.gradient_sum.shape), np.float32)))

    def flush(self) -> None:
        """Bring the moving average up to date for validation or saving.

        A graph can read the running statistics that it writes only in its next call, so their average lags one update
        behind. This applies the pending update with the same arithmetic, in the same order.
        """
        if self.counters.pending_decay != 1.0:
            with flow.no_grad():
                current = [local_shard(get_attribute(self.network, name)) for name in self.statistics]
                rows = np.full((2, 2), 1.0 - self.counters.pending_decay, np.float32)
                average = local_shard(self.averaged_statistics)
                given = (flow.tensor(values).to(average.device) for values in (rows, rows[0]))
                begin_step(current, average, *given, size=1)
            self.counters = replace(self.counters, pending_decay=1.0)
        self._reduce_local_gradients()
        self._average_statistics()
        self._scatter(self.averaged_statistics, self.average, self.statistics)
        self._scatter(self.averaged_parameters, self.average, self.trained)

    def _reduce_local_gradients(self) -> None:
        """Add the sum of all ranks' local gradients to `gradient_sum`.

        A checkpoint then does not depend on the number of ranks, and this run continues exactly like one that loads it.
        """
        if self._local_gradients is None:
            return
        with flow.no_grad():
            summed = self._placement.all_reduce_sum(self._placement.as_partial_sum(self._local_gradients))
            local_shard(self.gradient_sum).add_(local_shard(summed))
        self._local_gradients = None

    def _average_statistics(self) -> None:
        """Average the BatchNorm statistics over the ranks, unless they are synchronised already.

        Running statistics and their average are linear in the batch statistics, so averaging once is equivalent to
        averaging after every batch. Training does not read them.
        """
        if not self._placement.distributed or all(norm.synchronised for norm in _batch_norms(self.network)):
            return
        with flow.no_grad():
            joined = self._placement.all_reduce_mean(
                flow.cat([self._current_statistics(), local_shard(self.averaged_statistics)], dim=0)
            )
            count = joined.shape[0] // 2
            self._scatter(joined[:count], self.network, self.statistics)
            local_shard(self.averaged_statistics).copy_(joined[count:])

    def _current_statistics(self) -> Tensor:
        """Return the network's running statistics as one vector, in the order of `statistics`."""
        return flow.cat([local_shard(get_attribute(self.network, name)) for name in self.statistics], dim=0)

    def _scatter(self, flat: Tensor, network: DetectionModel, names: Sequence[str]) -> None:
        """Copy a flat tensor into a network's parameters or buffers of these names, in their order."""
        start, flat = 0, local_shard(flat)
        with flow.no_grad():
            for name in names:
                target = local_shard(get_attribute(network, name))
                target.copy_(flat[start : start + target.numel()].reshape(target.shape))
                start += target.numel()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.network.state_dict().items():
            yield f"model/{name}", tensor
        for name, tensor in self.average.state_dict().items():
            yield f"ema/{name}", tensor
        for name in self._flat:
            yield name, getattr(self, name)

    def _parts(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the arrays that a flat tensor is split into when saved, in order."""
        return {f"{name}/{trained}": tuple(get_attribute(self.network, trained).shape) for trained in self.trained}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return copies of all arrays by name; call `flush` first."""
        arrays: dict[str, np.ndarray] = {}
        for name, tensor in self._tensors():
            values = local_shard(tensor).numpy().copy()
            arrays.update(_split_flat(values, self._parts(name)) if name in self._flat else {name: values})
        return arrays

    def digest(self) -> str:
        """Return a digest of all arrays on this rank; call `flush` first."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self._tensors():
            digest.update(name.encode() + local_shard(tensor).numpy().tobytes())
        return digest.hexdigest()

    def load_arrays(self, arrays: Mapping[str, np.ndarray], counters: Counters) -> None:
        """Load a saved state in place.

        Raises:
            ValueError: an array is missing, or has another shape or type.
        """
        with flow.no_grad():
            for name, tensor in self._tensors():
                parts = self._parts(name) if name in self._flat else {name: tuple(tensor.shape)}
                kind = np.dtype(str(tensor.dtype).removeprefix("oneflow."))
                values = [_checked_array(arrays, part, shape, kind) for part, shape in parts.items()]
                joined = np.concatenate([value.reshape(-1) for value in values]).reshape(tuple(tensor.shape))
                local_shard(tensor).copy_(flow.tensor(joined))
        self._finish_loading(counters)

    def broadcast(self, counters: Counters) -> None:
        """Broadcast rank 0's arrays to all ranks; every rank passes the same counters."""
        self._placement.broadcast_in_place(tensor for _, tensor in self._tensors())
        self._finish_loading(counters)

    def _finish_loading(self, counters: Counters) -> None:
        self._local_gradients = None
        with flow.no_grad():
            for flat, names in ((self.averaged_statistics, self.statistics), (self.averaged_parameters, self.trained)):
                local_shard(flat).copy_(flattened([local_shard(get_attribute(self.average, name)) for name in names]))
        self.counters = counters


def _split_flat(values: np.ndarray, parts: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Split a flat array into views of the given shapes."""
    ends = np.cumsum([math.prod(shape) for shape in parts.values()])
    pieces = np.split(values, ends[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(parts.items(), pieces, strict=True)}


def _checked_array(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], kind: "np.dtype[Any]"
) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"checkpoint has no {name}; was it written with another model or optimizer?")
    if tuple(arrays[name].shape) != shape:
        raise ValueError(f"checkpoint has {name} of shape {arrays[name].shape}, but this run needs {shape}")
    if arrays[name].dtype != kind:
        raise ValueError(f"checkpoint has {name} of type {arrays[name].dtype}, but this run needs {kind}")
    return arrays[name]


def _batch_norms(network: DetectionModel) -> list[BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, BatchNorm2d)]
