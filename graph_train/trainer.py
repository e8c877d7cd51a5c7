"""The driver: epochs of steps, validation of the averaged weights, checkpoints, early stopping. No mathematics."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graph_train.assembly import Run, Saved, anchors_px, assemble
from graph_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from graph_train.early_stopping import EarlyStopping
from graph_train.files import write_atomically
from graph_train.hyperparameters import Hyperparameters, load_hyperparameters
from graph_train.inference import on_device
from graph_train.interrupts import StopRequest
from graph_train.options import TrainOptions, options_from_flags
from graph_train.progress import EpochProgress
from graph_train.results_csv import EpochRow, ResultsCsv
from graph_train.run_folder import RunFolder, checkpoint_to_resume, new_run_folder
from graph_train.sampling import class_weights, epoch_class_weights, image_weights
from graph_train.state import Counters
from graph_train.step import GraphStep, StepResult
from graph_train.validation import TABLE_HEADER, ValidationResult, ValidationSettings, validate
from kernels.runtime import Tensor, flow
from models.targets import label_capacity, pad_labels
from models.weights import save_weights

LOG = logging.getLogger("graph_train")
DRAWN_BATCHES = 3
VAL_IOU_THRESHOLD = 0.6


@dataclass
class Cursor:
    """How far a run has come: saved with every checkpoint, so that it goes on exactly there."""

    epoch: int = 0
    next_batch: int = 0
    loss_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Box, objectness and class loss, summed over the batches of this epoch."""
    maps: list[float] = field(default_factory=list)
    """mAP50-95 of each class at the last validation, which `--image-weights` uses."""
    best_fitness: float = -1.0
    finished: bool = False

    def add(self, result: StepResult) -> None:
        """Counts one batch."""
        parts = (result.box, result.objectness, result.classes)
        self.loss_sums = [total + part for total, part in zip(self.loss_sums, parts, strict=True)]
        self.next_batch += 1

    def means(self) -> tuple[float, float, float]:
        """Mean box, objectness and class loss of the epoch so far."""
        box, objectness, classes = (total / max(self.next_batch, 1) for total in self.loss_sums)
        return box, objectness, classes

    def next_epoch(self) -> None:
        """Moves to the start of the following epoch."""
        self.epoch, self.next_batch, self.loss_sums = self.epoch + 1, 0, [0.0, 0.0, 0.0]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    folder: Path
    best: Path
    epochs: int
    validation: ValidationResult | None
    """Validation of the best weights; None if the run was stopped before its end."""


class Trainer:
    """Runs what `assemble` has built."""

    def __init__(self, run: Run, folder: RunFolder, cursor: Cursor, stopper: EarlyStopping) -> None:
        self.run, self.folder, self.cursor, self.stopper = run, folder, cursor, stopper
        self.csv = ResultsCsv(folder.path / "results.csv")

    def train(self) -> TrainResult:
        """Runs to the end, or until a signal asks for a stop.

        Raises:
            KeyboardInterrupt: a signal; the state was saved.
        """
        run, cursor = self.run, self.cursor
        self.csv.truncate(cursor.epoch)
        with StopRequest() as request:
            while cursor.epoch < run.setup.options.optim.epochs and not cursor.finished:
                self._train_epoch(request)
                self._finish_epoch()
                self._leave_if_asked(request)
        return self._finish()

    def _leave_if_asked(self, request: StopRequest) -> None:
        if not request.asked:
            return
        self.save_last()
        LOG.info("Stopped by %s; go on with: graph-train --resume %s", request.asked, self.folder.last)
        raise KeyboardInterrupt

    # --- one epoch -------------------------------------------------------------------------------------------------

    def _train_epoch(self, request: StopRequest) -> None:
        run, cursor = self.run, self.cursor
        if cursor.next_batch == 0:
            run.state.drop_pending_gradients()
        batches = run.train_pipeline.batches_per_epoch
        progress = EpochProgress(
            cursor.epoch, run.setup.options.optim.epochs, batches=batches, first_batch=cursor.next_batch
        )
        source = iter(
            run.train_pipeline.epoch(cursor.epoch, first_batch=cursor.next_batch, image_weights=self._weights())
        )
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            progress.shares.waiting += time.perf_counter() - asked
            if batch is None:
                break
            self._train_batch(batch, cursor.epoch * batches + cursor.next_batch, progress)
            self._leave_if_asked(request)
        progress.close()

    def _train_batch(self, batch: Any, number: int, progress: EpochProgress) -> None:
        """One step; `number` counts the batches of the whole run."""
        run, cursor = self.run, self.cursor
        if number < DRAWN_BATCHES and not run.setup.options.run.noplots:
            self._draw(batch, number)
        labels = self._padded(batch)
        images = on_device(batch.images, run.setup.device)
        started = time.perf_counter()
        result = run.step(images, labels, run.schedule.at(number, cursor.epoch))
        progress.shares.computing += time.perf_counter() - started
        cursor.add(result)
        count, side = int(images.shape[0]), int(images.shape[-1])
        progress.step(cursor.means(), instances=len(batch.labels), images=count, image_px=side)

    def _padded(self, batch: Any) -> Tensor:
        """Labels (B, T, 5); T below the data set's typical capacity is not used, so that few shapes are compiled."""
        capacity = label_capacity(max(batch.max_labels, self.run.label_floor))
        return flow.tensor(pad_labels(batch.labels, int(batch.images.shape[0]), capacity), device=self.run.setup.device)

    def _weights(self) -> np.ndarray | None:
        """Weights of the images for `--image-weights`: rare classes and badly found ones count more."""
        run = self.run
        if not run.setup.options.data.image_weights:
            return None
        labels, classes = run.setup.data.train.labels, len(run.setup.data.class_names)
        maps = np.asarray(self.cursor.maps or [0.0] * classes)
        return image_weights(labels, classes, epoch_class_weights(class_weights(labels, classes) * classes, maps))

    def _draw(self, batch: Any, number: int) -> None:
        from graph_train.plots.images import plot_labelled

        path = self.folder.path / f"train_batch{number}.jpg"
        plot_labelled(_host(batch.images), batch.labels, self.run.setup.data.class_names, path, paths=batch.paths)

    # --- after an epoch --------------------------------------------------------------------------------------------

    def _finish_epoch(self) -> None:
        run, cursor = self.run, self.cursor
        last_epoch = cursor.epoch + 1 >= run.setup.options.optim.epochs
        run.state.flush()
        validation = None
        if last_epoch or not run.setup.options.run.noval:
            validation = self.validate()
            cursor.maps = [float(value) for value in validation.maps]
        self._write_row(validation)
        improved = validation is not None and validation.fitness >= cursor.best_fitness
        if validation is not None:
            cursor.best_fitness = max(cursor.best_fitness, validation.fitness)
            decision = self.stopper.update(cursor.epoch, validation.fitness)
            cursor.finished = decision.stop
            if decision.stop:
                LOG.info(
                    "Stopped early: no improvement over epoch %d for %d epochs",
                    self.stopper.best_epoch,
                    run.setup.options.optim.patience,
                )
        epoch = cursor.epoch
        cursor.next_epoch()
        cursor.finished = cursor.finished or last_epoch
        if not run.setup.options.run.nosave or cursor.finished:
            self._save_epoch(epoch, improved=improved)

    def _write_row(self, validation: ValidationResult | None) -> None:
        run, cursor = self.run, self.cursor
        number = cursor.epoch * run.schedule.batches_per_epoch + max(cursor.next_batch - 1, 0)
        settings = run.schedule.at(number, cursor.epoch)
        means = validation.means if validation else (0.0, 0.0, 0.0, 0.0)
        losses = validation.loss if validation is not None and validation.loss is not None else (0.0, 0.0, 0.0)
        self.csv.append(
            EpochRow(
                epoch=cursor.epoch,
                train_losses=cursor.means(),
                metrics=means,
                val_losses=(float(losses[0]), float(losses[1]), float(losses[2])),
                learning_rates=settings.learning_rates,
            )
        )

    def validate(self, *, plots: bool = False, per_class: bool = False) -> ValidationResult:
        """Measures the averaged weights and prints the table."""
        run = self.run
        settings = ValidationSettings(
            iou_thres=VAL_IOU_THRESHOLD,
            single_cls=run.setup.options.data.single_cls,
            plots_dir=self.folder.path if plots and not run.setup.options.run.noplots else None,
        )
        result = validate(run.inference, run.val_pipeline, run.setup.data.class_names, settings)
        LOG.info("%s", result.table(per_class=per_class))
        return result

    # --- saving ----------------------------------------------------------------------------------------------------

    def _save_epoch(self, epoch: int, *, improved: bool) -> None:
        checkpoint = self.checkpoint()
        save_checkpoint(self.folder.last, checkpoint)
        if improved:
            self._save_best()
        period = self.run.setup.options.run.save_period
        if period > 0 and epoch % period == 0:
            save_checkpoint(self.folder.weights / f"epoch{epoch}.safetensors", checkpoint)

    def _save_best(self) -> None:
        save_weights(self.run.state.average, self.folder.best)

    def save_last(self) -> None:
        """Saves the whole state; the run can go on from exactly here."""
        self.run.state.flush()
        save_checkpoint(self.folder.last, self.checkpoint())

    def checkpoint(self) -> Checkpoint:
        """The whole state; `state.flush()` comes first."""
        run = self.run
        header = {
            "options": run.setup.options.as_flat_dict(),
            "hyp": run.setup.hyp.as_dict(),
            "cursor": asdict(self.cursor),
            "counters": asdict(run.state.counters),
            "early_stopping": self.stopper.state(),
            "epoch": self.cursor.epoch - 1,
            "class_names": list(run.setup.data.class_names),
            "config": dict(run.state.network.spec.config),
            "stride": list(run.state.network.stride),
            "anchors_px": anchors_px(run.state.network).tolist(),
        }
        return Checkpoint(arrays=run.state.arrays(), header=header)

    # --- the end ---------------------------------------------------------------------------------------------------

    def _finish(self) -> TrainResult:
        run = self.run
        validation = None
        if self.folder.best.exists():
            LOG.info("Validating %s", self.folder.best)
            self._load_best()
            LOG.info("%s", TABLE_HEADER)
            validation = self.validate(plots=True, per_class=True)
        if not run.setup.options.run.noplots:
            from graph_train.plots.results import plot_results

            plot_results(self.folder.path / "results.csv", self.folder.path / "results.png")
        if isinstance(run.step, GraphStep):
            LOG.info("%s", run.step.summary())
        LOG.info("Results saved to %s", self.folder.path)
        return TrainResult(self.folder.path, self.folder.best, self.cursor.epoch, validation)

    def _load_best(self) -> None:
        from models.weights import load_weights, transfer

        transfer(self.run.state.average, load_weights(self.folder.best))


def _host(images: Any) -> np.ndarray:
    return images if isinstance(images, np.ndarray) else images.numpy()


def _save_settings(run: Run, folder: RunFolder) -> None:
    import yaml

    write_atomically(folder.path / "opt.yaml", yaml.safe_dump(run.setup.options.as_flat_dict(), sort_keys=False))
    run.setup.hyp.save(folder.path / "hyp.yaml")


_CHANGEABLE_ON_RESUME = ("resume", "epochs", "device", "workers", "kernels", "debug", "cache", "noplots")


def _resumed(flags: Mapping[str, Any]) -> tuple[TrainOptions, Checkpoint, Path]:
    """Settings and state of the run that `--resume` names; a few flags may differ from the saved ones.

    Raises:
        ValueError: nothing to resume, a damaged file, or a flag that would make it another run.
    """
    path = checkpoint_to_resume(flags["resume"], flags.get("project", "runs/train"))
    checkpoint = load_checkpoint(path)
    saved = dict(checkpoint.header["options"])
    for name, value in flags.items():
        if name not in _CHANGEABLE_ON_RESUME and name != "project" and saved.get(name) != value:
            raise ValueError(
                f"--{name.replace('_', '-')} {value!r} differs from the saved run ({saved.get(name)!r}); a resumed run "
                f"may change only --{', --'.join(_CHANGEABLE_ON_RESUME[1:])}"
            )
    saved.update({name: flags[name] for name in _CHANGEABLE_ON_RESUME if name in flags})
    saved["freeze"] = tuple(saved["freeze"])
    return options_from_flags(**saved), checkpoint, path


def train(**flags: Any) -> TrainResult:
    """Trains a detector; the arguments are the flags of `graph-train` with underscores.

    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
        KeyboardInterrupt: stopped by a signal, after saving.
    """
    options = options_from_flags(**flags)
    checkpoint = None
    if options.run.resume:
        options, checkpoint, path = _resumed(flags)
        folder = RunFolder(path.parent.parent)
    else:
        load_hyperparameters(options.optim.hyp)  # a broken file ends the run before a folder is made
        folder = new_run_folder(options.run.project, options.run.name, exist_ok=options.run.exist_ok)
    folder.open_log()
    try:
        return _train_in(folder, options, checkpoint)
    finally:
        folder.close()


def _train_in(folder: RunFolder, options: TrainOptions, checkpoint: Checkpoint | None) -> TrainResult:
    hyp, saved = load_hyperparameters(options.optim.hyp), None
    if checkpoint is not None:
        header = checkpoint.header
        hyp = Hyperparameters(**header["hyp"])
        saved = Saved(header["config"], np.asarray(header["anchors_px"], np.float32))
    run = assemble(options, hyp, saved)
    try:
        cursor, stopper = Cursor(), EarlyStopping(options.optim.patience)
        if checkpoint is not None:
            run.state.load_arrays(checkpoint.arrays, Counters(**header["counters"]))
            cursor = Cursor(**header["cursor"])
            cursor.finished = cursor.finished and cursor.epoch >= options.optim.epochs
            stopper.restore(header["early_stopping"])
            LOG.info("Resuming at epoch %d, batch %d", cursor.epoch, cursor.next_batch)
        else:
            _save_settings(run, folder)
        return Trainer(run, folder, cursor, stopper).train()
    finally:
        run.close()
