"""Starts a training: a new run, one that is resumed, or the many short ones of an evolution."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from graph_train.assembly import Run, Saved, assemble
from graph_train.auto_batch import with_batch_size
from graph_train.callbacks import HOOKS, Callbacks
from graph_train.checkpoint import Checkpoint, load_checkpoint
from graph_train.devices import select_device
from graph_train.early_stopping import EarlyStopping
from graph_train.evolution import EvolutionResult, evolve
from graph_train.files import write_atomically
from graph_train.generation import train_generation
from graph_train.hyperparameters import Hyperparameters, load_hyperparameters
from graph_train.loggers import RunDescription, add_loggers
from graph_train.options import TrainOptions, options_from_flags
from graph_train.report import ReportHooks
from graph_train.run_folder import RunFolder, checkpoint_to_resume, new_run_folder
from graph_train.state import Counters
from graph_train.trainer import Cursor, Trainer, TrainResult
from models.complexity import measure
from pipelines.problems import write_problems

LOG = logging.getLogger("graph_train")
DEFAULT_PROJECT, EVOLVE_PROJECT = "runs/train", "runs/evolve"
_CHANGEABLE_ON_RESUME = (
    "resume",
    "epochs",
    "device",
    "workers",
    "kernels",
    "debug",
    "cache",
    "noplots",
    "loggers",
    "allow_download",
)


def train(*, callbacks: Callbacks | None = None, **flags: Any) -> TrainResult | EvolutionResult:
    """Trains a detector; the arguments are the flags of `graph-train` with underscores.

    Args:
        callbacks: who wants to hear of the run's events, besides the loggers that the flags name.
        flags: settings; what is left out has its default.
    Returns:
        What came of it; with `evolve` the result of the evolution.
    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
        KeyboardInterrupt: stopped by a signal, after saving.
    """
    options = options_from_flags(**flags)
    _require_one_process(options)
    listeners = callbacks if callbacks is not None else Callbacks()
    if options.optim.evolve:
        return _evolve(options, listeners)
    checkpoint = None
    if options.run.resume:
        options, checkpoint, path = _resumed(flags)
        folder = RunFolder(path.parent.parent)
    else:
        # A broken file or a missing device ends the run before a folder is made.
        load_hyperparameters(options.optim.hyp)
        select_device(options.engine.device)
        folder = new_run_folder(options.run.project, options.run.name, exist_ok=options.run.exist_ok)
    folder.open_log()
    try:
        listeners.run("on_pretrain_routine_start")
        return _train_in(folder, options, checkpoint, listeners)
    finally:
        listeners.run("teardown")
        folder.close()


def _require_one_process(options: TrainOptions) -> None:
    """Refuses what several processes would need, rather than training the same thing in each of them.

    Raises:
        ValueError: more than one process, or a rank without a launcher.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ValueError(
            f"WORLD_SIZE={processes}: several processes are not supported yet; start one, without a launcher"
        )
    if options.engine.local_rank > 0 or (options.engine.local_rank == 0 and "WORLD_SIZE" not in os.environ):
        raise ValueError(
            f"--local_rank {options.engine.local_rank}: only a launcher sets it, and several processes are not "
            "supported yet; leave it out"
        )


def _resumed(flags: Mapping[str, Any]) -> tuple[TrainOptions, Checkpoint, Path]:
    """Settings and state of the run that `--resume` names; a few flags may differ from the saved ones.

    Raises:
        ValueError: nothing to resume, a damaged file, or a flag that would make it another run.
    """
    given = options_from_flags(**flags).as_flat_dict()
    path = checkpoint_to_resume(given["resume"], given["project"])
    checkpoint = load_checkpoint(path)
    saved = dict(checkpoint.header["options"])
    for name in flags:
        if name not in _CHANGEABLE_ON_RESUME and name != "project" and saved.get(name) != given[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} {given[name]!r} differs from the saved run ({saved.get(name)!r}); a "
                f"resumed run may change only --{', --'.join(_CHANGEABLE_ON_RESUME[1:])}"
            )
    saved.update({name: given[name] for name in _CHANGEABLE_ON_RESUME if name in flags})
    return options_from_flags(**saved), checkpoint, path


def _train_in(
    folder: RunFolder, options: TrainOptions, checkpoint: Checkpoint | None, callbacks: Callbacks
) -> TrainResult:
    hyp, saved, cursor = load_hyperparameters(options.optim.hyp), None, Cursor()
    stopper = EarlyStopping(options.optim.patience)
    if checkpoint is not None:
        header = checkpoint.header
        hyp = Hyperparameters(**header["hyp"])
        saved = Saved(header["config"], np.asarray(header["anchors_px"], np.float32))
        cursor = Cursor(**header["cursor"])
        cursor.finished = cursor.finished and cursor.epoch >= options.optim.epochs
        stopper.restore(header["early_stopping"])
    if checkpoint is None:
        options = _with_batch_size(options, hyp, callbacks)
    run = assemble(options, hyp, saved)
    try:
        _describe(run, folder, callbacks, first_epoch=cursor.epoch)
        if checkpoint is None:
            _save_settings(run, folder)
        else:
            run.state.load_arrays(checkpoint.arrays, Counters(**checkpoint.header["counters"]))
            _announce_resume(cursor, options.optim.epochs)
        trainer = Trainer(run, folder, cursor, stopper, callbacks)
        callbacks.add(ReportHooks(trainer, resumed=checkpoint is not None), "report")
        return trainer.train()
    finally:
        run.close()


def _with_batch_size(options: TrainOptions, hyp: Hyperparameters, callbacks: Callbacks) -> TrainOptions:
    """Finds the batch size if it was left to us, and tells it."""
    found = with_batch_size(options, hyp)
    if found is not options:
        callbacks.run("on_params_update", {"batch_size": found.optim.batch_size})
    return found


def _announce_resume(cursor: Cursor, epochs: int) -> None:
    if cursor.finished or cursor.epoch >= epochs:
        LOG.info("All %d epochs are done: only the final validation is repeated; go on with --epochs N", cursor.epoch)
    else:
        LOG.info("Resuming at epoch %d, batch %d", cursor.epoch, cursor.next_batch)


def _describe(run: Run, folder: RunFolder, callbacks: Callbacks, *, first_epoch: int) -> None:
    """Says what will be trained: to the terminal, as files in the folder, to loggers."""
    options, data = run.setup.options, run.setup.data
    LOG.info("%s", measure(run.state.network, run.setup.image_px))
    problems = (*data.train.problems, *data.val.problems)
    if problems:
        write_problems(folder.path / "problems.txt", problems)
    labels = np.concatenate([np.zeros((0, 5), np.float32), *data.train.labels])
    if not options.run.noplots:
        from graph_train.plots.labels import plot_labels

        plot_labels(labels, data.class_names, folder.path / "labels.jpg")
    uploads = {"": (), "val": data.val.paths, "all": (*data.train.paths, *data.val.paths)}
    names = [name for name in options.run.logger_names if name != "csv"]
    description = RunDescription(
        folder=folder.path,
        settings={**options.as_flat_dict(), **run.setup.hyp.as_dict()},
        first_epoch=first_epoch,
        entity=options.run.entity,
        bbox_interval=options.run.bbox_interval,
        dataset_files=uploads[options.run.upload_dataset],
    )
    add_loggers(callbacks, names, description)
    callbacks.run("on_pretrain_routine_end", labels, data.class_names)


def _save_settings(run: Run, folder: RunFolder) -> None:
    flags = run.setup.options.as_flat_dict()
    write_atomically(folder.path / "opt.yaml", yaml.safe_dump(flags, sort_keys=False))
    run.setup.hyp.save(folder.path / "hyp.yaml")


def _evolve(options: TrainOptions, callbacks: Callbacks) -> EvolutionResult:
    """Many short trainings, each in a process of its own; nothing but their results is kept.

    Raises:
        ValueError: somebody listens, who could not hear anything.
    """
    heard = [hook for hook in HOOKS if callbacks.listens(hook)]
    if heard:
        raise ValueError(
            f"callbacks ({', '.join(heard)}) cannot follow an evolution: each generation trains in a process of "
            "its own; leave callbacks or --evolve out"
        )
    base = load_hyperparameters(options.optim.hyp)
    project = EVOLVE_PROJECT if options.run.project == DEFAULT_PROJECT else options.run.project
    folder = new_run_folder(project, options.run.name, exist_ok=options.run.exist_ok)
    folder.open_log()
    # As YOLOv5: each generation is validated after its last epoch only, and saves and draws nothing.
    quiet = replace(options, run=replace(options.run, nosave=True, noval=True, noplots=True, loggers="csv"))
    try:
        write_atomically(folder.path / "opt.yaml", yaml.safe_dump(options.as_flat_dict(), sort_keys=False))
        base.save(folder.path / "hyp.yaml")
        quiet = with_batch_size(quiet, base)
        return evolve(
            base,
            lambda hyp, generation: train_generation(quiet.as_flat_dict(), hyp, folder.path),
            folder.path,
            generations=options.optim.evolve,
            seed=options.optim.seed,
            tune_anchors=not options.model.noautoanchor,
            plot=not options.run.noplots,
        )
    finally:
        folder.close()
