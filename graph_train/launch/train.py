"""What `graph-train` and `graph_train.train` do: from flags to the driver of a run, on every rank."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graph_train.hooks.callbacks import Callbacks
from graph_train.hooks.loggers import RunDescription, add_loggers
from graph_train.host.devices import cpu_threads
from graph_train.host.failures import GracefulStop
from graph_train.host.interrupts import Interruptible
from graph_train.host.run_command import one_line
from graph_train.host.terminal import steady_output
from graph_train.launch.auto_batch import with_batch_size
from graph_train.launch.evolution import EvolutionResult
from graph_train.launch.evolve_command import evolve_from
from graph_train.launch.new_or_resumed import Start, begun, require_fitting, resumed, save_settings, shared
from graph_train.ranks import team
from graph_train.ranks.exchange import Exchange
from graph_train.ranks.launcher import RankInfo
from graph_train.report import ReportHooks
from graph_train.runs.cursor import Cursor
from graph_train.runs.run_folder import (
    RunFolder,
    new_run_folder,
    point_to_resume,
)
from graph_train.runs.saved_header import SavedHeader, read_header
from graph_train.settings.hyperparameters import Hyperparameters, load_hyperparameters
from graph_train.settings.train_options import AUTO_BATCH, TrainOptions, options_from_flags
from graph_train.training.assembly import Saved, TrainingRun, assemble
from graph_train.training.early_stopping import EarlyStopping
from graph_train.training.setup import run_device
from graph_train.training.trainer import Trainer, TrainResult
from models.complexity import measure
from models.spec import load_model_spec
from pipelines.data.dataset import load_dataset
from pipelines.data.problems import printable, write_problems

LOG = logging.getLogger("graph_train")


def train(*, callbacks: Callbacks | None = None, **flags: Any) -> TrainResult | EvolutionResult:
    """Trains a detector; the arguments are the flags of `graph-train` with underscores.

    Args:
        callbacks: who wants to hear of the run's events, besides the loggers that the flags name.
        flags: settings; what is left out has its default.
    Returns:
        What came of it; with `evolve` the result of the evolution.
    Raises:
        ValueError, OSError: a setting or file that cannot be used; one line says which and what to do.
        RunEndedError: the disk refused a checkpoint, or the numbers were not finite for too long.
        KeyboardInterrupt: stopped by a signal, after saving.
    """
    team.join(flags.get("dist_timeout", team.DEFAULT_TIMEOUT), devices=flags.get("device", ""))
    with team.reporting(quiet=not flags.get("debug")), steady_output(), Interruptible():
        try:
            return _train(callbacks, flags)
        except GracefulStop:
            _wait_for_all_ranks()
            raise


def _wait_for_all_ranks() -> None:
    """Waits for all ranks: OneFlow's heartbeat would abort those that are left, even rank 0 in its last save."""
    info = team.current().info
    Exchange(info.rank, info.world).all_reduce_max(0)


def _train(callbacks: Callbacks | None, flags: Mapping[str, Any]) -> TrainResult | EvolutionResult:
    if flags.get("resume") == "":
        raise ValueError("--resume '': names no run; give a run folder or a checkpoint, or leave the value out")
    options = options_from_flags(**flags)
    info = team.current().info
    _check_ranks(options, info)
    listeners = callbacks if callbacks is not None else Callbacks()
    if options.optim.evolve:
        return evolve_from(options, listeners)
    with listeners.run_scope():
        return _train_one(options, flags, listeners) if info.main else _train_follower(listeners)


def _train_one(options: TrainOptions, flags: Mapping[str, Any], listeners: Callbacks) -> TrainResult:
    """Trains on the main rank."""
    if options.run.resume:
        point = point_to_resume(options.run.resume, options.run.project)
        return _train_in(RunFolder(point.folder, resumed=True), lambda folder: resumed(folder, point, flags), listeners)
    # A broken file or a missing device ends the run before a folder is made.
    hyp = load_hyperparameters(options.optim.hyp)
    load_dataset(options.data.data, require=())
    if options.model.cfg:
        load_model_spec(options.model.cfg)
    run_device(options, team.current().info)
    folder = new_run_folder(options.run.project, options.run.name, exist_ok=options.run.exist_ok)
    return _train_in(folder, lambda folder: begun(folder, options, hyp), listeners)


def _check_ranks(options: TrainOptions, info: RankInfo) -> None:
    """Refuses settings that do not fit the number of processes.

    Raises:
        ValueError: says which.
    """
    given, local_rank = options.engine.local_rank, info.local_rank
    if given >= 0 and (info.alone or given != local_rank):
        what = "there is one process, without a launcher" if info.alone else f"the launcher says {local_rank}"
        raise ValueError(f"--local_rank {given}: only a launcher sets it ({what}); leave it out")
    if info.alone:
        return
    if options.optim.evolve:
        raise ValueError("--evolve: each generation trains in a process of its own; start it without a launcher")
    if options.optim.batch_size == AUTO_BATCH:
        raise ValueError("--batch-size -1: measures the memory of one process; with several ranks give a number")
    if options.optim.batch_size < info.world:
        raise ValueError(f"--batch-size {options.optim.batch_size}: {info.world} ranks need at least an image each")


def _train_follower(callbacks: Callbacks) -> TrainResult:
    """Trains as any rank but the main one: settings come from there, and what is written here is thrown away."""
    with tempfile.TemporaryDirectory(prefix="graph-train-rank-") as place:
        folder = RunFolder(Path(place))
        with folder.quiet():
            try:
                with _routine_events(callbacks):
                    return _train_from(shared(None), folder, callbacks)
            finally:
                folder.close()


def _require_same_data(run: TrainingRun) -> None:
    """All ranks draw from one plan, so all must have the same images.

    Raises:
        ValueError: this rank has others.
    """
    own, exchange = run.setup.data.fingerprint(), run.setup.exchange
    if exchange.broadcast(own) != own:
        raise ValueError("the data set is not the one that rank 0 has; copy the same files to every host")


def _train_in(folder: RunFolder, begin: Callable[[RunFolder], Start], callbacks: Callbacks) -> TrainResult:
    try:
        folder.open_log()
        with _routine_events(callbacks):
            return _train_from(shared(begin(folder)), folder, callbacks)
    finally:
        folder.close()


@contextlib.contextmanager
def _routine_events(callbacks: Callbacks) -> Iterator[None]:
    callbacks.run("on_pretrain_routine_start")
    try:
        yield
    finally:
        callbacks.run("teardown")


def _train_from(start: Start, folder: RunFolder, callbacks: Callbacks) -> TrainResult:
    options, checkpoint = start.options, start.checkpoint
    header = read_header(checkpoint.header) if checkpoint is not None else None
    saved, cursor, stopper = None, Cursor(), EarlyStopping(options.optim.patience)
    lines: Sequence[str] = ()
    if header is not None:
        saved = Saved(header.config, header.anchors_px)
        cursor = header.cursor
        # More epochs than the run was to have: it goes on, also one that had stopped early.
        cursor.finished = cursor.finished and options.optim.epochs <= header.options["epochs"]
        stopper.restore(header.early_stopping)
        lines = header.results
    else:
        options = _with_batch_size(options, start.hyp, folder, callbacks)
    run = assemble(options, start.hyp, saved, rank=team.current().info)
    try:
        _require_same_data(run)
        if header is not None:
            _check_data(run, header)
            if run.setup.device == "cpu":
                _warn_of_other_threads(header.threads)
            require_fitting(header, run.setup.data, run.train_pipeline.batches_per_epoch, folder.path)
        _describe(run, folder, callbacks, first_epoch=None if checkpoint is None else cursor.epoch)
        if checkpoint is not None and header is not None:
            if run.setup.exchange.main:
                run.state.load_arrays(checkpoint.arrays, header.counters)
            run.state.share(header.counters)
            _announce_resume(cursor, options.optim.epochs)
        trainer = Trainer(run, folder, cursor, stopper, callbacks, results=lines)
        if run.setup.exchange.main:
            callbacks.add(ReportHooks(trainer, resumed=checkpoint is not None), "report")
        return _trained(trainer)
    finally:
        run.close()


def _check_data(run: TrainingRun, header: SavedHeader) -> None:
    """The data set may lie elsewhere than before, but must be the same there.

    Raises:
        ValueError: `--data` names another one than that of the checkpoint.
    """
    given = run.setup.options.data.data
    if given != header.options["data"] and header.data != run.setup.data.fingerprint():
        raise ValueError(f"--data {given}: not the data set of the checkpoint (names, sizes and labels of its images "
                         "differ); a resumed run keeps its data set, which may only lie elsewhere")  # fmt: skip


def _trained(trainer: Trainer) -> TrainResult:
    """Trains; a file that the run could read at its start, and cannot any more, is no reason to start all over."""
    try:
        return trainer.train()
    except OSError as error:
        way_on = f"repair that and go on with: graph-train --resume {printable(trainer.folder.path)}"
        raise OSError(f"{one_line(error)}; {way_on}") from error


def _with_batch_size(
    options: TrainOptions, hyp: Hyperparameters, folder: RunFolder, callbacks: Callbacks
) -> TrainOptions:
    """Finds the batch size if it was left to us, and tells it; a run that starts over will have the same."""
    found = with_batch_size(options, hyp)
    if found is not options:
        save_settings(found, hyp, folder)
        callbacks.run("on_params_update", {"batch_size": found.optim.batch_size})
    return found


def _announce_resume(cursor: Cursor, epochs: int) -> None:
    if cursor.finished or cursor.epoch >= epochs:
        LOG.info("All %d epochs are done: only the final validation is repeated; go on with --epochs N", cursor.epoch)
    else:
        LOG.info("Resuming at epoch %d, batch %d", cursor.epoch, cursor.next_batch)


def _warn_of_other_threads(before: int) -> None:
    now = cpu_threads()
    if before not in (0, now):
        LOG.warning(
            "This run used %d thread%s, now %d: results will differ from an uninterrupted run in the last digits; set "
            "OMP_NUM_THREADS=%d to continue exactly", before, "s" * (before != 1), now, before,
        )  # fmt: skip


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _describe(run: TrainingRun, folder: RunFolder, callbacks: Callbacks, *, first_epoch: int | None) -> None:
    """Says what will be trained: to the terminal, as files in the folder, to loggers."""
    options, data = run.setup.options, run.setup.data
    LOG.info("Settings: %s", _listed(options.as_flat_dict()))
    LOG.info("Hyper-parameters: %s", _listed(run.setup.hyp.as_dict()))
    LOG.info("%s", measure(run.state.network, run.setup.image_px))
    problems = (*data.train.problems, *data.val.problems)
    if problems:
        write_problems(folder.path / "problems.txt", problems)
    labels = data.train.labels.rows
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
