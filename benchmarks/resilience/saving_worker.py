"""Worker that trains with and without saving; see `benchmarks.resilience.saving`."""

import time
from pathlib import Path
from typing import Any

from benchmarks.harness.channel import serve
from graph_train.runs.cursor import Cursor
from graph_train.runs.run_folder import RunFolder
from graph_train.settings.hyperparameters import load_hyperparameters
from graph_train.settings.train_options import options_from_flags
from graph_train.training.assembly import assemble
from graph_train.training.early_stopping import EarlyStopping
from graph_train.training.trainer import Trainer
from kernels.runtime import Tensor, flow
from models.padded_labels import pad_labels


class _Session:
    """The objects that `prepare` made."""

    trainer: Trainer
    images: Tensor
    labels: Tensor
    number = 0


def prepare(folder: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Build a run and execute its first batch, which all steps repeat."""
    options = options_from_flags(**flags)
    run = assemble(options, load_hyperparameters(options.optim.hyp))
    _Session.trainer = Trainer(run, RunFolder(Path(folder)), Cursor(), EarlyStopping(0))
    batch = next(iter(run.train_pipeline.epoch(0)))
    padded = pad_labels(batch.labels, int(batch.images.shape[0]), run.label_floor)
    _Session.images, _Session.labels = flow.tensor(batch.images), flow.tensor(padded)
    _step()
    state = run.state.arrays()
    return {"state_mb": sum(value.nbytes for value in state.values()) / 1e6}


def _step() -> None:
    run = _Session.trainer.run
    run.step(_Session.images, _Session.labels, run.schedule.at(_Session.number, 0))
    _Session.number += 1


def seconds_per_step(steps: int, *, saves: bool) -> float:
    """Return the mean seconds per step; with `saves`, the run's flags set the interval, and pending saves count."""
    started = time.perf_counter()
    for _ in range(steps):
        _step()
        if saves:
            _Session.trainer.save_if_due(_Session.number - 1)
    _Session.trainer.saving.finish()
    return (time.perf_counter() - started) / steps


if __name__ == "__main__":
    serve({"prepare": prepare, "seconds_per_step": seconds_per_step})
