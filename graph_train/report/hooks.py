"""Callbacks that write the report of a run: at the start, after epochs, and at the end."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.hooks.callbacks import TrainingHooks
from graph_train.plots.results import read_results
from graph_train.report.content import (
    FORMAT,
    commands,
    fixed_content,
    results_content,
    times_content,
    validation_content,
)
from graph_train.report.page import finite, render
from graph_train.report.samples import SampleCollector, images_on_rank, picture
from graph_train.runs.results_csv import RESULTS
from graph_train.training.assembly import TrainingRun
from graph_train.training.progress import EpochTimes
from graph_train.training.trainer import Trainer
from kernels.host.files import write_atomically
from kernels.host.paths import printable
from pipelines.shard import Shard

LOG = logging.getLogger("graph_train")
PAGE, NUMBERS = "report.html", "report.json"
MAX_TIME_FRACTION = 0.02
"""Maximum fraction of a run's time that is spent on rewriting the page."""


class ReportHooks(TrainingHooks):
    """Hooks that keep `report.html` and `report.json` in the run folder up to date.

    Args:
        trainer: the run.
        resumed: whether the run is resumed, so that the earlier times and samples are kept.
    """

    def __init__(self, trainer: Trainer, *, resumed: bool = False) -> None:
        self._trainer, self._resumed = trainer, resumed
        self._cursor = replace(trainer.cursor)
        self._samples = None if trainer.run.setup.options.run.noplots else _sample_collector(trainer.run)
        self._content: dict[str, Any] = {}
        self._earlier: list[dict[str, float]] = []
        self._validated = False
        self._ended = False
        self._next_write = 0.0

    @property
    def _folder(self) -> Path:
        return self._trainer.folder.path

    def on_train_start(self) -> None:
        """Write the page before the first epoch; a resumed run loads the earlier content."""
        before = self._read_earlier()
        self._earlier = [item for item in before.get("times", ()) if self._is_final(item)]
        self._content = {
            **fixed_content(self._trainer.run),
            "validation": before.get("validation"),
            "samples": before.get("samples", []),
        }
        self._write("running")

    def _is_final(self, times: Mapping[str, float]) -> bool:
        """Return whether an epoch, or part of one, that was recorded before resuming will not be trained again.

        At the end of an epoch, the page is written before the checkpoint. If the run was killed in between, it resumes
        before the end of the recorded epoch.
        """
        if times["epoch"] != self._cursor.epoch:
            return times["epoch"] < self._cursor.epoch
        done = sum(map(self._trainer.run.train_pipeline.images_of, range(self._cursor.next_batch)))
        return times["images"] <= done

    def on_val_start(self) -> None:
        """Drop the sample predictions of the previous validation."""
        if self._samples:
            self._samples.start()

    def on_val_image_end(self, pred: np.ndarray, predn: np.ndarray, path: str, names: Sequence[str], im: Any) -> None:
        """Collect an image if it is one of the samples."""
        if self._samples:
            self._samples.add(path, predn)

    def on_val_end(self, *_: Any) -> None:
        """Remember that there is a new validation."""
        self._validated = True

    def on_fit_epoch_end(self, vals: Sequence[float], epoch: int, best_fitness: float, fi: float) -> None:
        """Rewrite the page, unless it was written too recently."""
        self._take_validation(f"the weights of epoch {epoch}")
        if time.monotonic() >= self._next_write:
            self._write("running")

    def on_train_end(self, last: Path, best: Path, epoch: int, results: Sequence[float]) -> None:
        """Write the final page."""
        self._take_validation("the best weights")
        self._ended = True
        self._write("finished")
        LOG.info("Report: %s", printable(self._folder / PAGE))

    def teardown(self) -> None:
        """Mark a stopped run on the page."""
        if self._content and not self._ended:
            self._write("stopped")

    def _take_validation(self, weights: str) -> None:
        result, self._validated = self._trainer.last_validation if self._validated else None, False
        if result is None:
            return
        self._content["validation"] = validation_content(result, weights)
        self._content["samples"] = [sample.as_dict() for sample in self._samples.samples] if self._samples else []

    def _read_earlier(self) -> dict[str, Any]:
        """Read `report.json` of a resumed run; return {} for a new run or if the file is unusable."""
        path = self._folder / NUMBERS
        if not self._resumed or not path.exists():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not _is_report(content):
                raise ValueError("has other content than a report of this version")
        except (ValueError, RecursionError) as error:
            LOG.warning("%s: cannot be read (%s); the report covers only this part of the run", printable(path), error)
            return {}
        return content

    def _write(self, state: str) -> None:
        started = time.monotonic()
        trainer = self._trainer
        columns: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):  # no epochs yet, or the file was replaced
            columns = read_results(self._folder / RESULTS)
        content = {
            **self._content,
            "name": self._folder.name,
            "folder": str(self._folder),
            "written": time.strftime("%Y-%m-%d %H:%M:%S"),
            "state": state,
            "done": len(columns.get("epoch", ())),
            **results_content(columns),
            "times": times_content(trainer.times, self._earlier),
            "graphs": trainer.run.step.summary(),
            "commands": commands(
                self._folder, trainer.run.setup.options, state=state, best=trainer.folder.best.exists()
            ),
        }
        numbers = json.dumps(finite(content), allow_nan=False, indent=1)
        write_atomically(self._folder / NUMBERS, numbers)
        samples = [{**sample, "picture": picture(sample["path"])} for sample in content["samples"]]
        write_atomically(self._folder / PAGE, render({**content, "samples": samples}))
        self._next_write = time.monotonic() + (time.monotonic() - started) / MAX_TIME_FRACTION


def _is_report(content: Any) -> bool:
    """Return whether the entries of a `report.json` that a resumed run continues have the types they are written in."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return False
    validation, samples, times = (content.get(name) for name in ("validation", "samples", "times"))
    names = [item.name for item in fields(EpochTimes)]
    return (
        isinstance(validation, dict | None)
        and isinstance(samples, list)
        and all(isinstance(sample, dict) and isinstance(sample.get("path"), str) for sample in samples)
        and isinstance(times, list)
        and all(
            isinstance(item, dict) and all(isinstance(item.get(name), int | float) for name in names) for item in times
        )
    )


def _sample_collector(run: TrainingRun) -> SampleCollector:
    exchange = run.setup.exchange
    images = images_on_rank(run.val_pipeline, Shard(exchange.rank, exchange.ranks))
    return SampleCollector(run.setup.data.val, images)
