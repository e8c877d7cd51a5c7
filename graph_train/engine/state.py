"""Everything a training step changes: weights, their moving average, optimizer moments, counters.

All arrays are parameters or buffers of modules, so that any number of compiled graphs and the eager step share them,
and a checkpoint is one flat mapping from name to array.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graph_train.ranks.placement import Placement
from kernels.framework.global_rows import local_shard
from kernels.ops.begin_step.function import begin_step
from kernels.ops.flatten.function import flattened
from kernels.ops.update.function import UpdateRule, UpdateState
from kernels.runtime import Tensor, flow
from models.batch_norm import BatchNorm2d
from models.layers import member

BIASES, DECAYED_WEIGHTS, NORM_WEIGHTS = 0, 1, 2
"""Parameter groups in YOLOv5's order: biases, weights with decay, weights of normalisation layers."""

LOSS_SCALE_START, LOSS_SCALE_GROWTH_INTERVAL = 65536.0, 2000
"""Dynamic loss scale as PyTorch's GradScaler: halved by an overflow, doubled after 2000 good updates."""


@dataclass(frozen=True)
class Counters:
    """The scalar part of the state, kept on the host."""

    updates: int = 0
    """Optimizer updates applied so far; also the count behind the EMA ramp and Adam's bias correction."""
    skipped: int = 0
    """Updates left out because a gradient was not finite."""
    pending_decay: float = 1.0
    """EMA decay still to be applied to the running statistics; 1 when there is none."""
    loss_scale: float = 1.0
    good_updates: int = 0
    """Updates since the loss scale last changed."""
    skipped_in_row: int = 0
    """Updates left out since the last one that was applied."""


def parameter_groups(network: Any) -> dict[str, int]:
    """Return the group of each parameter, as YOLOv5 sorts them: by the name `bias`, then by the kind of module."""
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


def frozen_layers(freeze: Sequence[int]) -> tuple[int, ...]:
    """Return the layers that `--freeze` names: one number n means the first n, several are taken as they are."""
    return tuple(freeze) if len(freeze) > 1 else tuple(range(freeze[0] if freeze else 0))


class TrainingState(flow.nn.Module):
    """Network, moving average and optimizer arrays, with the counters beside them.

    Args:
        network: the network to train; its parameters are updated in place.
        average: a second instance of the same network; holds the moving average and is used for validation.
        rule: "sgd", "adam" or "adamw".
        freeze: layers (`model.N`) whose parameters stay as they are.
        placement: where the tensors of both networks are.
    """

    def __init__(
        self,
        network: Any,
        average: Any,
        *,
        rule: UpdateRule,
        freeze: Sequence[int] = (),
        placement: Placement = Placement("cpu"),  # noqa: B008 - a frozen value
    ) -> None:
        super().__init__()
        self._placement = placement
        self._own_gradients: Tensor | None = None
        self.network, self.average = network, average
        self.rule = rule
        self.counters = Counters()
        prefixes = tuple(f"model.{layer}." for layer in freeze)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not name.startswith(prefixes) if prefixes else True)
        groups = parameter_groups(network)
        trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError(f"--freeze {list(freeze)}: no parameter is left to train; freeze fewer layers")
        # By groups: of flat tensors each has one stretch.
        self.trained = tuple(sorted(trained, key=groups.__getitem__))
        self.groups = tuple(groups[name] for name in self.trained)
        self._flat = ("gradient_sum", "first_moment", *(() if rule == "sgd" else ("second_moment",)))
        flat = flattened([member(network, name).detach() for name in self.trained])
        for name in self._flat:
            self.register_buffer(name, self._placement.replicate(np.zeros(tuple(flat.shape), np.float32)))
        self.statistics = tuple(
            name for name, buffer in network.named_buffers() if name.endswith(("running_mean", "running_var"))
        )
        self._copy_weights_to_average()
        self.register_buffer(
            "averaged_statistics", flow.cat([member(average, name) for name in self.statistics], dim=0)
        )

    def _copy_weights_to_average(self) -> None:
        """Start the average as a copy of the network, without gradients."""
        with flow.no_grad():
            for name, parameter in self.average.named_parameters():
                parameter.requires_grad_(False)
                parameter.copy_(member(self.network, name))
            for name, buffer in self.average.named_buffers():
                buffer.copy_(member(self.network, name))

    def update_state(self) -> UpdateState:
        """Return the tensors that the update reads and writes."""
        return UpdateState(
            parameters=[member(self.network, name) for name in self.trained],
            averages=[member(self.average, name) for name in self.trained],
            groups=self.groups,
            gradient_sum=self.gradient_sum,
            first_moment=self.first_moment,
            second_moment=None if self.rule == "sgd" else self.second_moment,
        )

    def keep_own_gradients(self, own: Tensor) -> None:
        """Add this rank's partial gradient sums, (n,) in the order of `trained`, to those of batches before.

        For batches without an update, where the sum over the ranks is taken once per update. Until then `gradient_sum`
        knows nothing of them; `flush` brings it up to date.
        """
        with flow.no_grad():
            # A copy: a graph uses the memory of its results again.
            self._own_gradients = own.clone() if self._own_gradients is None else self._own_gradients.add_(own)

    def take_own_gradients(self, own: Tensor) -> Tensor:
        """Return and reset the partial gradient sums of this batch and those before it."""
        kept, self._own_gradients = self._own_gradients, None
        with flow.no_grad():
            return own if kept is None else kept.add_(own)

    def drop_pending_gradients(self) -> None:
        """Forget gradients that no update has used yet, as YOLOv5 does at the start of each epoch."""
        self._own_gradients = None
        # A copy: OneFlow has no code that fills memory for a GPU newer than 8.9.
        with flow.no_grad():
            local_shard(self.gradient_sum).copy_(flow.tensor(np.zeros(tuple(self.gradient_sum.shape), np.float32)))

    def flush(self) -> None:
        """Bring the average up to date for validation or saving.

        Within a graph the running statistics that a call writes can be read only by the next call, so their average
        lags one update behind; this applies what is pending (the same arithmetic, in the same order).
        """
        if self.counters.pending_decay != 1.0:
            with flow.no_grad():
                current = [local_shard(member(self.network, name)) for name in self.statistics]
                rows = np.full((2, 2), 1.0 - self.counters.pending_decay, np.float32)
                average = local_shard(self.averaged_statistics)
                given = (flow.tensor(values).to(average.device) for values in (rows, rows[0]))
                begin_step(current, average, *given, size=1)
            self.counters = replace(self.counters, pending_decay=1.0)
        self._join_gradients()
        self._join_statistics()
        self._scatter(self.averaged_statistics, self.average)

    def _join_gradients(self) -> None:
        """Sum what the ranks have kept apart into `gradient_sum`: a checkpoint does not know how many ranks there are.

        A run goes on from there as one that loads the checkpoint does.
        """
        if self._own_gradients is None:
            return
        with flow.no_grad():
            summed = self._placement.all_reduce_sum(self._placement.as_partial_sum(self._own_gradients))
            local_shard(self.gradient_sum).add_(local_shard(summed))
        self._own_gradients = None

    def _join_statistics(self) -> None:
        """Average the statistics over the ranks, where each rank has those of its own images.

        Running and averaged statistics are linear in those of the batches, so the mean now is what a mean after every
        batch would have given. Training does not read them.
        """
        if not self._placement.distributed or all(norm.synchronised for norm in _norms(self.network)):
            return
        with flow.no_grad():
            joined = self._placement.all_reduce_mean(
                flow.cat([self._current_statistics(), local_shard(self.averaged_statistics)], dim=0)
            )
            count = joined.shape[0] // 2
            self._scatter(joined[:count], self.network)
            local_shard(self.averaged_statistics).copy_(joined[count:])

    def _current_statistics(self) -> Tensor:
        """Return the network's running statistics as one vector, in the order of `statistics`."""
        return flow.cat([local_shard(member(self.network, name)) for name in self.statistics], dim=0)

    def _scatter(self, flat: Tensor, network: Any) -> None:
        """Copy flat statistics into the buffers of a network."""
        start, flat = 0, local_shard(flat)
        with flow.no_grad():
            for name in self.statistics:
                target = local_shard(member(network, name))
                target.copy_(flat[start : start + target.numel()])
                start += target.numel()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.network.state_dict().items():
            yield f"model/{name}", tensor
        for name, tensor in self.average.state_dict().items():
            yield f"ema/{name}", tensor
        for name in self._flat:
            yield name, getattr(self, name)

    def _parts(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the arrays that a flat tensor is saved as, in order."""
        return {f"{name}/{trained}": tuple(member(self.network, trained).shape) for trained in self.trained}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return a copy of all arrays by name; call `flush` first."""
        arrays: dict[str, np.ndarray] = {}
        for name, tensor in self._tensors():
            values = local_shard(tensor).numpy().copy()
            arrays.update(_cut(values, self._parts(name)) if name in self._flat else {name: values})
        return arrays

    def digest(self) -> str:
        """Return a digest of all arrays on this rank; call `flush` first."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self._tensors():
            digest.update(name.encode() + local_shard(tensor).numpy().tobytes())
        return digest.hexdigest()

    def load_arrays(self, arrays: Mapping[str, np.ndarray], counters: Counters) -> None:
        """Take over a saved state, in place.

        Raises:
            ValueError: an array is missing or has another shape.
        """
        with flow.no_grad():
            for name, tensor in self._tensors():
                parts = self._parts(name) if name in self._flat else {name: tuple(tensor.shape)}
                values = [_saved(arrays, part, shape) for part, shape in parts.items()]
                joined = np.concatenate([value.reshape(-1) for value in values]).reshape(tuple(tensor.shape))
                local_shard(tensor).copy_(flow.tensor(joined))
        self._take_over(counters)

    def share(self, counters: Counters) -> None:
        """Give all ranks what rank 0 has loaded; the counters are known to all."""
        self._placement.broadcast_in_place(tensor for _, tensor in self._tensors())
        self._take_over(counters)

    def _take_over(self, counters: Counters) -> None:
        self._own_gradients = None
        with flow.no_grad():
            flat = flow.cat([local_shard(member(self.average, name)) for name in self.statistics], dim=0)
            local_shard(self.averaged_statistics).copy_(flat)
        self.counters = counters


def _cut(values: np.ndarray, parts: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the parts of a flat array, as views of it."""
    ends = np.cumsum([math.prod(shape) for shape in parts.values()])
    pieces = np.split(values, ends[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(parts.items(), pieces, strict=True)}


def _saved(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"checkpoint lacks {name}; was it written with another model or optimizer?")
    if tuple(arrays[name].shape) != shape:
        raise ValueError(f"checkpoint has {name} of shape {arrays[name].shape}, this run needs {shape}")
    return arrays[name]


def _norms(network: Any) -> list[BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, BatchNorm2d)]
