"""AutoBatch (`--batch-size -1`): find the largest batch size that fits in a fraction of the free memory.

As in YOLOv5, memory is measured at a few batch sizes and modelled as a linear function of the batch size. Unlike in
YOLOv5, it is measured on CPUs too, and the model includes the other parts that grow with the batch size: graphs of
other shapes, for which OneFlow allocates separate memory, validation, and batches in preparation.
"""

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.host.devices import select_device
from graph_train.host.failures import USER_ERROR
from graph_train.host.memory import device_memory, resident_bytes
from graph_train.host.own_modules import module_command
from graph_train.settings.hyperparameters import Hyperparameters
from graph_train.settings.train_options import AUTO_BATCH, TrainOptions
from graph_train.training.assembly import VAL_BATCH_FACTOR
from graph_train.training.batch_memory import PhaseMemory, RunFacts
from kernels.host.free_memory import free_memory

LOG = logging.getLogger("graph_train")
MEMORY_FRACTION = 0.8
"""Fraction of the free memory that the run may use, as in YOLOv5."""
MAX_AUTO_BATCH = 1024
"""Largest batch size that AutoBatch returns, as in YOLOv5."""
DEFAULT_BATCH = 16
_MEASURED_BATCHES = (2, 4, 8)
_MEASURED_BATCHES_QUAD = (4, 8, 16)


@dataclass(frozen=True)
class MemoryModel:
    """Memory of a run in bytes, as a function of its batch size."""

    facts: RunFacts
    start: float
    """Memory that does not depend on the batch size."""
    per_image_data: float
    per_image_trained: float
    step: float
    """Constant part of the memory of one graph or eager step."""
    per_image_validated: float

    def required_bytes(self, batch: int) -> float:
        """Return the peak memory of a run with this batch size."""
        facts, validated = self.facts, VAL_BATCH_FACTOR * batch
        steps = self._one_step(batch)
        if facts.graphs_have_own_memory:
            # Further graphs: one for batches with more labels than usual, one for the last batch of an epoch, one for
            # each shape of validation batches and one for the last of these.
            remainder = facts.train_images % batch if facts.train_images > batch else 0
            steps = steps * (facts.sizes + 1) + (self._one_step(remainder) if remainder else 0)
            validated *= facts.val_shapes + 1
        data = self.per_image_data * batch
        return self.start + data + steps + self.per_image_validated * min(validated, facts.val_images)

    def _one_step(self, images: int) -> float:
        return self.step + self.per_image_trained * images

    def largest_batch(self, budget: float, *, multiple: int) -> int:
        """Return the largest batch size that fits the budget and the number of images; 0 if none does."""
        limit = min(MAX_AUTO_BATCH, max(self.facts.train_images, multiple))
        return next(
            (batch for batch in range(limit - limit % multiple, 0, -multiple) if self.required_bytes(batch) <= budget),
            0,
        )


def with_batch_size(options: TrainOptions, hyp: Hyperparameters) -> TrainOptions:
    """Replace `--batch-size -1` by the measured batch size; any other batch size is returned unchanged.

    Raises:
        ValueError: not even the smallest batch fits, or the measurement failed.
    """
    if options.optim.batch_size != AUTO_BATCH:
        return options
    device = select_device(options.engine.device)
    # On a CPU, the measurements include the memory that this process already uses.
    free = free_memory() + resident_bytes() if device == "cpu" else device_memory(int(device.partition(":")[2])).free
    sizes = _MEASURED_BATCHES_QUAD if options.data.quad else _MEASURED_BATCHES
    LOG.info(
        "AutoBatch: measuring the memory of steps with %s and %d images on %s",
        ", ".join(map(str, sizes[:-1])),
        sizes[-1],
        device,
    )
    facts, measured = _measure(options, hyp, sizes)
    batch = _choose(fit(facts, measured), free, multiple=4 if options.data.quad else 1)
    return replace(options, optim=replace(options.optim, batch_size=batch))


def _choose(model: MemoryModel, free: int, *, multiple: int) -> int:
    """Choose and log the batch size."""
    LOG.info(
        "AutoBatch: %.2f GB + %.0f MB per image; %.2f GB free, of which %.0f%% may be used",
        model.start / 1e9,
        model.per_image_trained / 1e6,
        free / 1e9,
        100 * MEMORY_FRACTION,
    )
    if model.per_image_trained <= 0:
        LOG.warning("AutoBatch: memory did not grow with the batch size; using --batch-size %d", DEFAULT_BATCH)
        return DEFAULT_BATCH
    batch = model.largest_batch(free * MEMORY_FRACTION, multiple=multiple)
    if not batch:
        raise ValueError(
            f"--batch-size -1: a batch of {multiple} needs {model.required_bytes(multiple) / 1e9:.2f} GB, but only "
            f"{MEMORY_FRACTION:.0%} of {free / 1e9:.2f} GB may be used; use a smaller --imgsz or network, or set the "
            "batch size explicitly"
        )
    required = model.required_bytes(batch)
    LOG.info("AutoBatch: using --batch-size %d, %.2f GB (%.0f%%)", batch, required / 1e9, 100 * required / free)
    return batch


def fit(facts: RunFacts, measured: list[PhaseMemory]) -> MemoryModel:
    """Fit the memory model to the measurements.

    Raises:
        ValueError: fewer than two steps were measured.
    """
    steps = [item for item in measured if item.phase == "step"]
    if len(steps) < 2:
        raise ValueError(
            f"--batch-size -1: only {len(steps)} of the measured batches fit in memory, two are needed; use a "
            "smaller --imgsz or network, or set the batch size explicitly"
        )
    slope, start = np.polyfit([item.images for item in steps], [item.used for item in steps], deg=1)
    by_phase = {item.phase: item for item in measured}
    data, validation = by_phase["data"], by_phase.get("validation", PhaseMemory("validation", 1, 0))
    return MemoryModel(
        facts=facts,
        start=by_phase["start"].used,
        per_image_data=max(0.0, data.used / data.images),
        per_image_trained=float(slope),
        step=max(0.0, float(start)),
        per_image_validated=max(0.0, validation.used / validation.images),
    )


def _measure(options: TrainOptions, hyp: Hyperparameters, sizes: tuple[int, ...]) -> tuple[RunFacts, list[PhaseMemory]]:
    """Measure in a child process.

    Raises:
        ValueError: the process rejected the settings (and printed why), or ended before it measured anything.
    """
    with tempfile.TemporaryDirectory(prefix="graph-train-") as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result"
        flags = {**options.as_flat_dict(), "cache": "", "resume": ""}
        content: Mapping[str, Any] = {
            "options": flags,
            "hyp": hyp.as_dict(),
            "batches": sizes,
            "result": str(result),
            "parent": os.getpid(),
        }
        request.write_text(json.dumps(content), encoding="utf-8")
        done = subprocess.run(module_command("graph_train.training.batch_memory", [str(request)]), check=False)
        lines = [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else []
    if done.returncode == USER_ERROR:
        raise ValueError("--batch-size -1: measuring memory failed, see the message above")
    if not lines:
        raise ValueError(
            f"--batch-size -1: the measuring process ended with exit code {done.returncode} before its first result; "
            "set the batch size explicitly"
        )
    names = {item.name for item in fields(RunFacts)}
    return RunFacts(**{name: lines[0][name] for name in names}), [PhaseMemory(**line) for line in lines[1:]]
