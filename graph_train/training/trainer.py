"""The training loop: epochs of steps, validation of the averaged weights, checkpoints, early stopping."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from graph_train.detection.inference import on_host
from graph_train.hooks.callbacks import Callbacks
from graph_train.host.failures import GracefulStop
from graph_train.host.interrupts import StopRequest
from graph_train.runs.cursor import Cursor
from graph_train.runs.results_csv import RESULTS, EpochRow, ResultsCsv
from graph_train.runs.run_folder import RunFolder
from graph_train.training.agreement import Agreement, require_same_digest
from graph_train.training.assembly import TrainingRun
from graph_train.training.early_stopping import EarlyStopping
from graph_train.training.epoch_batches import EpochBatches
from graph_train.training.epoch_validation import EpochValidation, result_values
from graph_train.training.nonfinite import NonFiniteWatch, SuspectBatch, first_bad_tensor
from graph_train.training.progress import EpochProgress, EpochTimes
from graph_train.training.run_checkpoints import RunCheckpoints
from graph_train.validation.coco_results import CocoMetrics
from graph_train.validation.result import ValidationResult
from kernels.framework.global_rows import local_shard
from kernels.host.paths import printable, shell_word
from kernels.runtime import Tensor
from pipelines.batches import Batch

LOG = logging.getLogger("graph_train")
PLOTTED_BATCHES = 3
PER_BATCH_HOOKS = ("optimizer_step", "on_before_zero_grad", "on_train_batch_end")
"""Hooks that must see the network as their batch left it. If any rank uses one, steps do not overlap."""


@dataclass(frozen=True)
class _PendingBatch:
    """A batch whose step has been started but not finished; `number` counts the batches of the whole run."""

    batch: Batch
    images: Tensor
    labels: Tensor
    number: int


@dataclass(frozen=True)
class TrainResult:
    """The result of a run."""

    folder: Path
    best: Path
    epochs: int
    validation: ValidationResult | None
    """Validation of the best weights, else of the last epoch; None if the run was stopped early by a callback."""
    coco: CocoMetrics | None = None
    """COCO metrics of the best weights, if the data set is COCO 2017 with its annotations."""

    @property
    def results(self) -> tuple[float, ...]:
        """Precision, recall, mAP50, mAP50-95 and the box, objectness and class loss; zeros without a validation.

        If `coco` is set, mAP is taken from it, as in YOLOv5.
        """
        return result_values(self.validation, self.coco)


class Trainer:
    """The training loop of a run that `assemble` has built."""

    def __init__(
        self,
        run: TrainingRun,
        folder: RunFolder,
        cursor: Cursor,
        stopper: EarlyStopping,
        callbacks: Callbacks | None = None,
        *,
        results: Sequence[str] = (),
    ) -> None:
        """`results` are the rows of `results.csv` up to the cursor."""
        self.run, self.folder, self.cursor, self.stopper = run, folder, cursor, stopper
        self.callbacks = callbacks or Callbacks()
        self.times: list[EpochTimes] = []
        """Times of each epoch trained by this process."""
        self.csv = ResultsCsv(folder.path / RESULTS, results)
        options = run.setup.options
        self._checkpoints = RunCheckpoints(run, folder, cursor, stopper, self.csv)
        self.saving = self._checkpoints.saving
        self._exchange = run.setup.exchange
        self._request = StopRequest()
        self._agreement = Agreement(self._exchange, self._request, self.callbacks)
        self._max_labels, self._finish_immediately = 0, False
        self._pending: _PendingBatch | None = None
        self._batches = EpochBatches(run)
        self._validation = EpochValidation(run, folder.path, self.callbacks, self._sync_and_stop_if_requested)
        self._nonfinite = NonFiniteWatch(options.optim.max_nonfinite, folder.path, self._first_bad_tensor)

    def train(self) -> TrainResult:
        """Train until the run is complete, or a signal or a callback stops it.

        Raises:
            KeyboardInterrupt: stopped by a signal, after saving the state.
            NotSavedError: a file could not be written and `--on-save-error` is stop.
            DivergedError: too many consecutive updates were not finite.
        """
        with self._request:
            try:
                return self._train()
            finally:
                if not self._request.forced:
                    self.saving.finish()

    def _train(self) -> TrainResult:
        run, cursor = self.run, self.cursor
        with self.saving.guarded():
            self.csv.begin()
        self._batches.compile_largest(cursor.epoch)
        self.callbacks.run("on_train_start")
        while cursor.epoch < run.setup.options.optim.epochs and not cursor.finished:
            if not self._train_epoch():
                return self._stop_by_callback()
            self._finish_epoch()
            self._sync_and_stop_if_requested()
            if self.callbacks.stop_training and not cursor.finished:
                return self._stop_by_callback()
        result = self._finish_run()
        self.saving.require_saved()
        return result

    @property
    def last_validation(self) -> ValidationResult | None:
        """The latest complete validation."""
        return self._validation.last

    def _sync_and_stop_if_requested(self) -> None:
        self._agreement.sync()
        self._stop_if_requested()

    def _stop_if_requested(self) -> None:
        """Save and stop if a signal has requested it; SIGHUP is only logged."""
        if self._request.hung_up:
            self._request.hung_up = False
            LOG.info(
                "The terminal was closed (SIGHUP); training continues, see %s",
                printable(self.folder.path / "train.log"),
            )
        if not self._agreement.signal:
            return
        if not self._complete:
            self.save_last()
        LOG.info("Stopped by %s; %s", self._agreement.signal, self._resume_hint())
        raise GracefulStop

    @property
    def _complete(self) -> bool:
        """Whether all epochs are done and saved. The average may then hold the best weights instead of the latest."""
        return self.cursor.finished or self.cursor.epoch >= self.run.setup.options.optim.epochs

    def _stop_by_callback(self) -> TrainResult:
        """Save the state and return the result of a run stopped by a callback."""
        self.save_last()
        LOG.info("Stopped by a callback; %s", self._resume_hint())
        return TrainResult(self.folder.path, self.folder.best, self.cursor.epoch, None)

    def _resume_hint(self) -> str:
        if self._evolving:
            evolution = self.folder.path.parent
            place = f"--project {shell_word(evolution.parent)} --name {shell_word(evolution.name)}"
            return f"to continue, repeat the command with {place} --exist-ok"
        return f"continue with: graph-train --resume {shell_word(self.folder.last)}"

    @property
    def _evolving(self) -> bool:
        """Whether this is a training of an evolution, which saves no checkpoints."""
        return self.run.setup.options.optim.evolve > 0

    # --- one epoch -------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch; return False if a callback stopped it before."""
        run, cursor = self.run, self.cursor
        if cursor.next_batch == 0:
            run.state.drop_pending_gradients()
        self.callbacks.run("on_train_epoch_start")
        batches = run.train_pipeline.batches_per_epoch
        progress = self._progress = EpochProgress(
            cursor.epoch, run.setup.options.optim.epochs, batches=batches, first_batch=cursor.next_batch
        )
        remaining, number = self._batches.remaining(cursor), cursor.epoch * batches + cursor.next_batch
        while True:
            started = time.perf_counter()
            batch = next(remaining, None)
            progress.spent.waiting += time.perf_counter() - started
            if batch is None or not self._sync_before(batch, number):
                break
            self._train_batch(batch, number)
            number += 1
            self._stop_if_requested()
            # Several ranks synchronise it before each batch.
            if self._exchange.single_rank and self.callbacks.stop_training:
                break
        self._finish_batch()
        self.times.append(progress.close())
        return batch is None

    def _sync_before(self, batch: Batch, number: int) -> bool:
        """Synchronise label capacity, saves and stop requests over the ranks; return False to stop the epoch."""
        listens = any(map(self.callbacks.listens, PER_BATCH_HOOKS))
        self._max_labels, save, immediately = self._agreement.sync(
            batch.max_labels, self._checkpoints.due_before(number), listens
        )
        self._finish_immediately = bool(immediately)
        if self._exchange.single_rank:
            return True
        self._stop_if_requested()
        if save:
            self._save_now()
        return not self.callbacks.stop_training

    def _train_batch(self, batch: Batch, number: int) -> None:
        """Start this batch's step, then finish the previous one, so that host and device work overlap."""
        run, cursor = self.run, self.cursor
        self.callbacks.run("on_train_batch_start")
        total = run.train_pipeline.images_of(number % run.train_pipeline.batches_per_epoch)
        labels = self._batches.padded_labels(batch, total, self._max_labels)
        images = run.setup.placement.shard_batch(batch.images, total)
        with self._progress.spent.count_computing(run.step):
            run.step.start(images, labels, run.schedule.at(number, cursor.epoch))
        self._finish_batch()
        self._pending = _PendingBatch(batch, images, labels, number)
        if self._finish_immediately:
            self._finish_batch()
        self.save_if_due(number)

    def _finish_batch(self) -> None:
        """Wait for the pending step, if there is one, and process its result."""
        if self._pending is None:
            return
        run, cursor, pending, self._pending = self.run, self.cursor, self._pending, None
        loss_scale = run.state.counters.loss_scale  # of this step; `finish` sets that of the next one
        with self._progress.spent.count_computing(run.step):
            result = run.step.finish()
        cursor.add(result)
        batch, images = pending.batch, pending.images
        count, side = int(images.shape[0]), int(images.shape[-1])
        self._progress.step(cursor.means(), instances=len(batch.labels), images=count, image_px=side)
        if result.updated:
            self.callbacks.run("optimizer_step")
            self.callbacks.run("on_before_zero_grad")
        self.callbacks.run(
            "on_train_batch_end",
            run.state.network,
            pending.number,
            local_shard(images),
            batch.labels,
            [str(path) for path in batch.paths],
            cursor.means(),
        )
        if pending.number < PLOTTED_BATCHES and not run.setup.options.run.noplots:
            with self.saving.guarded():
                self._plot(batch, pending.number)
        skipped = run.state.counters.skipped_in_row
        self._nonfinite.check(result, skipped, lambda: self._suspect_batch(pending, loss_scale), loss_scale=loss_scale)

    def _suspect_batch(self, pending: _PendingBatch, loss_scale: float) -> SuspectBatch:
        run, epoch, batch = self.run, self.cursor.epoch, pending.batch
        facts = {
            "epoch": epoch,
            "batch": self.cursor.next_batch - 1,
            "files": [str(path) for path in batch.paths],
            "learning_rates": list(run.schedule.at(pending.number, epoch).learning_rates),
            "loss_scale": loss_scale,
        }
        return SuspectBatch(
            np.array(on_host(batch.images)), run.setup.placement.local_rows(pending.labels).copy(), facts
        )

    def _first_bad_tensor(self, suspect: SuspectBatch) -> str:
        step = self.run.step
        total = self.run.train_pipeline.images_of(suspect.facts["batch"])
        return first_bad_tensor(
            self.run.state.network,
            step.criterion,
            suspect.images,
            suspect.labels,
            partial(step.placement.shard_batch, total=total),
            loss_scale=suspect.facts["loss_scale"],
        )

    def _plot(self, batch: Batch, number: int) -> None:
        from graph_train.plots.images import plot_labelled
        from graph_train.plots.style import optional_plot

        path, names = self.folder.path / f"train_batch{number}.jpg", self.run.setup.data.class_names
        with optional_plot(path):
            plot_labelled(on_host(batch.images), batch.labels, names, path, paths=batch.paths)

    # --- after an epoch --------------------------------------------------------------------------------------------

    def _finish_epoch(self) -> None:
        run, cursor = self.run, self.cursor
        options, epoch = run.setup.options, cursor.epoch
        self.callbacks.run("on_train_epoch_end", epoch)
        last_epoch = epoch + 1 >= options.optim.epochs
        final = last_epoch or cursor.possible_stop
        run.state.flush()
        started = time.perf_counter()
        validation = self._validation.measure() if final or not options.run.noval else None
        self.times[-1] = replace(self.times[-1], validating=time.perf_counter() - started)
        if validation is not None:
            cursor.maps = [float(value) for value in validation.maps]
        row = self._csv_row(validation)
        with self.saving.guarded():
            self.csv.append(row)
        # Ranks may differ in the last bit, so rank 0's value is used.
        fitness = self._exchange.broadcast(validation.fitness if validation is not None else 0.0)
        improved = validation is not None and fitness >= cursor.best_fitness
        if improved:
            cursor.best_fitness = fitness
        stop = self._update_early_stopping(fitness)
        self.callbacks.run("on_fit_epoch_end", row.values(), epoch, max(cursor.best_fitness, 0.0), fitness)
        cursor.next_epoch()
        cursor.finished = stop or last_epoch
        if not options.run.nosave or final or cursor.finished:
            self._save_epoch(epoch, fitness, improved=improved)

    def _update_early_stopping(self, fitness: float) -> bool:
        """Record the fitness of an epoch, 0 if it was not validated, as in YOLOv5; return whether to stop early."""
        decision = self.stopper.update(self.cursor.epoch, fitness)
        self.cursor.possible_stop = decision.possible_stop
        if decision.stop:
            LOG.info(
                "Stopping early: no improvement since epoch %d (--patience %d)",
                self.stopper.best_epoch,
                self.run.setup.options.optim.patience,
            )
        return decision.stop

    def _csv_row(self, validation: ValidationResult | None) -> EpochRow:
        run, cursor = self.run, self.cursor
        number = cursor.epoch * run.schedule.batches_per_epoch + max(cursor.next_batch - 1, 0)
        values = result_values(validation)
        return EpochRow(
            epoch=cursor.epoch,
            train_losses=cursor.means(),
            metrics=(values[0], values[1], values[2], values[3]),
            val_losses=(values[4], values[5], values[6]),
            learning_rates=run.schedule.at(number, cursor.epoch).learning_rates,
        )

    # --- saving ----------------------------------------------------------------------------------------------------

    def save_if_due(self, number: int) -> None:
        """Start saving the state after batch `number` of the run, if a save is due."""
        self.saving.check()
        if self._exchange.single_rank and self.saving.due(number):
            self._save_now()

    def _save_now(self) -> None:
        self._finish_batch()
        self._checkpoints.save()

    def _save_epoch(self, epoch: int, fitness: float, *, improved: bool) -> None:
        if self._evolving or not self._exchange.is_main:
            return
        self._checkpoints.save_epoch(epoch, improved=improved)
        if (self.cursor.finished or self.callbacks.listens("on_model_save")) and self.saving.finish():
            best = max(self.cursor.best_fitness, 0.0)
            self.callbacks.run("on_model_save", self.folder.last, epoch, self.cursor.finished, best, fitness)

    def save_last(self) -> None:
        """Save the whole state and wait until it is written."""
        if self._evolving:
            return
        self._save_now()
        self.saving.finish()

    # --- the end ---------------------------------------------------------------------------------------------------

    def _finish_run(self) -> TrainResult:
        run = self.run
        validation = self.last_validation
        if self._exchange.broadcast(self.folder.best.exists()) and not self._evolving:
            LOG.info("Validating %s", printable(self.folder.best))
            self._load_best()
            with self.saving.guarded():
                validation = self._validation.measure_best(self.folder.best)
        if not run.setup.options.run.noplots:
            from graph_train.plots.results import plot_results
            from graph_train.plots.style import optional_plot

            picture = self.folder.path / "results.png"
            with self.saving.guarded(), optional_plot(picture):
                plot_results(self.folder.path / RESULTS, picture)
        if summary := run.step.summary():
            LOG.info("%s", summary)
        if not self._exchange.single_rank:
            LOG.info(
                "All %d ranks hold the same weights: %s",
                self._exchange.ranks,
                require_same_digest(run.state.digest(), self._exchange),
            )
        result = TrainResult(self.folder.path, self.folder.best, self.cursor.epoch, validation, self._validation.coco)
        self.callbacks.run("on_train_end", self.folder.last, self.folder.best, self.cursor.epoch - 1, result.results)
        LOG.info("Results saved to %s", printable(self.folder.path))
        return result

    def _load_best(self) -> None:
        from models.weights import load_weights, transfer

        average = self.run.state.average
        if self._exchange.is_main:
            transfer(average, load_weights(self.folder.best))
        self.run.setup.placement.broadcast_in_place(average.state_dict().values())
