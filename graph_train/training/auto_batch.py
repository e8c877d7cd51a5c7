"""`--batch-size -1`: as many images as a share of the free memory holds, by measured steps of a few sizes.

YOLOv5's rule: memory is a straight line over the batch, fitted to measured sizes; the batch is where the line meets a
share of what is free. Ours measures on a CPU too, and counts what else grows with the batch there: graphs of other
shapes, which OneFlow gives memory of their own, validation, and batches being made.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.host.devices import select_device
from graph_train.host.failures import USER_ERROR
from graph_train.host.memory import device_memory, resident_bytes
from graph_train.settings.hyperparameters import Hyperparameters
from graph_train.settings.train_options import AUTO_BATCH, TrainOptions
from graph_train.training.assembly import VAL_BATCH_FACTOR
from graph_train.training.batch_memory import Facts, Measured
from kernels.host.free_memory import free_memory

LOG = logging.getLogger("graph_train")
FREE_SHARE = 0.8
"""As YOLOv5: how much of the free memory the run may take."""
MOST_IMAGES = 1024
"""As YOLOv5: a larger batch is taken for a measurement gone wrong."""
USUAL_BATCH = 16
_MEASURED_BATCHES = (2, 4, 8)
_MEASURED_BATCHES_QUAD = (4, 8, 16)


@dataclass(frozen=True)
class MemoryModel:
    """Bytes that a run takes, as a function of its batch."""

    facts: Facts
    start: float
    """Everything that does not grow."""
    per_image_made: float
    per_image_trained: float
    step: float
    """What one graph, or one step, takes besides its images."""
    per_image_validated: float

    def need(self, batch: int) -> float:
        """Bytes of a run with this batch, at its most."""
        facts, validated = self.facts, VAL_BATCH_FACTOR * batch
        steps = self._one_step(batch)
        if facts.graphs_add_up:
            # A second graph for batches with more labels than usual, one for the last batch of an epoch, one for each
            # shape of validation batches and one for the last of them.
            rest = facts.train_images % batch if facts.train_images > batch else 0
            steps = steps * (facts.sizes + 1) + (self._one_step(rest) if rest else 0)
            validated *= facts.val_shapes + 1
        made = self.per_image_made * batch
        return self.start + made + steps + self.per_image_validated * min(validated, facts.val_images)

    def _one_step(self, images: int) -> float:
        return self.step + self.per_image_trained * images

    def largest(self, budget: float, *, multiple: int) -> int:
        """Return the largest batch that the budget holds and the images fill; 0 if there is none."""
        most = min(MOST_IMAGES, max(self.facts.train_images, multiple))
        return next((batch for batch in range(most - most % multiple, 0, -multiple) if self.need(batch) <= budget), 0)


def with_batch_size(options: TrainOptions, hyp: Hyperparameters) -> TrainOptions:
    """Return the settings with a number of images in place of `--batch-size -1`; others come back as they are.

    Raises:
        ValueError: not even the smallest batch fits, or nothing could be measured.
    """
    if options.optim.batch_size != AUTO_BATCH:
        return options
    device = select_device(options.engine.device)
    # On a CPU what this process takes already is part of what was measured.
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
    """Return the batch size, and log the numbers behind it."""
    LOG.info(
        "AutoBatch: %.2f GB without images, %.0f MB per image in the step; %.2f GB are free, %.0f%% of it may be used",
        model.start / 1e9,
        model.per_image_trained / 1e6,
        free / 1e9,
        100 * FREE_SHARE,
    )
    if model.per_image_trained <= 0:
        LOG.warning("AutoBatch: memory did not grow with the batch size; using --batch-size %d", USUAL_BATCH)
        return USUAL_BATCH
    batch = model.largest(free * FREE_SHARE, multiple=multiple)
    if not batch:
        raise ValueError(
            f"--batch-size -1: a batch of {multiple} needs {model.need(multiple) / 1e9:.2f} GB, only {FREE_SHARE:.0%} "
            f"of {free / 1e9:.2f} GB may be used; take a smaller --imgsz or network, or give a number to try it"
        )
    need = model.need(batch)
    LOG.info("AutoBatch: --batch-size %d, which needs %.2f GB (%.0f%%)", batch, need / 1e9, 100 * need / free)
    return batch


def fit(facts: Facts, measured: list[Measured]) -> MemoryModel:
    """Straight lines through what was measured.

    Raises:
        ValueError: fewer than two steps were measured.
    """
    steps = [item for item in measured if item.what == "step"]
    if len(steps) < 2:
        raise ValueError(
            f"--batch-size -1: memory was enough for {len(steps)} of the steps to measure, two are needed; take a "
            "smaller --imgsz or network, or give a number"
        )
    slope, start = np.polyfit([item.images for item in steps], [item.taken for item in steps], deg=1)
    taken = {item.what: item for item in measured}
    made, validation = taken["data"], taken.get("validation", Measured("validation", 1, 0))
    return MemoryModel(
        facts=facts,
        start=taken["start"].taken,
        per_image_made=max(0.0, made.taken / made.images),
        per_image_trained=float(slope),
        step=max(0.0, float(start)),
        per_image_validated=max(0.0, validation.taken / validation.images),
    )


def _measure(options: TrainOptions, hyp: Hyperparameters, sizes: tuple[int, ...]) -> tuple[Facts, list[Measured]]:
    """Start the process that measures, and read its results.

    Raises:
        ValueError: it was refused (and has said why), or ended before it could measure anything.
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
        done = subprocess.run([sys.executable, "-m", "graph_train.training.batch_memory", str(request)], check=False)
        lines = [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else []
    if done.returncode == USER_ERROR:
        raise ValueError("--batch-size -1: the measuring was refused, see the line above")
    if not lines:
        raise ValueError(
            f"--batch-size -1: the process that measures memory ended with code {done.returncode} before it had "
            "measured anything; give a number"
        )
    names = {item.name for item in fields(Facts)}
    return Facts(**{name: lines[0][name] for name in names}), [Measured(**line) for line in lines[1:]]
