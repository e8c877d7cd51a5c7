"""Numbers that are not finite: what they cost, where they come from, and when a run must end over them.

The step itself leaves out an update whose gradient is not finite (`kernels.ops.update.function`). Here it is counted
and explained.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.engine.step import StepResult
from graph_train.host.failures import DivergedError
from kernels.framework.global_rows import sharded_by_batch
from kernels.host.files import replacing
from kernels.runtime import Tensor, flow
from models.safetensors_file import write_safetensors

LOG = logging.getLogger("graph_train")
BATCH_FILE = "nonfinite_batch.safetensors"


@dataclass(frozen=True)
class SuspectBatch:
    """The latest batch whose step was not finite."""

    images: np.ndarray
    """(B, 3, H, W) uint8 RGB."""
    labels: np.ndarray
    """(B, T, 5) float32 as the step took them, padding included."""
    facts: Mapping[str, Any]
    """Epoch, batch, files, learning rates …: JSON values."""

    def save(self, path: Path) -> None:
        """Write a safetensors file with `images`, `labels` and the facts as texts.

        Raises:
            OSError: it cannot be written.
        """
        texts = {key: json.dumps(value) for key, value in self.facts.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            write_safetensors(file, {"images": self.images, "labels": self.labels}, texts)


class NonFiniteWatch:
    """Follows a run's steps and ends it when updates have been left out for too long.

    Args:
        most: updates in a row that may be left out; 0 allows any number.
        folder: gets the offending batch.
        explain: names the first bad tensor of a batch.
    """

    def __init__(self, most: int, folder: Path, explain: Callable[[SuspectBatch], str]) -> None:
        self._most, self._folder, self._explain = most, folder, explain
        self._suspect: SuspectBatch | None = None
        self._quiet = False

    def see(self, result: StepResult, in_row: int, batch: Callable[[], SuspectBatch]) -> None:
        """Take note of one step.

        Args:
            result: of the step.
            in_row: updates left out since the last one that was applied, this step included.
            batch: copies the step's batch; called only if the step was not finite.
        Raises:
            DivergedError: it was one update too many; the batch has been saved.
        """
        if result.updated:
            self._suspect, self._quiet = None, False
        if result.finite:
            return
        # A loss that is not finite tells more than the update it spoils some batches later.
        if self._suspect is None or not np.isfinite(result.total):
            self._suspect = batch()
        if not self._quiet:
            self._quiet = True
            facts = self._suspect.facts
            LOG.warning(
                "Epoch %d, batch %d: %s not finite; the update that it belongs to is left out",
                facts["epoch"],
                facts["batch"],
                "gradients are" if np.isfinite(result.total) else "the loss is",
            )
        if result.skipped and self._most and in_row >= self._most:
            self._end(in_row, self._suspect)

    def _end(self, in_row: int, suspect: SuspectBatch) -> None:
        path = self._folder / BATCH_FILE
        try:
            suspect.save(path)
            kept = f"the batch is kept in {path}"
        except OSError as error:
            kept = f"the batch could not be kept ({error})"
        facts = suspect.facts
        raise DivergedError(
            f"stopped: {in_row} updates in a row were not finite (--max-nonfinite); epoch {facts['epoch']}, batch "
            f"{facts['batch']}: {self._explain(suspect)}; {kept}; start again from a good checkpoint with --weights "
            "and a lower lr0, or repair the data"
        )


def first_bad_tensor(
    network: Any,
    criterion: Any,
    images: np.ndarray,
    labels: np.ndarray,
    place: Callable[[np.ndarray], Tensor],
    *,
    loss_scale: float = 1.0,
) -> str:
    """Names the first tensor with a NaN or an infinity: weights, outputs of the layers, losses, then gradients.

    Runs one step op by op in training mode, without an update. Not for a network that trains on: BatchNorm's statistics
    move, and hooks stay. Of several ranks all take part, each with its own rows, and all get the same answer.

    Args:
        network, criterion: as `graph_train.engine.step.StepModule` uses them.
        images: (B, 3, H, W) uint8, the rows of this rank.
        labels: (B, T, 5), the rows of this rank.
        place: makes a batch out of the rows of all ranks, where the network is: `Placement.shard_batch` with the total.
        loss_scale: what the step multiplies the gradients by.
    """
    images, labels = place(images), place(labels)
    for name, value in network.state_dict().items():
        if found := _count(value):
            return f"weight {name} has {found}"
    network.train()
    seen: list[str] = []
    _watch(network, seen)
    maps = [sharded_by_batch(level) for level in network.raw_maps(images)]
    if seen:
        return f"the output of {seen[0]}"
    parts = criterion(maps, labels, _scale_like(loss_scale, labels))
    for name in ("box", "objectness", "classes", "total"):
        if found := _count(getattr(parts, name)):
            return f"the {name} loss is {found}"
    network.zero_grad()
    parts.total.backward()
    # The last layers get their gradients first.
    for name, parameter in reversed(list(network.named_parameters())):
        if parameter.grad is not None and (found := _count(parameter.grad)):
            return f"the gradient of {name} has {found}"
    return (
        "computed again op by op, all of its tensors are finite; the cause may be an earlier batch of the same update, "
        "or a sum of gradients that overflows"
    )


def _scale_like(value: float, like: Tensor) -> Tensor:
    """(1,) float32 on the device of another tensor; of several ranks all have it."""
    where = {"placement": like.placement, "sbp": flow.sbp.broadcast} if like.is_global else {"device": like.device}
    return flow.tensor([value], dtype=flow.float32, **where)


def _watch(network: Any, seen: list[str]) -> None:
    """Note the first module, of nested ones the innermost, whose output is not finite."""
    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(_record_order(f"{name} ({type(module).__name__})", seen))


def _record_order(name: str, seen: list[str]) -> Callable[[Any, Any, Any], None]:
    def note(_module: Any, _inputs: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if not seen and (found := _count(tensor)):
                seen.append(f"{name} has {found}")

    return note


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "numpy"):
        yield value


def _count(tensor: Tensor) -> str:
    """ "3 of 20 values not finite", or "" if all are."""
    values = tensor.numpy()
    bad = int(values.size - np.isfinite(values).sum()) if values.dtype.kind == "f" else 0
    return f"{bad} of {values.size} values not finite" if bad else ""
