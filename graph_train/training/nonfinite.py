"""Detection of non-finite losses and gradients: warn, find their origin, and stop a run that does not recover.

The step itself skips an update whose gradient is not finite (`kernels.ops.update.function`).
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
from kernels.host.paths import printable
from kernels.runtime import Tensor, flow
from models.loss import DetectionLoss
from models.network import DetectionModel
from models.safetensors_file import write_safetensors

LOG = logging.getLogger("graph_train")
BATCH_FILE = "nonfinite_batch.safetensors"


@dataclass(frozen=True)
class SuspectBatch:
    """A batch whose step was not finite."""

    images: np.ndarray
    """(B, 3, H, W) uint8 RGB."""
    labels: np.ndarray
    """(B, T, 5) float32, padding included."""
    facts: Mapping[str, Any]
    """Epoch, batch, files, learning rates …: JSON values."""

    def save(self, path: Path) -> None:
        """Write a safetensors file with `images` and `labels`, and the facts in its header.

        Raises:
            OSError: the file cannot be written.
        """
        texts = {key: json.dumps(value) for key, value in self.facts.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            write_safetensors(file, {"images": self.images, "labels": self.labels}, texts)


class NonFiniteWatch:
    """Monitor of a run's steps that ends the run after too many consecutive skipped updates.

    Args:
        max_consecutive: allowed number of consecutive skipped updates; 0 allows any number.
        folder: where the offending batch is saved.
        explain: returns a description of the first bad tensor of a batch.
    """

    def __init__(self, max_consecutive: int, folder: Path, explain: Callable[[SuspectBatch], str]) -> None:
        self._max_consecutive, self._folder, self._explain = max_consecutive, folder, explain
        self._suspect: SuspectBatch | None = None
        self._warned = self._informed = False

    def check(
        self, result: StepResult, consecutive: int, batch: Callable[[], SuspectBatch], *, loss_scale: float = 1.0
    ) -> None:
        """Check the result of a step.

        With a loss scale, gradients that overflow are expected until it is small enough, at first and after each of its
        increases: they are logged once, without a warning, and the batch is not copied.

        Args:
            result: the result.
            consecutive: consecutive skipped updates, including this step's.
            batch: copies the step's batch; called only if the step was not finite.
            loss_scale: the loss scale of the step; 1 without one.
        Raises:
            DivergedError: too many updates were skipped; the batch has been saved.
        """
        if result.updated:
            self._suspect, self._warned, self._informed = None, False, False
        if result.finite:
            return
        stops = result.skipped and 0 < self._max_consecutive <= consecutive
        if loss_scale > 1 and np.isfinite(result.total) and not stops:
            if not self._informed:
                self._informed = True
                LOG.info("Gradients overflow: skipping the update, loss scale halved to %g", loss_scale / 2)
            return
        # A non-finite loss is closer to the cause than the update that is skipped some batches later.
        if self._suspect is None or not np.isfinite(result.total):
            self._suspect = batch()
        if not self._warned:
            self._warned = True
            facts = self._suspect.facts
            LOG.warning(
                "Epoch %d, batch %d: non-finite %s; skipping the update",
                facts["epoch"],
                facts["batch"],
                "gradients" if np.isfinite(result.total) else "loss",
            )
        if stops:
            self._stop(consecutive, self._suspect)

    def _stop(self, consecutive: int, suspect: SuspectBatch) -> None:
        path = self._folder / BATCH_FILE
        try:
            suspect.save(path)
            saved = f"batch saved to {printable(path)}"
        except OSError as error:
            saved = f"the batch could not be saved ({error})"
        facts = suspect.facts
        raise DivergedError(
            f"stopped after {consecutive} consecutive non-finite updates (--max-nonfinite); epoch {facts['epoch']}, "
            f"batch {facts['batch']}: {self._explain(suspect)}; {saved}; start a new run from a good checkpoint "
            "(--weights) with a lower lr0, or fix the data"
        )


def first_bad_tensor(
    network: DetectionModel,
    criterion: DetectionLoss,
    images: np.ndarray,
    labels: np.ndarray,
    place: Callable[[np.ndarray], Tensor],
    *,
    loss_scale: float = 1.0,
) -> str:
    """Describe the first tensor with a NaN or an infinity, among weights, layer outputs, losses and gradients.

    Run one step op by op in training mode, without an update. Do not train the network afterwards: BatchNorm statistics
    have changed, and hooks remain. All ranks take part, each with its own rows, and get the same answer.

    Args:
        network, criterion: as `graph_train.engine.step.StepModule` uses them.
        images: (B, 3, H, W) uint8, the rows of this rank.
        labels: (B, T, 5), the rows of this rank.
        place: moves this rank's rows to the network's device, as a shard of the batch of all ranks.
        loss_scale: the step's loss scale.
    """
    images, labels = place(images), place(labels)
    for name, value in network.state_dict().items():
        if bad := _bad_values(value):
            return f"weight {name} has {bad}"
    network.train()
    bad_outputs: list[str] = []
    _record_bad_outputs(network, bad_outputs)
    maps = [sharded_by_batch(level) for level in network.raw_maps(images)]
    if bad_outputs:
        return f"the output of {bad_outputs[0]}"
    parts = criterion(maps, labels, _scale_like(loss_scale, labels))
    for name in ("box", "objectness", "classes", "total"):
        if bad := _bad_values(getattr(parts, name)):
            return f"the {name} loss has {bad}"
    network.zero_grad()
    parts.total.backward()
    # The last layers get their gradients first.
    for name, parameter in reversed(list(network.named_parameters())):
        if parameter.grad is not None and (bad := _bad_values(parameter.grad)):
            return f"the gradient of {name} has {bad}"
    return (
        "all tensors are finite when recomputed op by op; the cause may be an earlier batch of the same update, or an "
        "overflow in the sum of the gradients"
    )


def _scale_like(value: float, like: Tensor) -> Tensor:
    """Return a (1,) float32 tensor on the device of another tensor, replicated on all ranks."""
    where = {"placement": like.placement, "sbp": flow.sbp.broadcast} if like.is_global else {"device": like.device}
    return flow.tensor([value], dtype=flow.float32, **where)


def _record_bad_outputs(network: DetectionModel, bad_outputs: list[str]) -> None:
    """Record the first module whose output is not finite; among nested modules, the innermost."""

    def hook(name: str) -> Callable[[Any, Any, Any], None]:
        def record(_module: Any, _inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not bad_outputs and (bad := _bad_values(tensor)):
                    bad_outputs.append(f"{name} has {bad}")

        return record

    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(hook(f"{name} ({type(module).__name__})"))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "numpy"):
        yield value


def _bad_values(tensor: Tensor) -> str:
    """Return for instance "3 of 20 values not finite", or "" if all are finite."""
    values = tensor.numpy()
    bad = int(values.size - np.isfinite(values).sum()) if values.dtype.kind == "f" else 0
    return f"{bad} of {values.size} values not finite" if bad else ""
